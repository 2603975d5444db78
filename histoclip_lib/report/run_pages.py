"""The pages of a run, drawn from its executed notebooks and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from IPython.display import Image as Picture

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.evaluation.artifacts import (
    CLASS_METRICS,
    METRICS,
    Score,
    ValidationPredictions,
    read_metrics,
    read_predictions,
    read_results,
)
from histoclip_lib.evaluation.comparisons import OURS, best_zero_shot, headline
from histoclip_lib.evaluation.methods import ROW_LABELS
from histoclip_lib.report.executed import Executed, executed_notebooks, read_executed, run_parameters
from histoclip_lib.report.export import drawn_digest, export_page, page_digest, render
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.figures.evaluation import forest_plot
from histoclip_lib.report.html import Heading
from histoclip_lib.report.navigation import PAGE_LABELS, SUMMARY_PAGE, Link, neighbours, run_navigation


def write_run_pages(folder: Path) -> list[Path]:
    """Write the pages of a run that are missing, or were drawn from something else than what is there now.

    Nothing is executed. A page is drawn from its executed notebook, the templates and the list of pages, so that it
    links all that are there and no other. The summary is drawn where `metrics.json` can be read.

    Parameters
    ----------
    folder : Path
        The run's.

    Returns
    -------
    list of Path
        The pages that were written.

    Raises
    ------
    HistoCLIPError
        If an executed notebook is not a notebook.
    """
    notebooks = executed_notebooks(folder)
    there = {stem for stem in PAGE_LABELS if stem in notebooks or (folder / f"{stem}.html").is_file()}
    if _is_evaluated(folder):
        there.add(SUMMARY_PAGE)
    written = [
        page for stem, path in notebooks.items() if (page := write_page(path, folder.name, run_navigation(stem, there)))
    ]
    if SUMMARY_PAGE in there and (page := _write_summary(folder, notebooks, run_navigation(SUMMARY_PAGE, there))):
        written.append(page)
    return written


def write_page(notebook: Path, title: str, navigation: list[Link]) -> Path | None:
    """Write the page of an executed notebook beside it unless it is fresh; return it where it was written.

    Parameters
    ----------
    notebook : Path
        The executed notebook.
    title : str
        Title of the page where the notebook bears none.
    navigation : list of Link
        For the page.

    Raises
    ------
    HistoCLIPError
        If it is not a notebook.
    """
    page = notebook.with_suffix(".html")
    digest = page_digest(notebook.read_bytes(), title.encode(), repr(navigation).encode())
    if drawn_digest(page) == digest:
        return None
    executed = read_executed(notebook)
    export_page(notebook, page, executed.title or title, navigation, executed.provenance, digest)
    return page


def _write_summary(folder: Path, notebooks: dict[str, Path], navigation: list[Link]) -> Path | None:
    page = folder / f"{SUMMARY_PAGE}.html"
    shown = (folder / name for name in ("metrics.json", "predictions.parquet", "steps.json", "thumbnail.png"))
    read = [*shown, *notebooks.values()]
    listing = [  # of the other files it shows the names and sizes alone
        (path.name, path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.suffix != ".html" and not path.name.startswith(".") and path.is_file()
    ]
    parts = [path.read_bytes() if path.is_file() else b"" for path in read]
    digest = page_digest(*parts, repr(listing).encode(), repr(navigation).encode())
    if drawn_digest(page) == digest:
        return None
    from histoclip_lib.report.run_pages import write_summary  # here alone: it loads Matplotlib and scikit-learn

    write_summary(folder, navigation, digest)
    return page


def _is_evaluated(folder: Path) -> bool:
    try:
        read_metrics(folder / "metrics.json")
    except HistoCLIPError:
        return False
    return True


PAGE_LINES = {
    "01_data": "Classes, how often each is present and which go together, the split, and patches to look at.",
    "02_zero_shot": "The four strategies without training, and how far they hang on their words.",
    "03_train": "How the two heads were trained; other seeds, designs and numbers of patches.",
    "04_evaluate": "All rows with intervals and tests, calibration, confusion, errors, leakage, the model card.",
    "05_attention": "Where each class finds its evidence, scored against the masks where there are any.",
}
FILES = {
    "metrics.json": "every number of the tables",
    "predictions.parquet": "score and decision of every row, patch and class of the validation part",
    "studies.parquet": "predictions of the models that 03 Training compares",
    "zero_shot.parquet": "score and decision of the zero-shot rows for all patches",
    "split.csv": "which patch was trained on, and which was validated on",
    "history.csv": "the course of the training",
    "cmm_patch.safetensors": "the head on the patch tokens, with its options, classes and backbone",
    "cmm_global.safetensors": "the head on the global embedding",
    "model_card.md": "what a user of the heads must know",
}

SECTIONS = {
    "rows": "All rows",
    "classes": "Class by class",
    "pages": "Pages",
    "files": "Files",
    "parameters": "Parameters",
    "provenance": "How this run was made",
}


@dataclass(frozen=True)
class PageLink:
    """A notebook's page, one line on what it shows, and a small picture as a data address or nothing."""

    label: str
    href: str
    line: str
    picture: str


@dataclass(frozen=True)
class FileLink:
    """A file beside the page, its size in words, and what it holds."""

    name: str
    href: str
    size: str
    holds: str


def write_summary(folder: Path, navigation: list[Link], digest: str) -> None:
    """Write `index.html` of a run from what lies in its folder.

    Parameters
    ----------
    folder : Path
        Holds `metrics.json`; executed notebooks, pages and other files are used where they are there.
    navigation : list of Link
        Of the run's pages.
    digest : str
        Of what the page is drawn from; see `export.page_digest`.

    Raises
    ------
    HistoCLIPError
        If `metrics.json` or an executed notebook cannot be used.
    """
    results = read_results(folder / "metrics.json")
    executed = {stem: read_executed(path) for stem, path in executed_notebooks(folder).items()}
    rows = {name: results.rows[name] for name in ROW_LABELS if name in results.rows}
    wanted = ("majority", best_zero_shot(results), "linear_probe", "histoclip_global", OURS)
    previous, following = neighbours(navigation)
    details = {
        "run": results.summary,
        "results": results,
        "headline": headline(results, _predictions(folder)),
        "picture": _forest(rows),
        "labels": ROW_LABELS,
        "metrics": {key: label for key, label in METRICS.items() if any(key in row for row in rows.values())},
        "classes": results.prevalence,
        "class_metrics": CLASS_METRICS,
        "rows": rows,
        "main_rows": [name for name in wanted if name in rows],
        "pages": _page_links(navigation, executed, results.summary.thumbnail),
        "files": _file_links(folder),
        "parameters": list(run_parameters(list(executed.values())).values()),
        "provenance": _provenance(executed),
    }
    headings = [Heading(2, text, key) for key, text in SECTIONS.items() if details[key]]
    render(
        "run.html.j2",
        folder / "index.html",
        **details,
        navigation=navigation,
        previous=previous,
        following=following,
        headings=headings,
        digest=digest,
    )


def _predictions(folder: Path) -> ValidationPredictions | None:
    try:
        return read_predictions(folder / "predictions.parquet")
    except HistoCLIPError:
        return None


def _forest(rows: dict[str, dict[str, Score]]) -> Picture | None:
    """Return the forest plot as an image; a row without an interval gets one of no width."""
    drawn: dict[str, dict] = {}
    for name, scores in rows.items():
        drawn[name] = {}
        for metric in ("mAcc", "mAP"):
            if metric in scores:
                value, interval = scores[metric].value, scores[metric].interval
                drawn[name] |= {metric: value, f"{metric}_ci": interval or (value, value)}
    return as_image(forest_plot(drawn, ROW_LABELS)) if drawn else None


def _page_links(navigation: list[Link], executed: dict[str, Executed], thumbnail: str | None) -> list[PageLink]:
    there = {link.href for link in navigation}
    pictures = {stem: notebook.picture for stem, notebook in executed.items()}
    if thumbnail:  # it shows at this size what the page's first figure does not
        pictures["05_attention"] = thumbnail
    return [
        PageLink(label, f"{stem}.html", PAGE_LINES[stem], pictures.get(stem) or "")
        for stem, label in PAGE_LABELS.items()
        if f"{stem}.html" in there
    ]


def _file_links(folder: Path) -> list[FileLink]:
    holds = dict(FILES)
    holds |= {path.name: f"{PAGE_LABELS[stem]}, executed" for stem, path in executed_notebooks(folder).items()}
    holds |= {
        f"{stem}.failed.ipynb": f"{label}, as far as it came before it failed" for stem, label in PAGE_LABELS.items()
    }
    return [
        FileLink(name, quote(name), size_text((folder / name).stat().st_size), text)
        for name, text in holds.items()
        if (folder / name).is_file()
    ]


def size_text(size: int) -> str:
    """Return a number of bytes in words."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _provenance(executed: dict[str, Executed]) -> dict[str, dict[str, str]]:
    """Return the lines of the notebooks' provenance, each with its value by page."""
    lines = dict.fromkeys(line for notebook in executed.values() for line in notebook.provenance)
    return {
        line: {PAGE_LABELS[stem]: notebook.provenance.get(line, "") for stem, notebook in executed.items()}
        for line in lines
    }
