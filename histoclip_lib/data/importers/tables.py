"""Tables of images: a column for each class, or class names in the cells of one column."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.data.importers.cells import CLASS, FALSE, TRUE, Cells, is_number, plain, read_cells
from histoclip_lib.data.importers.plan import Found, ImportOptions, Item, image_files
from histoclip_lib.data.importers.registry import importer
from histoclip_lib.data.splits import part_of

COUNT_PREFIX = re.compile(r"(n|num|count|prob)_", re.IGNORECASE)
CELL_SEPARATORS = ("|", ";", ",")
NO_CLASS = ("no finding", "none")  # without --none; lower case
NOT_CLASSIFIED = ("unclassified", "nan", "null")
ROBOFLOW = "_classes.csv"
TABLE_OPTIONS = ("images", "file_column", "group_column", "meta", "none", "min_count")


def _is_roboflow(path: Path, options: ImportOptions) -> bool:
    return path.name == ROBOFLOW or (path.is_dir() and any(path.rglob(ROBOFLOW)))


@importer(
    "roboflow",
    title="Roboflow classes",
    about="a folder that holds _classes.csv in each of train/, valid/ and test/, or one such file",
    recognises=_is_roboflow,
    options=("none", "unknown"),
)
def read_roboflow(source: Path, options: ImportOptions) -> Found:
    """Read Roboflow's multi-label export; copies of one original, made by augmentation, form a group."""
    tables = [source] if source.is_file() else sorted(source.rglob(ROBOFLOW))
    found = Found([], [], ["groups: copies of one original, by the name before `.rf.`"])
    for path in tables:
        here = _columns(path, read_cells(path), options)
        part = part_of(path.parent.name) if source.is_dir() else ""
        files = {file.name: file for file in image_files(path.parent, options.out)}
        for item in here.items:
            if item.name in files:
                group = item.name.partition(".rf.")[0]
                found.items.append(
                    Item(item.name, item.labels, files[item.name], group=group, split=part, complete=item.complete)
                )
            else:
                found.leave_out(f"no image of that name in {path.parent}", item.name)
        found.classes += [name for name in here.classes if name not in found.classes]
        found.notes += here.notes
        for reason, columns in here.left_out.items():
            found.left_out.setdefault(reason, []).extend(columns)
    return found


def _is_names(path: Path, options: ImportOptions) -> bool:
    cells = read_cells(path)
    file = cells.file_column(options.file_column)
    column = label_column(cells, options.label_column, file)
    if not column:
        return False
    values = [value for value in cells.columns[column] if value]
    if not all(map(is_number, values)):
        return True
    files = cells.columns[file]
    return len(set(files)) < len(files) or len(set(values)) > 2


@importer(
    "names",
    title="Class names in a column",
    about="a table (also .xlsx) with files and class names: one a cell, several as a|b or a, b, or a line per object",
    recognises=_is_names,
    options=(*TABLE_OPTIONS, "label_column"),
)
def read_names(source: Path, options: ImportOptions) -> Found:
    """Read a table with class names in its cells; lines of one image are united."""
    cells = read_cells(source)
    roles = _roles(cells, options)
    label = label_column(cells, options.label_column, roles.file)
    if not label:
        raise HistoCLIPError(f"{source}: no column holds class names. Name it with --label-column.")
    values = cells.columns[label]
    separator = next((mark for mark in CELL_SEPARATORS if any(mark in value for value in values)), "")
    found = Found([], [], roles.notes(cells))
    several = f"several in a cell, separated by {separator!r}" if separator else "one in a cell"
    found.notes.append(f"classes: names in column {label!r}, {several}")
    none = {options.none.casefold()} if options.none is not None else set(NO_CLASS)
    classes: dict[str, None] = {}
    for row, value in enumerate(values):
        names = [name.strip() for name in value.split(separator)] if separator else [value]
        names = [name for name in names if name and name.casefold() not in NOT_CLASSIFIED]
        given = [name for name in names if name.casefold() not in none]
        is_none = (bool(names) and not given) or (not value and "" in none)
        if not given and not is_none:
            found.leave_out(
                f"column {label!r} is empty or says {', '.join(NOT_CLASSIFIED)}", cells.columns[roles.file][row]
            )
            continue
        classes |= dict.fromkeys(given)
        found.items.append(roles.item(cells, row, dict(Counter(given)), complete=is_none))
    if none & {value.casefold() for value in values}:
        found.notes.append(f"none of the classes: {', '.join(sorted(none))}")
    found.classes = sorted(classes, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else name))
    return found


def label_column(cells: Cells, wanted: str = "", file: str = "") -> str:
    """Return the column of class names: the first with a usual name and words in it, else one with numbers.

    It is not the column `file`; one called `name` comes last, since it may be the name of an object.
    """
    if wanted:
        return cells.require(wanted, "--label-column")
    named = [
        name for name in cells.columns if name != file and CLASS.fullmatch(plain(name)) and any(cells.columns[name])
    ]
    named.sort(key=lambda name: plain(name) == "name")
    words = [name for name in named if not all(is_number(value) for value in cells.columns[name] if value)]
    numbers = [name for name in cells.columns if re.fullmatch(r"class(id)?|label|category(id)?", plain(name))]
    return next(iter([*words, *numbers]), "")


def _is_columns(path: Path, options: ImportOptions) -> bool:
    cells = read_cells(path)
    return bool(_class_columns(cells, _roles(cells, options), options)[0])


@importer(
    "columns",
    title="A column for each class",
    about="a table (also .xlsx) with files and columns of 0 and 1, TRUE and FALSE, or counts; with or without a header",
    recognises=_is_columns,
    options=(*TABLE_OPTIONS, "unknown"),
)
def read_columns(source: Path, options: ImportOptions) -> Found:
    """Read a table with a column for each class; all columns that hold counts are classes."""
    return _columns(source, read_cells(source), options)


def _columns(source: Path, cells: Cells, options: ImportOptions) -> Found:
    roles = _roles(cells, options)
    names, reasons = _class_columns(cells, roles, options)
    found = Found([], [], roles.notes(cells))
    for name, reason in reasons.items():
        found.leave_out(f"columns: {reason}", name)
    short = {COUNT_PREFIX.sub("", name, count=1) for name in names}
    prefixed = len(short) == len(names) > 1 and all(COUNT_PREFIX.match(name) for name in names)
    classes = {name: COUNT_PREFIX.sub("", name, count=1) if prefixed else name for name in names}
    if not cells.has_header:
        classes = _given_names(names, options)
    found.classes = list(classes.values())
    is_count = any(value.casefold() not in TRUE | FALSE | {""} for name in names for value in cells.columns[name])
    what = f"counts, present from {options.min_count} on" if is_count else "0 and 1"
    shorter = f"; the beginning {COUNT_PREFIX.match(names[0])[0]!r} of their names goes" if prefixed else ""
    found.notes.append(f"classes: {len(names)} column{'s' * (len(names) > 1)} of {what}{shorter}")
    negative = [
        f"line {cells.lines[row]}, column {name}: {value}"
        for name in names
        for row, value in enumerate(cells.columns[name])
        if _is_negative(value, options)
    ]
    if negative:
        raise HistoCLIPError(
            f"{source}: counts must not be negative. If a number stands for `not known`, name it, as in --unknown=-1:\n"
            + bullet_list(negative)
        )
    for row in range(len(cells.lines)):
        labels = {classes[name]: _count(cells.columns[name][row], options) for name in names}
        found.items.append(roles.item(cells, row, labels))
    return found


def _given_names(names: list[str], options: ImportOptions) -> dict[str, str]:
    """Return names for columns of a table without a header: those of --classes where they are as many."""
    given = [text for text in options.classes if "=" not in text]
    if len(given) == len(names) and not set(given) & set(names):
        return dict(zip(names, given, strict=True))
    return {name: f"class {place}" for place, name in enumerate(names, 1)}


def _class_columns(cells: Cells, roles: _Roles, options: ImportOptions) -> tuple[list[str], dict[str, str]]:
    """Return the columns that are classes, and why each of the others is none."""
    chosen, reasons = [], {}
    asked = {text.partition("=")[0].strip() for text in options.classes}
    used = {roles.file, roles.group, roles.split, *roles.meta}
    for name, values in cells.columns.items():
        if name in used:
            continue
        filled = [value for value in map(str.casefold, values) if value and not _is_unknown(value, options)]
        numbers = [float(value) for value in filled if is_number(value)]
        if part_of(name) and name not in asked:
            reasons[name] = "the name of a part: a split is given with --split FILE"
        elif not filled:
            reasons[name] = "nothing is known in it"
        elif any(not is_number(value) and value not in TRUE | FALSE for value in filled):
            reasons[name] = "text"
        elif any(not number.is_integer() for number in numbers):
            reasons[name] = "numbers that are not counts"
        elif name not in asked and len(numbers) > 2 and set(np.diff(numbers)) == {1}:
            reasons[name] = "a running number"
        elif name not in asked and numbers and min(numbers) > 0 and max(numbers) > 1:
            reasons[name] = "a number that is never 0"
        else:
            chosen.append(name)
    return chosen, reasons


def _is_unknown(value: str, options: ImportOptions) -> bool:
    """Whether a cell has one of the codes for `not known`, be it written as -1 or as -1.0."""
    return any(
        value == code.casefold() or (is_number(value) and is_number(code) and float(value) == float(code))
        for code in options.unknown
    )


def _is_negative(value: str, options: ImportOptions) -> bool:
    return is_number(value) and float(value) < 0 and not _is_unknown(value, options)


def _count(value: str, options: ImportOptions) -> float | None:
    """Return a count; yes is as many as make a label."""
    value = value.casefold()
    if not value or _is_unknown(value, options):
        return None
    if is_number(value):
        return float(value)
    return float(options.min_count) if value in TRUE else 0.0


@dataclass(frozen=True)
class _Roles:
    """The columns that do not hold classes; each is an empty string if it is missing."""

    file: str
    group: str
    split: str
    meta: tuple[str, ...]

    def item(self, cells: Cells, row: int, labels: dict[str, float | None], complete: bool = True) -> Item:
        """Return the patch of a row."""
        columns = cells.columns
        return Item(
            columns[self.file][row],
            labels,
            group=columns[self.group][row] if self.group else "",
            split=columns[self.split][row] if self.split else "",
            meta={name: columns[name][row] for name in self.meta},
            complete=complete,
        )

    def notes(self, cells: Cells) -> list[str]:
        """Say how the table was understood."""
        named = (("files", self.file), ("groups", self.group), ("split", self.split))
        return [cells.about(), *(f"{role}: column {name!r}" for role, name in named if name)]


def _roles(cells: Cells, options: ImportOptions) -> _Roles:
    meta = tuple(cells.require(name, "--meta") for name in options.meta)
    file, group = cells.file_column(options.file_column), cells.group_column(options.group_column)
    return _Roles(file, group, cells.split_column(), meta)
