"""`run.json`: with which parameters a run was made, what each step depended on, and a digest of every product."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from histoclip_lib.common.files import write_text

RECORD = "run.json"
LIBRARY = Path(__file__).resolve().parents[1]
OWN = LIBRARY.name + "."
PLACES = ("name", "reports_dir")  # parameters that say where a run lies, not what it does; every notebook has them


def read_record(folder: Path) -> dict:
    """Return what `run.json` holds; empty where it is absent or garbled, so that every step is executed again."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def read_entry(folder: Path, name: str) -> dict:
    """Return the mapping that `run.json` holds under a name; empty where it holds none."""
    entry = read_record(folder).get(name)
    return entry if isinstance(entry, dict) else {}


def update_record(folder: Path, **entries: object) -> None:
    """Replace some entries of `run.json` and keep the others; write nothing where nothing changes."""
    before = read_record(folder)
    if (after := before | entries) != before:
        write_text(folder / RECORD, json.dumps(after, indent=1))


def step_entries(folder: Path, kind: str = "steps") -> dict[str, dict]:
    """Return what `run.json` says of each step that is finished (or `earlier` was); what is garbled is left out."""
    return {name: entry for name, entry in read_entry(folder, kind).items() if isinstance(entry, dict)}


def product_digests(folder: Path, products: Iterable[str]) -> dict[str, str] | None:
    """Return the SHA-256 of each product, a file or a folder of files, or None where one is missing."""
    try:
        return {name: _file_digest(folder / name) for name in products}
    except OSError:
        return None


def _file_digest(path: Path) -> str:
    if path.is_dir():
        listed = [f"{file.name} {_file_digest(file)}" for file in sorted(path.iterdir()) if file.name[0] != "."]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def loaded_modules(modules: Iterable[str]) -> list[str]:
    """Return the modules of the library among some, sorted: what a notebook has imported."""
    return sorted(name for name in modules if name.startswith(OWN))


def source_digest(modules: Iterable[str]) -> str:
    """Return a digest of the source of modules of the library, and of the data files beside them.

    A module that is no longer there counts as changed. Python files are read with their neighbours' assets: a package's
    words, weights and tables (`.yaml`, `.json`, `.safetensors`) belong to the code that reads them.
    """
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(name.encode() + _module_digest(name))
    return digest.hexdigest()


@cache
def _module_digest(name: str) -> bytes:
    path = LIBRARY.joinpath(*name.split(".")[1:])
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not source.is_file():
        return b"gone"
    assets = source.parent.rglob("*") if source.name == "__init__.py" else ()
    read = [source, *(file for file in sorted(assets) if file.suffix in (".yaml", ".json", ".safetensors"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in read)).digest()
