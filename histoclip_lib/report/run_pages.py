"""The pages of a run, drawn from its executed notebooks; and a list of its files."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from IPython.display import HTML

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import element, html, table
from histoclip_lib.report.executed import executed_notebooks, read_executed
from histoclip_lib.report.export import drawn_digest, export_page, page_digest
from histoclip_lib.report.navigation import Link, run_navigation
from histoclip_lib.report.notebooks import run_notebooks

FILES = {
    "metrics.json": "every number of the tables",
    "predictions.parquet": "score and decision of every method for each patch and class of the validation part",
    "studies.parquet": "predictions of the models that 03 Training compares",
    "zero_shot.parquet": "score and decision of the zero-shot strategies for all patches",
    "split.csv": "which patches were used for training, and which for validation",
    "history.csv": "loss and validation mAcc of each epoch",
    "class_matrix.npy": "the class embeddings of eq. (2)",
    "cmm_patch.safetensors": "the head on patch tokens, with its options, classes and backbone",
    "cmm_global.safetensors": "the head on the global embedding",
    "model_card.md": "what a user of the heads must know",
    "run.json": "parameters, versions and digests of all files",
}


def write_run_pages(folder: Path) -> list[Path]:
    """Write the pages of a run that are missing, or were drawn from something else than what is there now.

    Nothing is executed. A page is drawn from its executed notebook, the template and the list of pages, so that it
    links all that are there and no other.

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
        If an executed notebook is not a notebook; its page is removed, and the others are written.
    """
    notebooks, written, fault = executed_notebooks(folder), [], None
    while True:
        there = {stem for stem in run_notebooks() if stem in notebooks or (folder / f"{stem}.html").is_file()}
        try:
            for stem, path in notebooks.items():
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


def files_table(folder: Path) -> HTML:
    """Return the files of a run as a table: a link to each, its size, and what it holds."""
    holds = dict(FILES)
    for name, notebook in run_notebooks().items():
        holds[f"{name}.ipynb"] = f"{notebook.label}, executed"
        holds[f"{name}.failed.ipynb"] = f"{notebook.label}, as far as it came before it failed"
    lines = [
        (element("a", name, href=quote(name)), size_text((folder / name).stat().st_size), text)
        for name, text in holds.items()
        if (folder / name).is_file()
    ]
    return HTML(html(table(("File", "Size", "What it holds"), lines, "Files of the run.")))


def size_text(size: int) -> str:
    """Return a number of bytes in words."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
