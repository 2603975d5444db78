"""PanNuke as the Hugging Face parquet files: one PNG for each patch and for each nucleus."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.data.images import read_nonzero, read_rgb
from histoclip_lib.data.pannuke.arrays import CLASSES

COLUMNS = {
    "image": "a struct with `bytes`",
    "instances": "a list of structs with `bytes`",
    "categories": "a list of integers",
    "tissue": "integers or text",
}
MAX_ROW_GROUP = 2**32  # bytes once unpacked: one column of it is held at a time
UNREADABLE = (OSError, ValueError, MemoryError, pa.ArrowException)  # what Arrow raises on damaged files
# The tissue column holds places in the alphabetical list of organs; these are the names in `types.npy`.
# fmt: off
TISSUES = (
    "Adrenal_gland", "Bile-duct", "Bladder", "Breast", "Cervix", "Colon", "Esophagus", "HeadNeck", "Kidney",
    "Liver", "Lung", "Ovarian", "Pancreatic", "Prostate", "Skin", "Stomach", "Testis", "Thyroid", "Uterus",
)
# fmt: on


@dataclass(frozen=True)
class ParquetSource:
    """Patches in parquet files, one row group after the other.

    A row group of one column is decoded at a time and the last three are kept in each process, so reading in order is
    fast. It holds paths only, so that it can be pickled.
    """

    row_groups: list[tuple[Path, int]]  # file and place of each
    starts: np.ndarray  # index of the first patch of each row group, and the number of all patches

    def _cell(self, index: int, column: str) -> object:
        place = int(np.searchsorted(self.starts, index, side="right")) - 1
        path, group = self.row_groups[place]
        try:
            values = _row_group(path, path.stat().st_mtime_ns, group, column)
            return values[index - int(self.starts[place])].as_py()
        except UNREADABLE as error:
            raise HistoCLIPError(
                f"{path}, row group {group}, column {column}: cannot be read ({error}). Download the file again."
            ) from error

    def image(self, index: int) -> np.ndarray:
        """Return patch `index` as RGB, shape (H, W, 3), uint8."""
        place = f"patch {index}, column image"
        return read_rgb(_content(self._cell(index, "image"), place), place)

    def mask(self, index: int) -> np.ndarray:
        """Return the class map, shape (H, W), uint8: k for the k-th class, the later where nuclei overlap."""
        class_map = np.zeros(self.image(index).shape[:2], dtype=np.uint8)
        instances, categories = self._cell(index, "instances") or [], self._cell(index, "categories") or []
        if len(instances) != len(categories):
            raise HistoCLIPError(
                f"Patch {index}: {len(instances)} instances but {len(categories)} categories. Download the parquet "
                "files again."
            )
        place = f"patch {index}, column instances"
        for category, instance in sorted(zip(categories, instances, strict=True), key=lambda pair: pair[0]):
            nucleus = read_nonzero(_content(instance, place), place)
            if nucleus.shape != class_map.shape:
                raise HistoCLIPError(
                    f"PanNuke, {place}: a nucleus is {nucleus.shape[1]}x{nucleus.shape[0]}, the image "
                    f"{class_map.shape[1]}x{class_map.shape[0]}. Download the parquet files again."
                )
            class_map[nucleus] = category + 1
        return class_map

    def digest(self, index: int) -> str:
        """Return the BLAKE2 digest of the image's bytes."""
        cell = self._cell(index, "image") or {}
        return hashlib.blake2b(cell.get("bytes") or b"", digest_size=16).hexdigest()


def _content(cell: dict | None, place: str) -> bytes:
    """Return the file in a cell, a struct of `bytes` and `path`; the path is not followed."""
    if not cell or not cell["bytes"]:
        raise HistoCLIPError(f"PanNuke, {place}: no bytes are stored. Download the parquet files again.")
    return cell["bytes"]


@lru_cache(maxsize=3)  # mask() reads three columns in turn
def _row_group(path: Path, mtime_ns: int, group: int, column: str) -> pa.ChunkedArray:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def read_fold(paths: list[Path]) -> tuple[list[tuple[Path, int]], np.ndarray, np.ndarray, np.ndarray]:
    """Read what the labels need from the parquet files of one fold, in order; images stay unread.

    Returns
    -------
    row_groups : list of (Path, int)
        File and place of each row group.
    lengths : ndarray of shape (number of row groups,), int64
        Patches in each row group.
    counts : ndarray of shape (B, 5), int64
        Nuclei of each class: the entries of `categories`.
    tissue : ndarray of shape (B,), str
        Organ, named as in `types.npy`.

    Raises
    ------
    HistoCLIPError
        Listing every file that is not parquet, lacks a column, has one of another type or unpacks to too much, and
        every row with an unknown class or tissue number.
    """
    row_groups, lengths, counts, tissue, problems = [], [], [], [], []
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                found = _schema_problems(file)
                problems += [f"{path}: {problem}" for problem in found]
                if found:
                    continue
                table = file.read(columns=["categories", "tissue"])
                groups = range(file.num_row_groups)
                row_groups += [(path, group) for group in groups]
                lengths += [file.metadata.row_group(group).num_rows for group in groups]
            for row, (category, organ) in enumerate(
                zip(table["categories"].to_pylist(), table["tissue"].to_pylist(), strict=True)
            ):
                problem = _row_problem(category or [], organ)
                if problem:
                    problems.append(f"{path}, row {row}: {problem}")
                    continue
                counts.append(np.bincount(category or [], minlength=len(CLASSES)))
                tissue.append(organ if isinstance(organ, str) else TISSUES[organ])
        except UNREADABLE as error:
            problems.append(f"{path} cannot be read as parquet ({error}). Download the file again")
    if problems:
        raise HistoCLIPError(f"PanNuke's parquet files cannot be used:\n{bullet_list(problems, limit=1000)}")
    return (
        row_groups,
        np.array(lengths, dtype=np.int64),
        np.array(counts, dtype=np.int64).reshape(-1, len(CLASSES)),
        np.array(tissue, dtype=str),
    )


def _schema_problems(file: pq.ParquetFile) -> list[str]:
    """Return what is wrong with the columns of a file, a line for each fault."""
    schema, problems = file.schema_arrow, []
    missing = [column for column in COLUMNS if schema.names.count(column) != 1]
    if missing:
        problems.append(
            f"lacks {', '.join(missing)}; it has {', '.join(schema.names)}. Expected are the columns "
            f"{', '.join(COLUMNS)}, as in RationAI/PanNuke on Hugging Face"
        )
    for column in COLUMNS:
        if column not in missing and not _has_type(column, schema.field(column).type):
            problems.append(f"column {column} holds {schema.field(column).type}, expected {COLUMNS[column]}")
    for group in range(file.num_row_groups):
        if (size := file.metadata.row_group(group).total_byte_size) > MAX_ROW_GROUP:
            problems.append(f"row group {group} unpacks to {size:,} bytes, more than {MAX_ROW_GROUP:,}")
    return problems


def _has_type(column: str, kind: pa.DataType) -> bool:
    """Whether a column has the type of `COLUMNS`; a list or struct that is empty throughout holds nulls."""
    if column == "tissue":
        return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if column != "image":
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            return False
        kind = kind.value_type
        if pa.types.is_null(kind) or column == "categories":
            return pa.types.is_null(kind) or pa.types.is_integer(kind)
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    content = kind.field("bytes").type
    return pa.types.is_binary(content) or pa.types.is_large_binary(content) or pa.types.is_null(content)


def _row_problem(categories: list[int], tissue: int | str) -> str:
    """Return what is wrong with the classes and the organ of a patch; nothing: an empty text."""
    wrong = sorted({c for c in categories if c not in range(len(CLASSES))}, key=str)
    if wrong:
        return f"categories {wrong} do not name a class. Expected 0 to {len(CLASSES) - 1} for {', '.join(CLASSES)}"
    if not isinstance(tissue, str) and tissue not in range(len(TISSUES)):
        return f"tissue {tissue!r} does not name an organ. Expected 0 to {len(TISSUES) - 1} or a name"
    return ""
