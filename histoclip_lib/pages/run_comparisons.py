"""Compare two runs on the validation patches that they share: how far the second is ahead, and where they disagree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histoclip_lib.comparisons import OURS
from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.metrics import Predictions
from histoclip_lib.pages.run_predictions import ValidationPredictions
from histoclip_lib.results import ROW_LABELS
from histoclip_lib.uncertainty import LEVEL, Difference, Draws, accuracy_gap, draw_units, resampled_metrics

RESAMPLES = 1000
FEWEST_RESAMPLES = 200
MOST_CELLS = 3e8  # resamples x patches x classes over all rows that are ranked


@dataclass(frozen=True, eq=False)
class Common:
    """What two runs can be compared on.

    Attributes
    ----------
    first, second : ValidationPredictions
        Of the same patches, in the same order, with the same classes in the same order.
    only_first, only_second : int
        Validation patches that the other run does not validate on.
    relabelled : int
        Common patches to which the two runs give different labels; they are left out.
    """

    first: ValidationPredictions
    second: ValidationPredictions
    only_first: int
    only_second: int
    relabelled: int


@dataclass(frozen=True)
class Gap:
    """A metric of two runs: both values, the second minus the first, and its interval; None where not defined."""

    first: float | None
    second: float | None
    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class RowGaps:
    """One row of the table in two runs; `same` where its answers are the same on every patch."""

    row: str
    same: bool
    macc: Gap
    mean_ap: Gap


@dataclass(frozen=True)
class ClassGaps:
    """One class in HistoCLIP with patch keys: accuracy, average precision, and on how many patches who is right."""

    name: str
    accuracy: Gap
    ap: Gap
    both: int
    only_first: int
    only_second: int
    neither: int


@dataclass(frozen=True)
class RunGaps:
    """How the second run differs from the first, over `resamples` bootstrap samples.

    `test` is the difference in mAcc of HistoCLIP with patch keys with its p.
    """

    rows: list[RowGaps]
    classes: list[ClassGaps]
    test: Difference
    resamples: int


@dataclass(frozen=True)
class Disagreement:
    """A patch and a class in which one run is right and the other is not, with both probabilities."""

    place: int
    class_number: int
    first: float
    second: float
    first_is_right: bool


def align(first: ValidationPredictions, second: ValidationPredictions) -> Common | None:
    """Bring two runs to the validation patches that they share; None where they share none with the same labels.

    Raises
    ------
    HistoCLIPError
        If the runs have different classes, or one lacks HistoCLIP with patch keys.
    """
    if set(first.classes) != set(second.classes):
        raise HistoCLIPError("The runs have different classes.")
    if OURS not in first.rows or OURS not in second.rows:
        raise HistoCLIPError(f"A run has no row {OURS}. Run 04_evaluate again.")
    _, mine, theirs = np.intersect1d(first.files, second.files, assume_unique=True, return_indices=True)
    one, other = first.take(mine), _reordered(second.take(theirs), first.classes)
    alike = (one.labels == other.labels).all(axis=1)
    if not alike.any():
        return None
    places = np.flatnonzero(alike)
    only_first, only_second = len(first.files) - len(mine), len(second.files) - len(theirs)
    return Common(one.take(places), other.take(places), only_first, only_second, int((~alike).sum()))


def _reordered(predictions: ValidationPredictions, classes: list[str]) -> ValidationPredictions:
    columns = [predictions.classes.index(name) for name in classes]
    rows = {
        name: Predictions(row.scores[:, columns], row.decisions[:, columns]) for name, row in predictions.rows.items()
    }
    return ValidationPredictions(predictions.files, classes, predictions.labels[:, columns], predictions.groups, rows)


def compare_runs(common: Common, seed: int = 0) -> RunGaps:
    """Compare two runs row by row, and class by class in HistoCLIP with patch keys.

    Both runs are resampled with the same draws; the percentiles of the difference give its interval. With many patches
    there are fewer resamples than RESAMPLES, so that a comparison takes seconds.

    Parameters
    ----------
    common : Common
        As `align` returns.
    seed : int
        Of the bootstrap and of the permutation test.
    """
    first, second = common.first, common.second
    names = [name for name in ROW_LABELS if name in first.rows and name in second.rows]
    same = {name: _same(first.rows[name], second.rows[name]) for name in names}
    n_ranked = 2 * max(1, sum(not same[name] for name in names))
    resamples = int(np.clip(MOST_CELLS / (first.labels.size * n_ranked), FEWEST_RESAMPLES, RESAMPLES))
    draws = draw_units(first.units, resamples, seed)
    whole = np.ones((1, draws.counts.shape[1]), dtype=draws.counts.dtype)
    draws = Draws(draws.unit, np.concatenate([whole, draws.counts]))  # the first sample is the patches themselves
    rows, ours = [], {}
    for name in names:
        values = [resampled_metrics(first.labels, first.rows[name], draws)]
        values.append(values[0] if same[name] else resampled_metrics(first.labels, second.rows[name], draws))
        rows.append(RowGaps(name, same[name], _gap(values, "mAcc"), _gap(values, "mAP")))
        if name == OURS:
            ours = values
    test = accuracy_gap(first.labels, second.rows[OURS], first.rows[OURS], first.units, RESAMPLES, seed)
    return RunGaps(rows, _class_gaps(common, ours), test, resamples)


def _same(one: Predictions, other: Predictions) -> bool:
    return np.array_equal(one.decisions, other.decisions) and np.array_equal(one.scores, other.scores, equal_nan=True)


def _gap(values: list[dict[str, np.ndarray]], metric: str, column: int | None = None) -> Gap:
    one, other = (value[metric] if column is None else value[metric][:, column] for value in values)
    first, second = (None if np.isnan(points[0]) else float(points[0]) for points in (one, other))
    if first is None or second is None:
        return Gap(first, second, None, None)
    drawn = (other - one)[1:]
    drawn = drawn[~np.isnan(drawn)]
    low_high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist() if len(drawn) else None
    return Gap(first, second, second - first, low_high and tuple(low_high))


def _class_gaps(common: Common, ours: list[dict[str, np.ndarray]]) -> list[ClassGaps]:
    one, other = (run.rows[OURS].decisions == run.labels for run in (common.first, common.second))
    return [
        ClassGaps(
            name,
            _gap(ours, "accuracy", k),
            _gap(ours, "ap", k),
            both=int((one & other)[:, k].sum()),
            only_first=int((one & ~other)[:, k].sum()),
            only_second=int((~one & other)[:, k].sum()),
            neither=int((~one & ~other)[:, k].sum()),
        )
        for k, name in enumerate(common.first.classes)
    ]


def disagreements(common: Common, count: int) -> list[Disagreement]:
    """Return where one run is right and the other is not in HistoCLIP with patch keys, the widest gaps first.

    Parameters
    ----------
    common : Common
        As `align` returns.
    count : int
        At most so many for each run that is right, and no patch twice for the same run.
    """
    one, other = common.first.rows[OURS], common.second.rows[OURS]
    truth = common.first.labels.astype(bool)
    width = np.abs(other.scores - one.scores)
    found = []
    for first_is_right in (True, False):
        right, wrong = (one, other) if first_is_right else (other, one)
        split = (right.decisions == truth) & (wrong.decisions != truth)
        chosen: dict[int, int] = {}
        for place in np.argsort(-np.where(split, width, -1), axis=None, kind="stable"):
            patch, k = divmod(int(place), truth.shape[1])
            if not split[patch, k] or len(chosen) == count:
                break
            chosen.setdefault(patch, k)
        found += [
            Disagreement(patch, k, float(one.scores[patch, k]), float(other.scores[patch, k]), first_is_right)
            for patch, k in chosen.items()
        ]
    return found
