"""CSV tables as people and spreadsheets save them; errors name the lines.

pandas does not give the line on which a row begins, nor list all faulty lines at once, so the rows are read here.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown
from histoclip_lib.common.files import read_utf8

SEPARATORS = (",", ";", "\t")
MAX_BYTES = 2**27
REMEDY = "In a spreadsheet program save it as `CSV UTF-8`."
SEPARATOR_LINE = re.compile(r'"?sep=(?P<separator>.)"?')  # Excel's own first line


@dataclass(frozen=True)
class Table:
    """The cells of a table as text, without the spaces around them."""

    columns: dict[str, list[str]]  # by the name in the header, in the order of the file
    lines: list[int]  # of the file in which each row begins, counted from 1


def read_table(path: Path, key: str) -> Table:
    """Read a table with a header.

    The separator is a comma, semicolon or tab, whichever makes `key` a column, or what a first line `sep=;` names. A
    byte-order mark, any kind of line end, empty lines, empty cells after the last column and spaces around cells are
    accepted.

    Parameters
    ----------
    path : Path
        A UTF-8 file.
    key : str
        A column that the table must have.

    Raises
    ------
    HistoCLIPError
        For a file that is too large, not UTF-8 or not CSV, and a table without `key`; listing every column without a
        name or with a repeated one, and every line that has more or fewer cells than the header.
    """
    text = read_utf8(path, MAX_BYTES, REMEDY)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise HistoCLIPError(f"{path}, line {line}: a null character: this is not a text file. {REMEDY}")
    separator, skipped = _separator(text, key)
    rows = _rows(path, text, separator)[skipped:]
    if not rows:
        raise HistoCLIPError(f"{path} is empty. Its first line must name the columns, {key} among them.")
    header, body = rows[0][1], rows[1:]
    width = min(len(header), max(_filled(cells) for _, cells in rows))  # empty columns after the last do not count
    _check_header(path, header[:width], key)
    ragged = [
        f"line {line}: {len(cells)} cells" for line, cells in body if len(cells) < width or _filled(cells) > width
    ]
    if ragged:
        raise HistoCLIPError(
            f"{path}: the header has {width} columns, {len(ragged)} lines have more or fewer. Put a cell with "
            f"{separator!r} in it in double quotes:\n{bullet_list(ragged)}"
        )
    columns = {name: [cells[place] for _, cells in body] for place, name in enumerate(header[:width])}
    return Table(columns, [line for line, _ in body])


def _filled(cells: list[str]) -> int:
    """Return the number of cells up to the last that is not empty."""
    return next((place for place in range(len(cells), 0, -1) if cells[place - 1]), 0)


def _separator(text: str, key: str) -> tuple[str, int]:
    """Return the separator, and how many lines come before the header."""
    first = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0].strip()
    if match := SEPARATOR_LINE.fullmatch(first):
        return match["separator"], 1
    for separator in SEPARATORS:
        if key in [cell.strip().strip('"') for cell in first.split(separator)]:
            return separator, 0
    return ",", 0


def _rows(path: Path, text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Return the line number and the cells of each row that is not empty."""
    rows, start = [], 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((start, cells))
            start = reader.line_num + 1
    except (csv.Error, TypeError, ValueError) as error:  # the latter two: a separator that csv does not take
        raise HistoCLIPError(
            f"{path}, line {start}: is not CSV ({error}). Double each quote within a cell, and put the cell in double "
            "quotes."
        ) from error
    return rows


def _check_header(path: Path, header: list[str], key: str) -> None:
    if key not in header:
        alike = [name for name in header if name.casefold() == key]
        hint = f"Write {key!r} for {alike[0]!r}." if alike else f"One of them must be {key!r}."
        raise HistoCLIPError(f"{path} has the columns {shown(header, 300)}. {hint}")
    problems = [f"column {place} has no name" for place, name in enumerate(header, 1) if not name]
    problems += [f"{name!r} appears {n} times" for name, n in Counter(header).items() if name and n > 1]
    if problems:
        raise HistoCLIPError(f"{path}: each column needs a name of its own, but:\n{bullet_list(problems)}")
