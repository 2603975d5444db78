"""The pages of a run, drawn from its executed notebooks."""

from __future__ import annotations

from pathlib import Path

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.report.executed import executed_notebooks, read_executed
from histoclip_lib.report.export import drawn_digest, export_page, page_digest
from histoclip_lib.report.notebooks import Link, run_navigation, run_notebooks


def write_run_pages(folder: Path, only: str | None = None) -> list[Path]:
    """Write the pages of a run that are missing, or were drawn from something else than what is there now.

    Nothing is executed. A page is drawn from its executed notebook, the template and the list of pages, so that it
    links all that are there and no other.

    Parameters
    ----------
    folder : Path
        The run's.
    only : str, optional
        The step whose page to write, while later steps are still to come; by default all.

    Returns
    -------
    list of Path
        The pages that were written.

    Raises
    ------
    HistoCLIPError
        If an executed notebook is not a notebook; its page is removed, and the others are written.
    """
    notebooks, written, fault = executed_notebooks(folder), [], None
    while True:
        there = {stem for stem in run_notebooks() if stem in notebooks or (folder / f"{stem}.html").is_file()}
        try:
            for stem, path in notebooks.items():
                if only not in (None, stem):
                    continue
                if page := write_page(path, folder.name, run_navigation(stem, there)):
                    written.append(page)
            break
        except HistoCLIPError as error:  # its page is gone, and the others must not link it
            fault = fault or error
            notebooks = {name: path for name, path in notebooks.items() if name != stem}
    if fault:
        raise fault
    return written


def write_page(notebook: Path, title: str, navigation: list[Link], as_heading: bool = False) -> Path | None:
    """Write the page of an executed notebook beside it unless it is fresh; return it where it was written.

    Parameters
    ----------
    notebook : Path
        The executed notebook.
    title : str
        Title of the page where the notebook bears none.
    navigation : list of Link
        For the page.
    as_heading : bool
        See `export.export_page`.

    Raises
    ------
    HistoCLIPError
        If it is not a notebook; a page that was drawn from it before is removed.
    """
    page = notebook.with_suffix(".html")
    digest = page_digest(notebook.read_bytes(), title.encode(), repr((navigation, as_heading)).encode())
    if drawn_digest(page) == digest:
        return None
    try:
        executed = read_executed(notebook)
    except HistoCLIPError:
        page.unlink(missing_ok=True)
        raise
    export_page(notebook, page, executed.title or title, navigation, executed.provenance, digest, as_heading)
    return page
