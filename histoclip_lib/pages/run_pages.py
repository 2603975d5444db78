"""All pages of a run: each is drawn from its executed notebook, and drawn again where it is missing or stale."""

from __future__ import annotations

from pathlib import Path

from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.pages.export import drawn_digest, export_page, page_digest
from histoclip_lib.pages.navigation import PAGE_LABELS, SUMMARY_PAGE, Link, run_navigation
from histoclip_lib.pages.run_notebooks import executed_notebooks, read_executed
from histoclip_lib.run_summaries import read_metrics


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
    from histoclip_lib.pages.summary_pages import write_summary  # here alone: it loads Matplotlib and scikit-learn

    write_summary(folder, navigation, digest)
    return page


def _is_evaluated(folder: Path) -> bool:
    try:
        read_metrics(folder / "metrics.json")
    except HistoCLIPError:
        return False
    return True
