"""Files that say which patch is in which part: CLAM's tables, JSON with a list for each part, a bare list of names."""

from __future__ import annotations

from pathlib import Path

from histoclip_lib.common.csv_tables import MAX_BYTES
from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.common.files import read_json, read_utf8
from histoclip_lib.data.importers.cells import FALSE, TRUE, read_cells
from histoclip_lib.data.splits import PARTS

FORMS = (
    "It is one of: a table with columns train, val and test, of names or of TRUE and FALSE beside a name; JSON with a "
    "list of names for each part; a list of names in a file whose own name says the part."
)


def read_split(path: Path) -> dict[str, str]:
    """Return the part (`train`, `val` or `test`) of each name in a file.

    Raises
    ------
    HistoCLIPError
        If the file has none of the known forms, or puts one name in two parts.
    """
    names = {".json": _of_json, ".txt": _of_list}.get(path.suffix.lower(), _of_table)(path)
    parts: dict[str, str] = {}
    twice = [name for part, members in names.items() for name in members if parts.setdefault(name, part) != part]
    if twice or not parts:
        problem = f"several parts hold one name:\n{bullet_list(twice)}" if twice else f"no split was found. {FORMS}"
        raise HistoCLIPError(f"{path}: {problem}")
    return parts


def _part_in(text: str) -> str:
    """Return the part that a longer name, such as `train_cases`, begins or ends with."""
    words = text.casefold().replace("-", "_").replace(" ", "_").split("_")
    return next((PARTS[word] for word in words if word in PARTS), "")


def _of_json(path: Path) -> dict[str, list[str]]:
    content = read_json(path, MAX_BYTES)
    names: dict[str, list[str]] = {}
    for key, members in content.items() if isinstance(content, dict) else ():
        if (part := _part_in(key)) and isinstance(members, list):
            names.setdefault(part, []).extend(map(str, members))
    return names


def _of_list(path: Path) -> dict[str, list[str]]:
    lines = [line.strip() for line in read_utf8(path, MAX_BYTES).splitlines() if line.strip()]
    return {part: lines} if (part := _part_in(path.stem)) else {}


def _of_table(path: Path) -> dict[str, list[str]]:
    cells = read_cells(path)
    columns = {part: values for name, values in cells.columns.items() if (part := _part_in(name))}
    first = next(iter(cells.columns.values()), [])
    names: dict[str, list[str]] = {}
    for part, values in columns.items():
        filled = {value.casefold() for value in values if value}
        if filled <= TRUE | FALSE:
            names[part] = [name for name, value in zip(first, values, strict=True) if value.casefold() in TRUE]
        else:
            names[part] = [value for value in values if value]
    return names
