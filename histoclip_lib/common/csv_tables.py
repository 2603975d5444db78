"""CSV tables as people and spreadsheets save them; errors name the lines.

pandas does not give the line on which a row begins, nor list all faulty lines at once, so the rows are read here.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from histoclip_lib.common.errors import HistoCLIPError, bullet_list, ranges, shown
from histoclip_lib.common.files import read_utf8

SEPARATORS = (",", ";", "\t", "|", " ")
SAMPLE, REGULAR = 1000, 0.95  # lines by which a separator is found, and the share with as many cells as the first
MAX_BYTES = 2**27
REMEDY = "In a spreadsheet program save it as `CSV UTF-8`."
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
SEPARATOR_LINE = re.compile(r'"?sep=(?P<separator>.)"?')  # Excel's own first line
VALUE = re.compile(r"[-+]?[0-9.]+|.*\.(png|jpe?g|tiff?|bmp|gif|webp|jp2)", re.IGNORECASE)  # in no header


@dataclass(frozen=True)
class Table:
    """The cells of a table as text, without the spaces around them."""

    path: Path
    columns: dict[str, list[str]]  # by the name in the header, in the order of the file
    lines: list[int]  # of the file in which each row begins, counted from 1
    notes: tuple[str, ...] = ()  # what was understood though it is written otherwise


def read_table(path: Path, key: str, aliases: tuple[str, ...] = ()) -> Table:
    """Read a table with a header.

    The separator is a comma, semicolon, tab or bar, whichever makes `key` a column; else one of these or blanks,
    whichever gives all lines the same number of cells; or what a first line `sep=;` names. Lines before the header that
    begin with `#`, a byte-order mark, any kind of line end, empty lines, empty cells after the last column and spaces
    around cells are accepted.

    Parameters
    ----------
    path : Path
        A UTF-8 file.
    key : str
        A column that the table must have.
    aliases : tuple of str
        What else it may be called, in lower case and without `_`, `-` and spaces; a note says so.

    Raises
    ------
    HistoCLIPError
        For a file that is too large, not UTF-8 or not CSV, and a table without `key` or with
        several that may be it; listing every column without a
        name or with a repeated one, and every line that has more or fewer cells than the header.
    """
    text = read_utf8(path, MAX_BYTES, REMEDY)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise HistoCLIPError(f"{path}, line {line}: a null character: this is not a text file. {REMEDY}")
    start, separator = _opening(text)
    separator = separator or _separator(text[start:], {key, *aliases})
    rows = read_rows(path, text[start:], separator, 1 + len(LINE.findall(text[:start])[:-1]))
    if not rows:
        raise HistoCLIPError(f"{path} is empty. Its first line must name the columns, {key} among them.")
    header, body = rows[0][1], rows[1:]
    width = min(len(header), max(_filled(cells) for _, cells in rows))  # empty columns after the last do not count
    header, notes = _with_key(path, header[:width], key, aliases)
    _check_header(path, header)
    ragged: dict[int, list[int]] = {}
    for line, cells in body:
        if len(cells) < width or _filled(cells) > width:
            ragged.setdefault(len(cells), []).append(line)
    if ragged:
        raise HistoCLIPError(
            f"{path}: the header has {width} columns, {sum(map(len, ragged.values())):,} lines have more or fewer. Put "
            f"a cell with {separator!r} in it in double quotes:\n"
            + bullet_list([f"{n} cells: line {ranges(lines)}" for n, lines in sorted(ragged.items())])
        )
    columns = {name: [cells[place] for _, cells in body] for place, name in enumerate(header)}
    return Table(path, columns, [line for line, _ in body], notes)


def _filled(cells: list[str]) -> int:
    """Return the number of cells up to the last that is not empty."""
    return next((place for place in range(len(cells), 0, -1) if cells[place - 1]), 0)


def plain(name: str) -> str:
    """Return a column's name in lower case without `_`, `-` and spaces."""
    return re.sub(r"[\s_-]", "", name.casefold())


def _opening(text: str) -> tuple[int, str]:
    """Return where the header begins, past empty lines and comments, and the separator that a first line names."""
    separator = ""
    for match in LINE.finditer(text):
        line = match[0].strip()
        if named := SEPARATOR_LINE.fullmatch(line):
            separator = named["separator"]
        elif line and not line.startswith("#"):
            return match.start(), separator
    return len(text), separator


def _separator(text: str, names: set[str]) -> str:
    """Return the separator that makes one of `names` a column, else one by which lines have equally many cells."""
    lines = [match[0] for match in itertools.islice(LINE.finditer(text), SAMPLE) if match[0].strip()] or [""]
    for separator in SEPARATORS[:-1]:  # a blank would find `file` in `file name`
        if names & {plain(cell.strip().strip('"')) for cell in lines[0].split(separator)}:
            return separator
    for separator in SEPARATORS:
        widths = [len(line.split(None if separator == " " else separator)) for line in lines]
        if widths[0] > 1 and widths.count(widths[0]) >= REGULAR * len(widths):
            return separator
    return ","


def read_rows(path: Path, text: str, separator: str, start: int) -> list[tuple[int, list[str]]]:
    """Return the line number and the cells of each row that is not empty; `start` is the number of the first line.

    Raises
    ------
    HistoCLIPError
        Naming the line, for a quote that does not end or is not doubled.
    """
    rows, before = [], start
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for row in reader:
            cells = [cell.strip() for cell in row if cell or separator != " "]
            if any(cells):
                rows.append((start, cells))
            start = reader.line_num + before
    except (csv.Error, TypeError, ValueError) as error:  # the latter two: a separator that csv does not take
        raise HistoCLIPError(
            f"{path}, line {start}: is not CSV ({error}). Double each quote within a cell, and put the cell in double "
            "quotes."
        ) from error
    return rows


def _with_key(path: Path, header: list[str], key: str, aliases: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """Return a header in which the column `key` is called so, and a note where it was called otherwise."""
    if key in header:
        return header, ()
    found = [name for name in header if aliases and plain(name) in (key, *aliases)]
    if len(found) == 1:
        return [key if name == found[0] else name for name in header], (f"column {found[0]!r} is read as {key!r}",)
    if found:
        hint = f"Which of {', '.join(map(repr, found))} is it? Call that one {key!r}."
    elif any(map(VALUE.fullmatch, header)):
        hint = f"These look like values: put a line before them that names the columns, {key!r} among them."
    elif alike := [name for name in header if name.casefold() == key]:
        hint = f"Write {key!r} for {alike[0]!r}."
    else:
        hint = f"One of them must be {key!r}."
    raise HistoCLIPError(f"{path} has the columns {shown(header, 300)}. {hint}")


def _check_header(path: Path, header: list[str]) -> None:
    problems = [f"column {place} has no name" for place, name in enumerate(header, 1) if not name]
    problems += [f"{name!r} appears {n} times" for name, n in Counter(header).items() if name and n > 1]
    if problems:
        raise HistoCLIPError(f"{path}: column names must be unique, but:\n{bullet_list(problems)}")
