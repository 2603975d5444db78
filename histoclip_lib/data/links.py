"""Where files really are: links that lead out of the data folder are followed only where that is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from histoclip_lib.common.errors import HistoCLIPError, bullet_list

OUTSIDE = "is outside the folder"
REMEDY = "a link leads there; where that is meant, as to a shared store, write `follow_links: true`"


def inside_of(root: str | Path) -> str:
    """Return what the real path of every file in a folder begins with."""
    return os.path.join(os.path.realpath(root), "")


def real_path(path: str | Path, folders: dict[str, str]) -> str:
    """Return `os.path.realpath`; `folders` keeps what is known of folders, which files share."""
    parent, name = os.path.split(path)
    if parent not in folders:
        folders[parent] = os.path.realpath(parent)
    real = os.path.join(folders[parent], name)
    return os.path.realpath(real) if name in ("", ".", "..") or os.path.islink(real) else real


def refuse_links(root: Path, paths: Iterable[Path]) -> None:
    """Raise HistoCLIPError where links lead out of a folder, listing the files."""
    inside, folders = inside_of(root), {}
    outside = [str(path) for path in paths if not real_path(path, folders).startswith(inside)]
    if outside:
        raise HistoCLIPError(f"{root}: {len(outside):,} files are outside; {REMEDY}:\n{bullet_list(outside)}")
