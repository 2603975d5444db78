"""PanNuke as the Hugging Face parquet files: one PNG for each patch and for each nucleus."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from histoclip_lib.datasets.pannuke_arrays import CLASSES
from histoclip_lib.errors import HistoCLIPError

COLUMNS = ("image", "instances", "categories", "tissue")
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

    A row group of one column is decoded at a time and the last three are kept in each process, so reading in
    order is fast. It holds paths only, so that it can be pickled.

    Attributes
    ----------
    row_groups : list of (Path, int)
        File and place of each row group.
    starts : ndarray of shape (number of row groups + 1,), int
        Position of the first patch of each row group, and the number of all patches.
    """

    row_groups: list[tuple[Path, int]]
    starts: np.ndarray

    def _cell(self, index: int, column: str) -> object:
        place = int(np.searchsorted(self.starts, index, side="right")) - 1
        path, group = self.row_groups[place]
        values = _row_group(path, path.stat().st_mtime_ns, group, column)
        return values[index - int(self.starts[place])].as_py()

    def image(self, index: int) -> np.ndarray:
        """Return patch `index` as RGB, shape (H, W, 3), uint8."""
        with _open_png(self._cell(index, "image"), f"patch {index}, column image") as image:
            return np.asarray(image.convert("RGB"))

    def mask(self, index: int) -> np.ndarray:
        """Return the class map, shape (H, W), uint8: k for the k-th class, the later where nuclei overlap."""
        with _open_png(self._cell(index, "image"), f"patch {index}, column image") as image:
            class_map = np.zeros((image.height, image.width), dtype=np.uint8)
        instances, categories = self._cell(index, "instances"), self._cell(index, "categories")
        if len(instances) != len(categories):
            raise HistoCLIPError(
                f"Patch {index}: {len(instances)} instances but {len(categories)} categories. Fetch the parquet "
                "files again."
            )
        for category, instance in sorted(zip(categories, instances, strict=True), key=lambda pair: pair[0]):
            with _open_png(instance, f"patch {index}, column instances") as nucleus:
                class_map[np.asarray(nucleus) != 0] = category + 1
        return class_map

    def digest(self, index: int) -> str:
        """Return the BLAKE2 digest of the image's bytes."""
        return hashlib.blake2b(self._cell(index, "image")["bytes"] or b"", digest_size=16).hexdigest()


def _open_png(cell: dict | None, place: str) -> Image.Image:
    """Open the image in a cell, a struct of `bytes` and `path`."""
    if not cell or not cell["bytes"]:
        raise HistoCLIPError(f"PanNuke, {place}: no bytes are stored. Fetch the parquet files again.")
    return Image.open(io.BytesIO(cell["bytes"]))


@lru_cache(maxsize=3)  # mask() reads three columns in turn
def _row_group(path: Path, mtime_ns: int, group: int, column: str) -> pa.ChunkedArray:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def read_fold(paths: list[Path]) -> tuple[list[tuple[Path, int]], np.ndarray, np.ndarray, np.ndarray]:
    """Read what the labels need from the parquet files of one fold; pixels stay where they are.

    Parameters
    ----------
    paths : list of Path
        Files of the fold, in order.

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
        For a file that is no parquet, lacks a column, or holds class or tissue numbers that name nothing.
    """
    row_groups, lengths, counts, tissue = [], [], [], []
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                missing = [column for column in COLUMNS if column not in file.schema_arrow.names]
                if missing:
                    raise HistoCLIPError(
                        f"{path} lacks {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}. "
                        f"Expected the columns {', '.join(COLUMNS)}, as in RationAI/PanNuke on Hugging Face."
                    )
                table = file.read(columns=["categories", "tissue"])
                groups = range(file.num_row_groups)
                row_groups += [(path, group) for group in groups]
                lengths += [file.metadata.row_group(group).num_rows for group in groups]
        except (OSError, pa.ArrowException) as error:
            raise HistoCLIPError(f"{path} cannot be read as parquet ({error}). Fetch the file again.") from error
        counts += [_class_counts(path, row, cell or []) for row, cell in enumerate(table["categories"].to_pylist())]
        tissue += [_tissue_name(path, row, cell) for row, cell in enumerate(table["tissue"].to_pylist())]
    return (
        row_groups,
        np.array(lengths, dtype=np.int64),
        np.array(counts, dtype=np.int64).reshape(-1, len(CLASSES)),
        np.array(tissue, dtype=str),
    )


def _class_counts(path: Path, row: int, categories: list[int]) -> np.ndarray:
    wrong = sorted({c for c in categories if c not in range(len(CLASSES))}, key=str)
    if wrong:
        raise HistoCLIPError(
            f"{path}, row {row}: categories {wrong} name no class. Expected 0 to {len(CLASSES) - 1} for "
            f"{', '.join(CLASSES)}."
        )
    return np.bincount(categories, minlength=len(CLASSES)) if categories else np.zeros(len(CLASSES), dtype=np.int64)


def _tissue_name(path: Path, row: int, tissue: int | str) -> str:
    if isinstance(tissue, str):
        return tissue
    if tissue not in range(len(TISSUES)):
        raise HistoCLIPError(
            f"{path}, row {row}: tissue {tissue!r} names no organ. Expected 0 to {len(TISSUES) - 1} or a name."
        )
    return TISSUES[tissue]
