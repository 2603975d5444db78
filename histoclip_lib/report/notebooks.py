"""The notebooks of a run in the order of execution: what each writes, and the links between their pages."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from histoclip_lib.common.registry import Registry

MODEL_FILES = ("README.md", "config.json", "model.safetensors", "reference.safetensors")
TABLE, COMPARE, ENCODERS = "table", "compare", "encoders"  # the notebooks over runs
PREDICTIONS, SLIDES, SLIDE = "predictions", "slides", "slide"  # the notebooks of `histoclip predict`
OTHERS = (TABLE, COMPARE, ENCODERS, PREDICTIONS, SLIDES, SLIDE)
OVERVIEW, DATA, RESULTS = "index", "01_data", "04_results"
COMPARISON_PREFIX, GRID_PREFIX = "compare_", "grid_"


@dataclass(frozen=True)
class RunNotebook:
    """A notebook that every run executes.

    Attributes
    ----------
    name : str
        Stem of its file: `01_data`. Notebooks are executed in the order of their names.
    label : str
        In the navigation of pages.
    products : tuple of str
        Files that it writes into the run's folder.
    path : Path or None
        Where the notebook lies, for one that is registered from outside; else it lies beside the others.
    """

    name: str
    label: str
    products: tuple[str, ...] = ()
    path: Path | None = None


NOTEBOOKS: Registry[RunNotebook] = Registry("notebook")


def register_notebook(name: str, label: str, products: tuple[str, ...] = (), path: str | Path | None = None) -> None:
    """Register a notebook of every run; `RunNotebook` has the arguments."""
    NOTEBOOKS.add(name, RunNotebook(name, label, products, None if path is None else Path(path)))


def run_notebooks() -> dict[str, RunNotebook]:
    """Return the notebooks of a run by name, in the order of execution."""
    return dict(sorted(NOTEBOOKS.load().items()))


register_notebook("01_data", "01 Data", ("split.csv",))
register_notebook("02_zero_shot", "02 Zero-shot", ("zero_shot.parquet", "class_matrix.npy"))
register_notebook(
    "03_train",
    "03 Training",
    ("baselines.npz", "cmm_global.safetensors", "cmm_patch.safetensors", "folds", "history.csv", "studies.parquet"),
)
register_notebook(
    "04_results", "04 Results", ("metrics.json", "predictions.parquet", *(f"model/{name}" for name in MODEL_FILES))
)
register_notebook("05_errors", "05 Errors")
register_notebook("06_attention", "06 Attention", ("thumbnail.png",))
register_notebook("07_slides", "07 Slides")


# The links between pages


@dataclass(frozen=True)
class Link:
    """A link of the navigation; `current` marks the page that shows it."""

    label: str
    href: str
    current: bool = False


def run_navigation(current: str, there: Collection[str]) -> list[Link]:
    """Return the links of a run's page: the overview, then the notebooks' pages.

    Parameters
    ----------
    current : str
        Stem of the page that shows them.
    there : collection of str
        Stems of the run's pages that are there; the others are not linked.
    """
    pages = [
        Link(notebook.label, f"{name}.html", name == current)
        for name, notebook in run_notebooks().items()
        if name in there
    ]
    return [Link("All runs", f"../{OVERVIEW}.html"), *pages]


def overview_navigation(current: str = "", href: str = "") -> list[Link]:
    """Return the links of a page over several runs; `current` is its label, nothing for the overview itself."""
    overview = Link("All runs", f"{OVERVIEW}.html", not current)
    return [overview, Link(current, href, current=True)] if current else [overview]


def neighbours(navigation: list[Link]) -> tuple[Link | None, Link | None]:
    """Return the links before and after the current one."""
    position = next((i for i, link in enumerate(navigation) if link.current), None)
    around = [None, *navigation, None]
    return (None, None) if position is None else (around[position], around[position + 2])


def front_page(folder: Path) -> Path | None:
    """Return the page of a run to which other pages lead: its results, else its first page; None without pages."""
    pages = [folder / f"{stem}.html" for stem in (RESULTS, *run_notebooks())]
    return next((page for page in pages if page.is_file()), None)
