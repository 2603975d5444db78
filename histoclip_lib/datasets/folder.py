"""The folder format: `labels.csv` beside the images, for anyone's own data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from histoclip_lib.datasets.base import ImageFiles, PatchDataset
from histoclip_lib.errors import HistoCLIPError, bullet_list

RESERVED_COLUMNS = ("file", "group", "split", "mask")
FORMAT = (
    "labels.csv needs a column `file` and one 0/1 column for each class; `group` (patient or source image), "
    "`split` (train or val) and `mask` are optional."
)


def load(data_dir: str | Path) -> PatchDataset:
    """Load a data set in the folder format.

    Parameters
    ----------
    data_dir : str or Path
        Folder with `labels.csv`; the paths in it are relative to this folder.

    Returns
    -------
    PatchDataset
        With groups, official parts and masks where the table has them.

    Raises
    ------
    HistoCLIPError
        For a missing folder or table, a table that is no UTF-8 CSV, two columns of one name, a missing `file`
        column, no class columns, values other than 0/1, files that are absent, outside the folder or listed twice,
        or a mask missing on some rows.
    """
    root = Path(data_dir)
    table_path = root / "labels.csv"
    if not table_path.is_file():
        raise HistoCLIPError(f"{table_path} was not found. Set data_dir to the folder that holds it. {FORMAT}")
    table = _read_table(table_path)
    if "file" not in table:
        raise HistoCLIPError(f"{table_path} has the columns {list(table.columns)}. {FORMAT}")
    if table.empty:
        raise HistoCLIPError(f"{table_path} has no rows. {FORMAT}")
    classes = [column for column in table.columns if column not in RESERVED_COLUMNS]
    if not classes:
        raise HistoCLIPError(f"{table_path} has no class column. {FORMAT}")

    image_paths = _paths_inside(root, table["file"], f"{table_path}, column file")
    _refuse_twice([path.resolve() for path in image_paths], table_path)  # a.png and ./a.png are one file
    mask_paths = _paths_inside(root, table["mask"], f"{table_path}, column mask") if "mask" in table else []
    mask_values = np.full(256, 255, dtype=np.uint8)
    mask_values[: len(classes) + 1] = np.arange(len(classes) + 1)
    return PatchDataset(
        name="folder",
        classes=classes,
        files=table["file"].tolist(),
        labels=_labels(table, classes, table_path),
        source=ImageFiles(image_paths, mask_paths, mask_values),
        groups=_column(table, "group", table_path),
        parts=_column(table, "split", table_path, allowed=("train", "val")),
        has_masks=bool(mask_paths),
    )


def _read_table(table_path: Path) -> pd.DataFrame:
    """Return the table as text, whatever its cells look like; an empty cell is ""."""
    try:
        table = pd.read_csv(table_path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise HistoCLIPError(f"{table_path} is not a table in CSV, UTF-8 ({str(error).strip()}). {FORMAT}") from error
    header = table.iloc[0].tolist()
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise HistoCLIPError(f"{table_path}: each column needs its own name; {twice} stand there several times.")
    return table[1:].reset_index(drop=True).set_axis(header, axis=1).fillna("")  # a short line ends in empty cells


def _refuse_twice(paths: list[Path], table_path: Path) -> None:
    """Refuse a file that several lines name: it could stand on both sides of a split."""
    lines: dict[Path, list[int]] = {}
    for line, path in enumerate(paths, start=2):
        lines.setdefault(path, []).append(line)
    offenders = [f"{path.name}: lines {', '.join(map(str, at))}" for path, at in lines.items() if len(at) > 1]
    if offenders:
        raise HistoCLIPError(f"{table_path}: each file may be listed once. Not so:\n{bullet_list(offenders)}")


def _labels(table: pd.DataFrame, classes: list[str], table_path: Path) -> np.ndarray:
    values = table[classes]
    wrong = ~values.isin(["0", "1"])
    if wrong.to_numpy().any():
        offenders = [
            f"line {row + 2}, column {classes[column]}: {values.iat[row, column]!r}"
            for row, column in np.argwhere(wrong.to_numpy())
        ]
        raise HistoCLIPError(
            f"{table_path}: class columns hold 0 or 1, and all columns but {', '.join(RESERVED_COLUMNS)} are "
            f"class columns. Not so:\n{bullet_list(offenders)}"
        )
    return values.to_numpy().astype(np.uint8)


def _column(
    table: pd.DataFrame, column: str, table_path: Path, allowed: tuple[str, ...] | None = None
) -> np.ndarray | None:
    """Return an optional text column, refusing empty cells and values that are not `allowed`."""
    if column not in table:
        return None
    values = table[column]
    wrong = ~values.isin(allowed) if allowed else values == ""
    if wrong.any():
        offenders = [f"line {row + 2}: {values.iat[row]!r}" for row in np.flatnonzero(wrong)]
        expected = " or ".join(allowed) if allowed else "a name on every line, or no such column"
        raise HistoCLIPError(f"{table_path}, column {column}: expected {expected}. Not so:\n{bullet_list(offenders)}")
    return values.to_numpy(dtype=str)


def _paths_inside(root: Path, names: pd.Series, place: str) -> list[Path]:
    """Return the files that `names` name; refuse those that are absent or that lead out of `root`."""
    inside = root.resolve()
    paths, offenders = [], []
    for line, name in enumerate(names, start=2):
        path = root / name
        try:
            if not name:
                offenders.append(f"line {line}: empty")
            elif not path.resolve().is_relative_to(inside):
                offenders.append(f"line {line}: {name!r} leads out of {root}")
            elif not path.is_file():
                offenders.append(f"line {line}: {name!r} is not there")
        except (OSError, ValueError) as error:  # a name too long for the file system, or with a null byte
            offenders.append(f"line {line}: {name!r} is no file name ({error})")
        paths.append(path)
    if offenders:
        raise HistoCLIPError(f"{place}: {len(offenders)} files cannot be used:\n{bullet_list(offenders)}")
    return paths
