"""Which pages there are, and the links from each to the others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from histoclip_lib.report.notebooks import run_notebooks

OVERVIEW, DATA, RESULTS = "index", "01_data", "04_results"
COMPARISON_PREFIX, GRID_PREFIX = "compare_", "grid_"


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
