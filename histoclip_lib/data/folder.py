"""The folder format: `labels.csv` beside the images, for anyone's own data."""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np

from histoclip_lib.common.csv_tables import Table, read_table
from histoclip_lib.common.errors import HistoCLIPError, bullet_list, ranges, shown
from histoclip_lib.data import links
from histoclip_lib.data.base import Note, PatchDataset
from histoclip_lib.data.images import ImageFiles
from histoclip_lib.data.registry import LEAST_MPP, MOST_MPP, dataset
from histoclip_lib.data.splits import PARTS, groups_by_pattern, part_of

RESERVED_COLUMNS = ("file", "group", "split", "mask", "mpp")
FILE_ALIASES = ("filename", "filepath", "image", "imagename", "imagefile", "imagepath", "path")
LABELS = {"": np.nan, "0": 0, "0.0": 0, "false": 0, "no": 0, "1": 1, "1.0": 1, "true": 1, "yes": 1}  # in any case
META = "meta_"  # columns that begin so say what else is known of a patch
MAX_NAME = 255  # characters of a class or group: tables give every row the width of the longest
MAX_CLASSES = 254  # a mask stores them in 8 bits, beside 0 for none
ABSENT = "does not exist"
TABLES = (".csv", ".tsv", ".tab", ".xlsx")  # what people have instead of labels.csv
# The part of a group's name that identifies a patient: a TCGA barcode, or a number however it is written. The keys are
# for `group_pattern`; the second does not change names that are not numbers.
PATIENTS = {
    r"TCGA-\w{2}-\w{4}": re.compile(r"(TCGA-\w{2}-\w{4})\b.*"),
    r"^0*(.+?)(?:\.0*)?$": re.compile(r"0*([0-9]+)(?:\.0*)?"),
}
FORMAT = (
    "labels.csv needs a column `file` and one 0/1 column for each class, empty where not known; `group` (patient or "
    "source image), `split` (train, val or test), `mask`, `mpp` and `meta_*` are optional. `histoclip import` reads "
    "labels of other forms."
)


@dataset(
    "folder",
    title="Your own data",
    licence="Known to whoever made the folder.",
    about=(
        "**Your own data**, read from `labels.csv` in the folder format. Its origin and terms are known to whoever "
        "made the folder."
    ),
    present="A class is present if its column in `labels.csv` is 1.",
    options=("classes", "ignore", "group_pattern", "follow_links"),
)
def load(
    data_dir: str | Path,
    classes: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    group_pattern: str = "",
    follow_links: bool = False,
) -> PatchDataset:
    """Load a data set in the folder format.

    Parameters
    ----------
    data_dir : str or Path
        Folder with `labels.csv`; the paths in it are relative to this folder. `csv_tables.read_table` says what a table
        may look like; a label may also be written as 1.0, true or yes, 0.0, false or no, in any case. An empty cell is
        a label that is not known, or a patch without a mask.
    classes, ignore : tuple of str
        Columns that are the classes, in this order, and columns to leave out. Masks number the columns of the table
        that hold labels, so that those left out count too.
    group_pattern : str
        Regular expression that finds the group in the column `group`, or in `file` where there is none.
    follow_links : bool
        Whether links may lead out of the folder.

    Returns
    -------
    PatchDataset
        With groups, official parts, masks and metadata (`meta_site` as `site`) where the table has them; its notes say
        what was understood though it is written otherwise, and which groups may be one patient.

    Raises
    ------
    HistoCLIPError
        For a missing folder or table and a table that `read_table` cannot read; for no class columns; listing every
        column whose name differs from `file`, `group`, `split` or `mask` in case only or is that of a part, every
        column with invalid labels, every file that is absent, not a regular file, outside the folder or listed twice.
    """
    root = Path(data_dir)
    table_path = root / "labels.csv"
    if not table_path.is_file():
        raise HistoCLIPError(f"{table_path} was not found. {_instead(root)} {FORMAT}")
    try:
        table = read_table(table_path, "file", FILE_ALIASES)
    except HistoCLIPError as error:
        raise HistoCLIPError(f"{error}\n{FORMAT}") from error
    if not table.lines:
        raise HistoCLIPError(f"{table_path} has no rows. {FORMAT}")
    for option, names, barred in (("ignore", ignore, ("file",)), ("classes", classes, (*RESERVED_COLUMNS, *ignore))):
        usable = [name for name in table.columns if name not in barred]
        if wrong := [name for name in names if name not in usable]:
            raise HistoCLIPError(f"{option}: {shown(wrong)} is not a column of {table.path}: {shown(usable, 300)}.")
    all_columns = table.columns
    table = replace(table, columns={name: cells for name, cells in all_columns.items() if name not in ignore})
    classes = _classes(table, classes)
    labels = _labels(table, classes, ignore)

    image_paths, real_paths, respelled = _paths_inside(root, table, "file", follow_links)
    _refuse_twice(table, real_paths)  # a.png and ./a.png are the same file
    mask_paths = []
    if "mask" in table.columns:
        mask_paths, _, more = _paths_inside(root, table, "mask", follow_links)
        respelled += more
    mask_values, left_out = _mask_values(all_columns, classes)
    parts, renamed = _parts(table)
    groups = _groups(table, group_pattern)
    return PatchDataset(
        name="folder",
        classes=classes,
        files=table.columns["file"],
        labels=labels,
        source=ImageFiles(image_paths, mask_paths, mask_values),
        groups=groups,
        parts=parts,
        has_masks=any(mask_paths),
        patch_mpp=_mpp(table),
        meta={
            name.removeprefix(META): np.array([cell[:MAX_NAME] for cell in cells], dtype=str)
            for name, cells in table.columns.items()
            if name.startswith(META)
        },
        notes=(
            *(Note(note, 1) for note in table.notes),
            *Note.of("files found under another spelling", respelled),
            *Note.of("parts written otherwise", renamed),
            *Note.of("columns left out that count in the numbers of masks", left_out if any(mask_paths) else []),
            *_alike(groups),
        ),
        remedies={
            "groups": "Add a column `group` to labels.csv, or find the patient in file names with group_pattern.",
            "parts": "Add a column `split` (train, val or test) to labels.csv.",
        },
    )


def _instead(root: Path) -> str:
    """Say what may be done where there is no labels.csv."""
    found = sorted(path.name for path in root.iterdir() if path.suffix.lower() in TABLES) if root.is_dir() else []
    if not found:
        return "Set data_dir to the folder that holds it."
    return (
        f"There is {', '.join(found[:3])}: `histoclip import {root / found[0]} --images {root} --out DIR` makes a "
        "folder with labels.csv of it, for data_dir."
    )


def _mpp(table: Table) -> np.ndarray | None:
    """Return the micrometres per pixel of each patch, NaN where the cell is empty; None without such a column."""
    if "mpp" not in table.columns:
        return None
    values, offenders = [], []
    for line, cell in zip(table.lines, table.columns["mpp"], strict=True):
        try:
            value = float(cell or "nan")
        except ValueError:
            value = 0.0
        values.append(value)
        if cell and not LEAST_MPP <= value <= MOST_MPP:
            offenders.append(f"line {line}: {shown(cell)}")
    if offenders:
        raise HistoCLIPError(
            f"{table.path}, column mpp: expected micrometres per pixel from {LEAST_MPP:g} to {MOST_MPP:g}, or nothing "
            f"where they are not known; found:\n{bullet_list(offenders)}"
        )
    return None if np.isnan(values).all() else np.array(values)


def _classes(table: Table, wanted: tuple[str, ...]) -> list[str]:
    """Return the columns wanted, or all left over, refusing those that were meant to be others."""
    others = {*RESERVED_COLUMNS, *(column for column in table.columns if column.startswith(META))}
    classes = list(dict.fromkeys(wanted)) or [column for column in table.columns if column not in others]
    alike = [f"write {name.casefold()!r} for {name!r}" for name in classes if name.casefold() in RESERVED_COLUMNS]
    if alike:
        raise HistoCLIPError(f"{table.path}: names of reserved columns are lower case:\n{bullet_list(alike)}")
    if parts := [name for name in classes if name.casefold() in PARTS]:
        raise HistoCLIPError(
            f"{table.path}: columns are named like parts of a split, not like classes: {', '.join(parts)}. "
            f"`histoclip import {table.path} --split {table.path} --out DIR` reads them as the split; or "
            f"write one column `split` instead, or {_line('ignore', parts)} in the parameter file."
        )
    if not classes:
        raise HistoCLIPError(f"{table.path} has no class column. {FORMAT}")
    if long := [shown(name) for name in classes if len(name) > MAX_NAME]:
        raise HistoCLIPError(
            f"{table.path}: a class has at most {MAX_NAME} characters. Shorten (`prompts_file` takes the words):\n"
            + bullet_list(long)
        )
    if len(classes) > MAX_CLASSES:
        raise HistoCLIPError(
            f"{table.path}: {len(classes)} class columns, more than {MAX_CLASSES}. All columns but "
            f"{', '.join(RESERVED_COLUMNS)} are class columns: name those that are with `classes: [...]`."
        )
    return classes


def is_reserved(name: str) -> bool:
    """Whether a column of this name cannot be a class: it would be read as something else."""
    return name.casefold() in (*RESERVED_COLUMNS, *PARTS) or name.startswith(META)


def _line(parameter: str, names: list[str] | tuple[str, ...]) -> str:
    """Return a line of a parameter file that lists names."""
    return f"`{parameter}: {json.dumps(list(names), ensure_ascii=False)}`"


def _mask_values(columns: dict[str, list[str]], classes: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return what each value of a mask means, and the columns that count though they are left out.

    Value k is the k-th column with labels, and none if that column is left out.

    A mask of a single class may also be drawn with 255.
    """
    others = [name for name in columns if name in RESERVED_COLUMNS or name.startswith(META)]
    numbered = [
        name
        for name, cells in columns.items()
        if name in classes or (name not in others and any(cells) and all(cell.casefold() in LABELS for cell in cells))
    ]
    values = np.full(256, 255, dtype=np.uint8)
    meant = [0, *(classes.index(name) + 1 if name in classes else 0 for name in numbered)]
    values[: len(meant)] = meant[:255]
    if len(numbered) == 1:
        values[255] = 1
    return values, [name for name in numbered if name not in classes]


def _refuse_twice(table: Table, real_paths: list[str]) -> None:
    """Refuse a file that several lines name: it could be on both sides of a split."""
    lines: dict[str, list[int]] = {}
    for line, path in zip(table.lines, real_paths, strict=True):
        lines.setdefault(path, []).append(line)
    offenders = [f"{os.path.basename(path)}: lines {ranges(at)}" for path, at in lines.items() if len(at) > 1]
    if offenders:
        raise HistoCLIPError(f"{table.path}: each file may be listed once, but not:\n{bullet_list(offenders)}")


def _labels(table: Table, classes: list[str], ignored: tuple[str, ...]) -> np.ndarray:
    """Return the labels, shape (B, N), uint8, or float32 where some are not known; refuse columns, not cells."""
    columns, offenders, no_classes = [], [], []
    for name in classes:
        cells = table.columns[name]
        values = [LABELS.get(cell.casefold()) for cell in cells]
        wrong = [index for index, value in enumerate(values) if value is None]
        if wrong:
            offenders.append(f"column {name}: {len(wrong):,} of {len(cells):,} cells; {_by_value(table, name, wrong)}")
        elif not any(cells):
            offenders.append(f"column {name}: all cells are empty")
        if not any(cells) or 2 * len(wrong) > sum(map(bool, cells)):
            no_classes.append(name)
        columns.append(values)
    if offenders:
        remedy = "Correct the cells."
        if no_classes:
            remedy = f"If they are not classes, add {_line('ignore', (*ignored, *no_classes))} to the parameter file."
        raise HistoCLIPError(
            f"{table.path}: class columns hold 0 or 1, and nothing where a label is not known; all columns but "
            f"{', '.join(RESERVED_COLUMNS)} and {META}* are class columns. {remedy} Not labels:\n"
            + bullet_list(offenders)
        )
    labels = np.array(columns, dtype=np.float32).T.copy()
    return labels if np.isnan(labels).any() else labels.astype(np.uint8)


def _by_value(table: Table, column: str, indices: list[int]) -> str:
    """Return the first values among some cells of a column, each with the lines on which it stands."""
    lines: dict[str, list[int]] = {}
    for index in indices:
        lines.setdefault(table.columns[column][index], []).append(table.lines[index])
    listed = [f"{shown(value)} on line {ranges(at, 5)}" for value, at in list(lines.items())[:3]]
    return ", ".join(listed) + (f", and {len(lines) - 3:,} other values" if len(lines) > 3 else "")


def _parts(table: Table) -> tuple[np.ndarray | None, list[str]]:
    """Return the official parts in our words, None without such a column, and which were written otherwise."""
    if "split" not in table.columns:
        return None, []
    cells = table.columns["split"]
    parts = [part_of(cell) for cell in cells]
    if wrong := [index for index, part in enumerate(parts) if not part]:
        raise HistoCLIPError(
            f"{table.path}, column split: expected train, val or test (validation, testing, ...), found "
            f"{_by_value(table, 'split', wrong)}."
        )
    spelled = dict(zip(cells, parts, strict=True))
    return np.array(parts), [f"{cell!r} is {part}" for cell, part in spelled.items() if cell != part]


def _groups(table: Table, pattern: str) -> np.ndarray | None:
    """Return the groups as written, or as `pattern` finds them."""
    if pattern:
        return np.array(groups_by_pattern(pattern, table.columns.get("group", table.columns["file"]), "group_pattern"))
    if "group" not in table.columns:
        return None
    cells = table.columns["group"]
    if wrong := [index for index, cell in enumerate(cells) if not 0 < len(cell) <= MAX_NAME]:
        raise HistoCLIPError(
            f"{table.path}, column group: expected a name of at most {MAX_NAME} characters on every line, or no such "
            f"column; found {_by_value(table, 'group', wrong)}."
        )
    return np.array(cells, dtype=str)


def _alike(groups: np.ndarray | None) -> tuple[Note, ...]:
    """Note the groups that may be one patient: two slides of one TCGA barcode, or one number written in two ways."""
    names = [] if groups is None else np.unique(groups).tolist()
    notes = []
    for pattern, form in PATIENTS.items():
        patients: dict[str, list[str]] = {}
        for name in names:
            if match := form.fullmatch(name):
                patients.setdefault(match[1], []).append(name)
        several = [" and ".join(alike) for alike in patients.values() if len(alike) > 1]
        what = f"groups that may be one patient but are kept apart; `group_pattern: {pattern}` makes them one"
        notes += Note.of(what, several)
    return tuple(notes)


def _paths_inside(
    root: Path, table: Table, column: str, follow_links: bool
) -> tuple[list[Path | None], list[str], list[str]]:
    """Return the files that a column names as written, as they really are, and those found under another spelling.

    Refuses what is absent, not a regular file, or outside `root`, be it through `..` or, where links are not followed,
    through one. A mask may be missing: an empty cell gives None.
    """
    inside = "" if follow_links else links.inside_of(root)
    folders: dict[str, str] = {}  # as written: as it really is; files share their folders
    spellings: dict[str, list[str]] = {}
    paths, real_paths, respelled, offenders = [], [], [], []
    for line, name in zip(table.lines, table.columns[column], strict=True):
        path, real, problem = root / name if name else None, "", "" if column == "mask" else "is empty"
        if name:
            try:
                real, problem = _real_file(root, name, inside, folders)
                if problem == ABSENT:
                    spellings = spellings or _spellings(root)
                    found = spellings.get(_spelling(name), [])
                    if len(found) == 1:
                        path, (real, problem) = root / found[0], _real_file(root, found[0], inside, folders)
                        respelled += [f"{name} is {found[0]}"]
                    elif found:
                        problem += f"; is it {' or '.join(found)}?"
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
            f"{table.path}, column {column}: {len(offenders)} files cannot be used. Correct the table, or put them in "
            f"{root}:\n{bullet_list(offenders)}"
        )
    return paths, real_paths, respelled


def _real_file(root: Path, name: str, inside: str, folders: dict[str, str]) -> tuple[str, str]:
    """Return where a file really is, and what is wrong with it (nothing: an empty text)."""
    real = links.real_path(root / name, folders)
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == "..":
        return real, links.OUTSIDE
    if not real.startswith(inside):
        return real, "is not a regular file" if os.path.normpath(name) == "." else f"{links.OUTSIDE}: {links.REMEDY}"
    try:
        facts = os.stat(real)
    except FileNotFoundError:
        return real, ABSENT
    return real, "" if stat.S_ISREG(facts.st_mode) else "is not a regular file"


def _spelling(name: str) -> str:
    """Return what names have in common that differ in case, separators or the composition of accents only."""
    return unicodedata.normalize("NFC", os.path.normpath(name.replace("\\", "/")).casefold())


def _spellings(root: Path) -> dict[str, list[str]]:
    """Return the files in a folder, relative to it, by `_spelling`; links are followed, each folder once."""
    found: dict[str, list[str]] = {}
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [] if (real := os.path.realpath(folder)) in seen else sorted(subfolders)
        for name in [] if real in seen else names:
            file = os.path.relpath(os.path.join(folder, name), root)
            found.setdefault(_spelling(file), []).append(file)
        seen.add(real)
    return found
