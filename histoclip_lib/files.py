"""Where a run's files lie, and writing them so that a reader finds them whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there when the block ends well, remove it otherwise.

    The temporary name keeps the suffix of `path`, since some writers go by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def resolve(path: str | Path) -> Path:
    """Return a path of a parameter file as it is meant.

    A relative one is taken from the current folder, except in a notebook that JupyterLab started in `notebooks/`: there
    it is taken from the folder above, from which `histoclip run` would have been called.
    """
    here = Path.cwd()
    in_notebooks = here.name == "notebooks" and (here.parent / "params").is_dir()
    return Path(os.path.relpath(here.parent / path)) if in_notebooks else Path(path)


def run_folder(name: str, reports_dir: str = "reports") -> Path:
    """Return the folder of a run, created."""
    folder = resolve(reports_dir) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
