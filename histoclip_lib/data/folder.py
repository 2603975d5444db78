"""The folder format: `labels.csv` beside the images, for anyone's own data."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from histoclip_lib.common.csv_tables import Table, read_table
from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.images import ImageFiles
from histoclip_lib.data.registry import LEAST_MPP, MOST_MPP, dataset

RESERVED_COLUMNS = ("file", "group", "split", "mask", "mpp")
LABELS = {"": np.nan, "0": 0, "0.0": 0, "false": 0, "no": 0, "1": 1, "1.0": 1, "true": 1, "yes": 1}  # in any case
META = "meta_"  # columns that begin so say what else is known of a patch
MAX_NAME = 255  # characters of a class or group: tables give every row the width of the longest
MAX_CLASSES = 254  # a mask stores them in 8 bits, beside 0 for none
FORMAT = (
    "labels.csv needs a column `file` and one 0/1 column for each class, empty where not known; `group` (patient or "
    "source image), `split` (train or val), `mask`, `mpp` and `meta_*` are optional."
)


@dataset(
    "folder",
    title="Your own data",
    licence="Known to whoever made the folder.",
    about=(
        "**Your own data**, read from `labels.csv` in the folder format. Its origin and terms are known to whoever "
        "made the folder."
    ),
    present="A class is present where its column in `labels.csv` says so.",
)
def load(data_dir: str | Path) -> PatchDataset:
    """Load a data set in the folder format.

    Parameters
    ----------
    data_dir : str or Path
        Folder with `labels.csv`; the paths in it are relative to this folder. `csv_tables.read_table` says what a table
        may look like; a label may also be written as 1.0, true or yes, 0.0, false or no, in any case. An empty cell is
        a label that is not known.

    Returns
    -------
    PatchDataset
        With groups, official parts, masks and metadata (`meta_site` as `site`) where the table has them.

    Raises
    ------
    HistoCLIPError
        For a missing folder or table and a table that `read_table` cannot read; for no class columns; listing every
        column whose name differs from `file`, `group`, `split` or `mask` in case only, every invalid label, every file
        that is absent, not a regular file, outside the folder (also by a symbolic link) or listed twice, and every
        missing mask.
    """
    root = Path(data_dir)
    table_path = root / "labels.csv"
    if not table_path.is_file():
        raise HistoCLIPError(f"{table_path} was not found. Set data_dir to the folder that holds it. {FORMAT}")
    try:
        table = read_table(table_path, "file")
    except HistoCLIPError as error:
        raise HistoCLIPError(f"{error}\n{FORMAT}") from error
    if not table.lines:
        raise HistoCLIPError(f"{table_path} has no rows. {FORMAT}")
    classes = _classes(table, table_path)

    image_paths, real_paths = _paths_inside(root, table, "file", table_path)
    _refuse_twice(table, real_paths, table_path)  # a.png and ./a.png are the same file
    mask_paths = _paths_inside(root, table, "mask", table_path)[0] if "mask" in table.columns else []
    mask_values = np.full(256, 255, dtype=np.uint8)
    mask_values[: len(classes) + 1] = np.arange(len(classes) + 1)
    return PatchDataset(
        name="folder",
        classes=classes,
        files=table.columns["file"],
        labels=_labels(table, classes, table_path),
        source=ImageFiles(image_paths, mask_paths, mask_values),
        groups=_column(table, "group", table_path),
        parts=_column(table, "split", table_path, allowed=("train", "val")),
        has_masks=bool(mask_paths),
        patch_mpp=_mpp(table, table_path),
        meta={
            name.removeprefix(META): np.array([cell[:MAX_NAME] for cell in cells], dtype=str)
            for name, cells in table.columns.items()
            if name.startswith(META)
        },
    )


def _mpp(table: Table, table_path: Path) -> np.ndarray | None:
    """Return the micrometres per pixel of each patch, NaN where the cell is empty; None without such a column."""
    if "mpp" not in table.columns:
        return None
    values, offenders = [], []
    for line, cell in zip(table.lines, table.columns["mpp"], strict=True):
        try:
            value = float(cell) if cell.strip() else np.nan
        except ValueError:
            value = 0.0
        values.append(value)
        if not (np.isnan(value) or LEAST_MPP <= value <= MOST_MPP) or cell.strip().casefold() == "nan":
            offenders.append(f"line {line}: {shown(cell)}")
    if offenders:
        raise HistoCLIPError(
            f"{table_path}, column mpp: expected micrometres per pixel from {LEAST_MPP:g} to {MOST_MPP:g}, or nothing "
            f"where they are not known; found:\n{bullet_list(offenders)}"
        )
    return None if np.isnan(values).all() else np.array(values)


def _classes(table: Table, table_path: Path) -> list[str]:
    """Return the columns left over, refusing those that were meant to be others."""
    others = {*RESERVED_COLUMNS, *(column for column in table.columns if column.startswith(META))}
    classes = [column for column in table.columns if column not in others]
    alike = [f"write {name.casefold()!r} for {name!r}" for name in classes if name.casefold() in RESERVED_COLUMNS]
    if alike:
        raise HistoCLIPError(f"{table_path}: names of reserved columns are lower case:\n{bullet_list(alike)}")
    if not classes:
        raise HistoCLIPError(f"{table_path} has no class column. {FORMAT}")
    if long := [shown(name) for name in classes if len(name) > MAX_NAME]:
        raise HistoCLIPError(
            f"{table_path}: a class has at most {MAX_NAME} characters. Shorten (`prompts_file` takes the words):\n"
            + bullet_list(long)
        )
    if len(classes) > MAX_CLASSES:
        raise HistoCLIPError(
            f"{table_path}: {len(classes)} class columns, more than {MAX_CLASSES}. All columns but "
            f"{', '.join(RESERVED_COLUMNS)} are class columns: remove the others."
        )
    return classes


def _refuse_twice(table: Table, real_paths: list[str], table_path: Path) -> None:
    """Refuse a file that several lines name: it could be on both sides of a split."""
    lines: dict[str, list[int]] = {}
    for line, path in zip(table.lines, real_paths, strict=True):
        lines.setdefault(path, []).append(line)
    offenders = [
        f"{os.path.basename(path)}: lines {', '.join(map(str, at))}" for path, at in lines.items() if len(at) > 1
    ]
    if offenders:
        raise HistoCLIPError(f"{table_path}: each file may be listed once, but not:\n{bullet_list(offenders)}")


def _labels(table: Table, classes: list[str], table_path: Path) -> np.ndarray:
    """Return the labels, shape (B, N), uint8, or float32 where some are not known.

    A column without a single label is named once, not on every line.
    """
    columns, offenders = [], []
    for name in classes:
        cells = table.columns[name]
        values = [LABELS.get(cell.casefold()) for cell in cells]
        wrong = [index for index, value in enumerate(values) if value is None]
        if not any(cells):
            offenders.append(f"column {name}: all cells are empty; remove the column")
        elif len(wrong) == len(cells) > 1:
            offenders.append(f"column {name}: no cell is 0 or 1, the first is {shown(cells[0])}; remove the column")
        else:
            offenders += [f"line {table.lines[index]}, column {name}: {shown(cells[index])}" for index in wrong]
        columns.append(values)
    if offenders:
        raise HistoCLIPError(
            f"{table_path}: class columns hold 0 or 1, and all columns but {', '.join(RESERVED_COLUMNS)} are class "
            "columns. Where a label is not known, leave its cell empty. Not labels:\n" + bullet_list(offenders)
        )
    labels = np.array(columns, dtype=np.float32).T.copy()
    return labels if np.isnan(labels).any() else labels.astype(np.uint8)


def _column(table: Table, column: str, table_path: Path, allowed: tuple[str, ...] | None = None) -> np.ndarray | None:
    """Return an optional text column, refusing empty cells and values that are not `allowed`."""
    if column not in table.columns:
        return None
    cells = table.columns[column]
    offenders = [
        f"line {line}: {shown(cell)}"
        for line, cell in zip(table.lines, cells, strict=True)
        if (cell not in allowed if allowed else not 0 < len(cell) <= MAX_NAME)
    ]
    if offenders:
        expected = " or ".join(allowed or (f"a name of at most {MAX_NAME} characters on every line", "no such column"))
        raise HistoCLIPError(f"{table_path}, column {column}: expected {expected}, found:\n{bullet_list(offenders)}")
    return np.array(cells, dtype=str)


def _paths_inside(root: Path, table: Table, column: str, table_path: Path) -> tuple[list[Path], list[str]]:
    """Return the files that a column names, as they are written and as they really are.

    Refuses what is absent, not a regular file, or outside `root`, be it through `..` or a link.
    """
    inside = os.path.join(os.path.realpath(root), "")
    folders: dict[str, str] = {}  # as written: as it really is; files share their folders
    paths, real_paths, offenders = [], [], []
    for line, name in zip(table.lines, table.columns[column], strict=True):
        path = root / name
        real, problem = "", "is empty"
        if name:
            try:
                real, problem = _real_file(path, inside, folders)
            except (OSError, ValueError) as error:  # a name too long for the file system, or with a null character
                problem = f"is not a file name ({error})"
            if problem and "\\" in name:
                problem += "; folders are separated by /, not by \\"
        if problem:
            offenders.append(f"line {line}: {shown(name, 300)} {problem}")
        paths.append(path)
        real_paths.append(real)
    if offenders:
        raise HistoCLIPError(
            f"{table_path}, column {column}: {len(offenders)} files cannot be used. Correct the table, or put them in "
            f"{root}:\n{bullet_list(offenders)}"
        )
    return paths, real_paths


def _real_file(path: Path, inside: str, folders: dict[str, str]) -> tuple[str, str]:
    """Return where a file really is, and what is wrong with it (nothing: an empty text)."""
    parent, name = os.path.split(path)
    if parent not in folders:
        folders[parent] = os.path.realpath(parent)
    real = os.path.join(folders[parent], name)
    if name in ("", ".", "..") or os.path.islink(real):
        real = os.path.realpath(real)
    if not real.startswith(inside):
        return real, "is outside the folder"
    try:
        facts = os.stat(real)
    except FileNotFoundError:
        return real, "does not exist"
    return real, "" if stat.S_ISREG(facts.st_mode) else "is not a regular file"
