"""Read a run's `predictions.parquet` by itself, without its data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.metrics import Predictions
from histoclip_lib.results import bootstrap_units, interval_note

COLUMNS = ["row", "file", "group", "class", "label", "score", "predicted"]


@dataclass(frozen=True, eq=False)
class ValidationPredictions:
    """What every row of a run's table says about its validation patches.

    Attributes
    ----------
    files : ndarray of shape (B,), str
        The patches, sorted.
    classes : list of str
        N names, in the order of the data set.
    labels : ndarray of shape (B, N), uint8
        0 or 1.
    groups : ndarray of shape (B,), str, or None
        Patient or source image, where known.
    rows : dict of str to Predictions
        By row of the table, in its order.
    """

    files: np.ndarray
    classes: list[str]
    labels: np.ndarray
    groups: np.ndarray | None
    rows: dict[str, Predictions]

    @property
    def units(self) -> np.ndarray:
        """What the bootstrap draws, shape (B,): the group of each patch, or the patch itself."""
        return bootstrap_units(self, np.arange(len(self.files)))

    @property
    def note(self) -> str:
        """What intervals resample, in words."""
        return interval_note(self, np.arange(len(self.files)))

    def take(self, places: np.ndarray) -> ValidationPredictions:
        """Return the predictions of the patches at `places`."""
        groups = None if self.groups is None else self.groups[places]
        rows = {name: Predictions(row.scores[places], row.decisions[places]) for name, row in self.rows.items()}
        return ValidationPredictions(self.files[places], self.classes, self.labels[places], groups, rows)


def read_predictions(path: Path) -> ValidationPredictions:
    """Read a file that `results.save_predictions` wrote.

    Raises
    ------
    HistoCLIPError
        If it cannot be read, lacks a column, does not hold each row, patch and class once, or gives a patch two labels
        of one class or two groups.
    """
    try:
        table = pd.read_parquet(path, columns=COLUMNS)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
        raise HistoCLIPError(f"{path} cannot be read: {error}. Run 04_evaluate again.") from error
    (row, rows), (file, files), (label, classes), (group, groups) = (
        _numbered(table[column]) for column in ("row", "file", "class", "group")
    )
    shape = (len(rows), len(files), len(classes))
    order = np.lexsort((label, file, row))
    in_full = np.unravel_index(np.arange(np.prod(shape)), shape)
    if (
        not len(table)
        or len(table) != np.prod(shape)
        or any((found[order] != wanted).any() for found, wanted in zip((row, file, label), in_full, strict=True))
    ):
        raise HistoCLIPError(f"{path} does not hold each row, patch and class once. Run 04_evaluate again.")
    labels, scores, decisions = (table[c].to_numpy()[order].reshape(shape) for c in ("label", "score", "predicted"))
    group = group[order].reshape(shape)
    if (labels != labels[:1]).any() or (group != group[:1, :, :1]).any():
        raise HistoCLIPError(f"{path} gives a patch two labels of one class, or two groups. Run 04_evaluate again.")
    by_patch = groups[group[0, :, 0]]
    by_name = np.argsort(files)
    found = {name: Predictions(scores[k].astype(float), decisions[k].astype(bool)) for k, name in enumerate(rows)}
    known = by_patch if (by_patch != "").any() else None
    return ValidationPredictions(files, list(classes), labels[0].astype(np.uint8), known, found).take(by_name)


def _numbered(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each entry's name, and the names in the order in which they come."""
    kinds = column.astype("category")
    numbers, there = pd.factorize(kinds.cat.codes.to_numpy())
    return numbers, kinds.cat.categories.astype(str).to_numpy(dtype=object)[there]
