"""Tables whose form is not known before: separator, header and the roles of columns are found by content."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from histoclip_lib.common.csv_tables import MAX_BYTES, REGULAR, SAMPLE, SEPARATOR_LINE, read_rows
from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown
from histoclip_lib.common.files import read_utf8
from histoclip_lib.data.histoseg import IMAGE_SUFFIXES
from histoclip_lib.data.splits import part_of

SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".xlsx")
SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar", " ": "blank"}
MOSTLY = 0.9  # share of cells that makes a column one of file names
TRUE, FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)

# Names of columns, lower case and without anything but letters and digits; those of files from the plainest on.
THING = "(file|image|img|tile|patch)"
FILES = tuple(re.compile(form) for form in (f"file|(.*{THING})?(name|path)", THING, f".*{THING}(id|index|file)"))
CLASS = re.compile(
    r"class|classname|label|labels|name|.*(categor(y|ies)|classification|labels?|diagnos[ie]s|findings?)"
)
GROUP = ("group", "patient", "patientid", "case", "caseid", "subject", "subjectid", "slide", "slideid", "wsi", "wsiid")
SPLIT = re.compile(r"split|set|subset|part|partition|fold|group|phase|dataset")


@dataclass(frozen=True)
class Cells:
    """The cells of a table as text, without spaces around them.

    Attributes
    ----------
    columns : dict of str to list of str
        By name, in order; a column without a name is called `column 1`, `column 2`, ...
    lines : list of int
        The line, or the row of a sheet, in which each row begins, counted from 1.
    has_header : bool
        Whether the names are the table's own.
    separator : str
        In words; empty for a spreadsheet.
    """

    columns: dict[str, list[str]]
    lines: list[int]
    has_header: bool
    separator: str

    def about(self) -> str:
        """Say how the table was read."""
        kind = f"separated by {self.separator}" if self.separator else "the first sheet"
        header = "" if self.has_header else ", no header"
        return f"table: {len(self.lines):,} rows, {len(self.columns)} columns, {kind}{header}"

    def file_column(self, wanted: str = "") -> str:
        """Return the column of file names: the one wanted, one called like it, or one that holds names of images.

        Raises
        ------
        HistoCLIPError
            If there is none, or several that could be meant.
        """
        if wanted:
            return self.require(wanted, "--file-column")
        images = [name for name, cells in self.columns.items() if _mostly_images(cells)]
        candidates = images or list(self.columns)
        called = ([name for name in candidates if form.fullmatch(plain(name))] for form in FILES)
        found = next(filter(None, called), images)
        if len(found) != 1:
            problem = f"several columns may hold the files: {', '.join(found)}" if found else "no column holds files"
            raise HistoCLIPError(f"{problem}. Name it with --file-column. Columns: {shown(list(self.columns), 300)}")
        return found[0]

    def group_column(self, wanted: str = "") -> str:
        """Return the column of groups, or an empty string; a column of parts is not one."""
        if wanted:
            return self.require(wanted, "--group-column")
        names = {plain(name): name for name in self.columns if name != self.split_column()}
        return next((names[name] for name in GROUP if name in names), "")

    def split_column(self) -> str:
        """Return the column whose every cell is the name of a part, or an empty string."""
        named = [name for name in self.columns if SPLIT.fullmatch(plain(name))]
        return next((name for name in named if any(self.columns[name]) and all(map(part_of, self.columns[name]))), "")

    def require(self, name: str, option: str) -> str:
        """Return a name that a user gave, or raise HistoCLIPError where no column has it."""
        if name not in self.columns:
            raise HistoCLIPError(f"{option}: there is no column {name!r}. Columns: {shown(list(self.columns), 300)}")
        return name


def plain(name: str) -> str:
    """Return the letters and digits of a name, lower case."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def is_image(cell: str) -> bool:
    """Whether a cell holds the name of an image."""
    return cell.lower().endswith(IMAGE_SUFFIXES)


def is_number(cell: str) -> bool:
    """Whether a cell holds a number with a decimal point."""
    return NUMBER.fullmatch(cell) is not None


def _mostly_images(cells: list[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return bool(filled) and sum(map(is_image, filled)) >= MOSTLY * len(filled)


def read_cells(path: Path) -> Cells:
    """Read a table in text, or the first sheet of an Excel file.

    The separator is the first of tab, comma, semicolon, bar and blank that gives the first line and 95% of the others
    the same number of cells, more than one. Lines before it that begin with `#`, and Excel's `sep=;`, are skipped. The
    first line is a header unless one of its cells is a number or the name of an image; where one of them is called like
    a column of files it is a header in any case.

    Raises
    ------
    HistoCLIPError
        If it cannot be read, a quote does not end, it has a single column or two of one name; listing every line with
        more cells than the first.
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise HistoCLIPError(f"{path} is not a table. Supported file types: {', '.join(SUFFIXES)}.")
    rows, separator = _sheet(path) if path.suffix.lower() == ".xlsx" else _text(path)
    if not rows:
        raise HistoCLIPError(f"{path}: has no cells.")
    first, width = rows[0][1], len(rows[0][1])
    has_header = any(form.fullmatch(plain(cell)) for form in FILES for cell in first) or not any(
        map(_is_content, first)
    )
    body = rows[has_header:]
    if ragged := [f"line {line}: {len(cells)} cells" for line, cells in body if any(cells[width:])]:
        raise HistoCLIPError(
            f"{path}: the first line has {width} cells, {len(ragged)} lines have more. Put a cell with the separator "
            f"in it in double quotes:\n{bullet_list(ragged)}"
        )
    names = [(cell if has_header else "") or f"column {place}" for place, cell in enumerate(first, 1)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise HistoCLIPError(f"{path}: column names must be unique; repeated: {shown(twice)}.")
    columns = {name: [cells[k] if k < len(cells) else "" for _, cells in body] for k, name in enumerate(names)}
    return Cells(columns, [line for line, _ in body], bool(has_header), separator)


def _is_content(cell: str) -> bool:
    return is_number(cell) or is_image(cell)


def _text(path: Path) -> tuple[list[tuple[int, list[str]]], str]:
    """Return the lines that are not empty, split where the separator is, and the separator in words."""
    lines = list(io.StringIO(read_utf8(path, MAX_BYTES), newline=""))  # splitlines knows more ends than csv does
    start = next((k for k, line in enumerate(lines) if _begins_table(line.strip())), len(lines))
    lines, first = lines[start:], start + 1
    for separator, words in SEPARATORS.items():
        widths = _widths(lines[:SAMPLE], separator)
        if widths and widths[0] > 1 and widths.count(widths[0]) >= REGULAR * len(widths):
            if separator != " ":
                return read_rows(path, "".join(lines), separator, first), words
            return [(k, line.split()) for k, line in enumerate(lines, first) if line.strip()], words
    raise HistoCLIPError(
        f"{path}: no separator gives its lines the same number of columns. The first is "
        f"{shown(''.join(lines[:1]).rstrip())}."
    )


def _begins_table(line: str) -> bool:
    return bool(line) and not line.startswith("#") and SEPARATOR_LINE.fullmatch(line) is None


def _widths(lines: list[str], separator: str) -> list[int]:
    """Return the number of cells of each line that is not empty; nothing where `csv` cannot read them."""
    rows = map(str.split, lines) if separator == " " else csv.reader(lines, delimiter=separator)
    try:
        return [len(cells) for cells in rows if any(map(str.strip, cells))]
    except csv.Error:  # a field of more than 131,072 characters
        return []


def _sheet(path: Path) -> tuple[list[tuple[int, list[str]]], str]:
    import pandas as pd

    try:
        sheet = pd.read_excel(path, header=None, dtype=object, keep_default_na=False, engine="openpyxl")
    except Exception as error:  # damaged archives and sheets raise some ten kinds; ImportError says what to install
        raise HistoCLIPError(f"{path}: cannot be read as an Excel file ({error}). Save it as CSV.") from error
    rows = [(line, [_as_text(value) for value in row]) for line, row in enumerate(sheet.itertuples(index=False), 1)]
    rows = [(line, cells) for line, cells in rows if any(cells)]
    width = max((k for _, cells in rows for k, cell in enumerate(cells, 1) if cell), default=0)
    return [(line, cells[:width]) for line, cells in rows], ""


def _as_text(value: object) -> str:
    if value is None or value != value:  # NaN: an empty cell
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
