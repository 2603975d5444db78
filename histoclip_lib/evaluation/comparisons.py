"""Which method is better than which, within a run and between two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from histoclip_lib.common.arrays import agreement
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.artifacts import RunMetrics, ValidationPredictions
from histoclip_lib.evaluation.encoders import align_runs
from histoclip_lib.evaluation.methods import in_table_order, label_of, short_label, strategy_names
from histoclip_lib.evaluation.text import p_text, signed_text
from histoclip_lib.evaluation.uncertainty import (
    EXACT_UNITS,
    Comparison,
    Difference,
    accuracy_gap,
    accuracy_shares,
    bootstrap_units,
    compare,
    draw_units,
    holm,
    pairwise_gaps,
    percentile_interval,
    resampled_metrics,
    smallest_p,
    whole_and_drawn,
)

OURS, PROBE = "histoclip_patch", "linear_probe"
METRICS = {"mAcc": "macc", "mAP": "map"}  # of a Comparison
ALPHA = 0.05
BETTER, WORSE, ALIKE = (
    "is significantly better than",
    "is significantly worse than",
    "is not significantly different from",
)
FAR = 0.1  # of mAcc: what the finding calls far above
RESAMPLES = 1000  # where no number is given


def finding(gap: Difference) -> str:
    """Say what a difference of two methods shows: better, worse, or not significantly different.

    Its p, which is corrected where it stands in a table of several, must be below ALPHA; where no test was made, the
    95% interval must exclude 0.
    """
    shown = gap.low > 0 or gap.high < 0 if np.isnan(gap.p) else gap.p < ALPHA
    if not shown:
        return ALIKE
    return BETTER if gap.value > 0 else WORSE


def against_every_method(
    methods: dict[str, Predictions], patches: PatchDataset, val: np.ndarray, resamples: int, seed: int, folds: int = 1
) -> dict[str, Comparison]:
    """Compare HistoCLIP with patch tokens with each other method, in the order of the table; p after Holm's correction.

    Parameters
    ----------
    methods : dict of str to Predictions
        For the patches `val`; one of them is `histoclip_patch`.
    patches : PatchDataset
        The data set.
    val : ndarray of int
        Its validation set.
    resamples, seed, folds : int
        See `uncertainty.compare`.
    """
    units = bootstrap_units(patches, val)
    found = {
        name: compare(patches.labels[val], methods[OURS], methods[name], units, resamples, seed, folds)
        for name in in_table_order(methods)
        if name != OURS
    }
    return all_corrected(found)


def accuracy_against(found: ValidationPredictions, seed: int, folds: int = 1) -> dict[str, Difference]:
    """Return the half of `against_every_method` that is on mAcc for a run's predictions, for sentences about it."""
    ours = found.methods[OURS]
    names = [name for name in in_table_order(found.methods) if name != OURS]
    gaps = [
        accuracy_gap(found.labels, ours, found.methods[name], found.units, RESAMPLES, seed, folds) for name in names
    ]
    return dict(zip(names, corrected(gaps), strict=True))


def corrected(gaps: Sequence[Difference]) -> list[Difference]:
    """Return differences with p corrected by Holm's method for their number."""
    adjusted = holm(np.array([gap.p for gap in gaps]))
    return [replace(gap, p=float(p)) for gap, p in zip(gaps, adjusted, strict=True)]


def all_corrected(comparisons: dict[str, Comparison]) -> dict[str, Comparison]:
    """Return comparisons with p corrected for their number, in each metric by itself."""
    columns = (corrected([getattr(own, key) for own in comparisons.values()]) for key in METRICS.values())
    return {name: Comparison(*gaps) for name, *gaps in zip(comparisons, *columns, strict=True)}


def differences_table(comparisons: dict[str, Comparison]) -> pd.DataFrame:
    """Return HistoCLIP with patch tokens minus each other method as text: difference, 95% interval and Holm's p."""
    table = pd.DataFrame(index=[label_of(name) for name in comparisons])
    for metric, key in METRICS.items():
        gaps = [getattr(comparison, key) for comparison in comparisons.values()]
        table[metric] = [signed_text(gap) for gap in gaps]
        table[f"p, {metric}"] = [p_text(gap.p) for gap in gaps]
    return table


def units_text(units: np.ndarray) -> str:
    """Return how many groups, or patches where each is a unit, some units (B,) are."""
    count = len(np.unique(units))
    return f"{count} {'patches' if count == len(units) else 'groups'}"


def correction_note(comparisons: dict[str, Comparison], units: np.ndarray, resamples: int) -> str:
    """Say in Markdown how p is corrected, and where there are too few units or permutations for a small one.

    Parameters
    ----------
    comparisons : dict of str to Comparison
        As `against_every_method` returns.
    units : ndarray of shape (B,)
        What the tests swapped, as `uncertainty.bootstrap_units` returns.
    resamples : int
        As in `uncertainty.compare`.
    """
    note = f"p is corrected by Holm's method for {len(comparisons)} comparisons in each metric."
    if (smallest := smallest_p(units)) * len(comparisons) >= ALPHA:
        note += (
            f" With {units_text(units)} the smallest possible p is {p_text(smallest)} before correction, "
            f"so no corrected p can be below {ALPHA}."
        )
    elif len(np.unique(units)) > EXACT_UNITS and (least := len(comparisons) / (1 + resamples)) >= ALPHA:
        note += (
            f" mAP is tested by {resamples:,} permutations, too few for a corrected p below {p_text(least)}: raise "
            "`resamples`."
        )
    return note


def all_pairs(
    methods: dict[str, Predictions], patches: PatchDataset, val: np.ndarray, seed: int, folds: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare every method with every other in mAcc.

    Parameters
    ----------
    methods, patches, val
        As for `against_every_method`.
    seed : int
        Of the permutations; see `uncertainty.mean_gap_p`.
    folds : int
        See `uncertainty.compare`.

    Returns
    -------
    differences, p : DataFrame of shape (K, K)
        In the order of the table under the methods' labels: mAcc of the row minus mAcc of the column, and the p of its
        permutation test with Holm's correction over all pairs. NaN on the diagonal.
    """
    names = in_table_order(methods)
    correct = [accuracy_shares(agreement(patches.labels[val], methods[name].decisions)) for name in names]
    labels = [label_of(name) for name in names]
    found = pairwise_gaps(np.stack(correct, axis=1), bootstrap_units(patches, val), seed, folds)
    differences, p = (pd.DataFrame(values, labels, labels) for values in found)
    return differences, p


# The finding of a run


def finding_sentence(metrics: RunMetrics, predictions: ValidationPredictions | None) -> str:
    """Say in one sentence how HistoCLIP with patch tokens compares with the linear probe and with zero-shot, in mAcc.

    Parameters
    ----------
    metrics : RunMetrics
        The numbers.
    predictions : ValidationPredictions or None
        What they were computed from; without them nothing is tested, and the sentence says so.
    """
    scores = {name: score.value for name, score in metrics.scores.items()}
    best = best_zero_shot(metrics)
    labels = {PROBE: "the linear probe"} | ({best: "the best zero-shot strategy"} if best else {})
    rivals = {name: label for name, label in labels.items() if name in scores}
    if OURS not in scores:
        return "This run has no results of HistoCLIP with patch tokens."
    reached = f"HistoCLIP with patch tokens reaches an mAcc of {scores[OURS]:.3f}"
    if predictions is None or not {OURS, *rivals} <= predictions.methods.keys():
        listed = "".join(f", {label} {scores[name]:.3f}" for name, label in rivals.items())
        return f"{reached}{listed}{'; differences were not tested' if rivals else ''}."

    gaps = accuracy_against(predictions, metrics.seed, metrics.folds)
    sentence = reached
    if PROBE in rivals:
        said = finding(gaps[PROBE])
        sentence = f"HistoCLIP with patch tokens {said} the linear probe on the same features"
        if said == ALIKE:
            sentence = "HistoCLIP with patch tokens and the linear probe are not significantly different on this data"
        sentence += f" (mAcc {scores[OURS]:.3f} and {scores[PROBE]:.3f})"
    if best:
        said = finding(gaps[best])
        if said == BETTER:
            said = "is far above" if scores[OURS] - scores[best] > FAR else "is above"
        sentence += f"; HistoCLIP {said} {labels[best]} ({short_label(best)}, {scores[best]:.3f})"
    units = predictions.units
    if smallest_p(units) * len(gaps) >= ALPHA:
        sentence += f". With {units_text(units)} no difference can be significant after correction"
    return f"{sentence}."


def best_zero_shot(metrics: RunMetrics) -> str | None:
    """Return the zero-shot strategy with the highest mAcc, or None without any."""
    there = [name for name in strategy_names() if name in metrics.scores]
    return max(there, key=lambda name: metrics.scores[name].value, default=None)


# Two runs


FEWEST_RESAMPLES = 200
MOST_CELLS = 3e8  # resamples x patches x classes over all methods that are ranked


@dataclass(frozen=True, eq=False)
class Common:
    """Predictions of two runs for the same patches and classes, in the same order.

    `only_first` and `only_second` count the validation patches that the other run does not validate on, `relabelled`
    the common ones to which the two runs give different labels; all of these are left out.
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
class MethodGaps:
    """One method in two runs; `same` where its answers are the same on every patch."""

    method: str
    same: bool
    macc: Gap
    mean_ap: Gap


@dataclass(frozen=True)
class ClassGaps:
    """One class in HistoCLIP with patch tokens: both metrics, and on how many patches which of the runs is right."""

    name: str
    accuracy: Gap
    ap: Gap
    both: int
    only_first: int
    only_second: int
    neither: int


@dataclass(frozen=True)
class RunGaps:
    """How the second run differs from the first; `test` is the difference in mAcc of HistoCLIP with patch tokens."""

    methods: list[MethodGaps]
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
        If the runs have different classes, or one lacks HistoCLIP with patch tokens.
    """
    if set(first.classes) != set(second.classes):
        raise HistoCLIPError("The runs have different classes.")
    if OURS not in first.methods or OURS not in second.methods:
        raise HistoCLIPError(f"A run has no predictions of {OURS}. Run it again with --force.")
    aligned = align_runs({"first": first, "second": second})
    if aligned is None:
        return None
    shared = len(np.intersect1d(first.files, second.files))
    only_first, only_second = len(first.files) - shared, len(second.files) - shared
    return Common(*aligned.runs.values(), only_first, only_second, shared - len(aligned.first.files))


def compare_runs(common: Common, seed: int = 0, folds: int = 1) -> RunGaps:
    """Compare two runs method by method, and class by class in HistoCLIP with patch tokens.

    Both runs are resampled with the same draws; the percentiles of the difference give its interval. With many patches
    there are fewer resamples than RESAMPLES, so that a comparison takes seconds. `seed` is that of the bootstrap and of
    the permutation test, `folds` the larger number of either run's cross-validation, 1 for single splits.
    """
    first, second = common.first, common.second
    names = in_table_order(first.methods.keys() & second.methods.keys())
    same = {name: _same(first.methods[name], second.methods[name]) for name in names}
    n_ranked = 2 * max(1, sum(not same[name] for name in names))
    resamples = int(np.clip(MOST_CELLS / (first.labels.size * n_ranked), FEWEST_RESAMPLES, RESAMPLES))
    draws = whole_and_drawn(draw_units(first.units, resamples, seed))
    methods, ours = [], []
    for name in names:
        values = [resampled_metrics(first.labels, first.methods[name], draws)]
        values.append(values[0] if same[name] else resampled_metrics(first.labels, second.methods[name], draws))
        methods.append(MethodGaps(name, same[name], _gap(values, "mAcc", folds), _gap(values, "mAP", folds)))
        if name == OURS:
            ours = values
    test = accuracy_gap(first.labels, second.methods[OURS], first.methods[OURS], first.units, RESAMPLES, seed, folds)
    return RunGaps(methods, _class_gaps(common, ours, folds), test, resamples)


def _same(one: Predictions, other: Predictions) -> bool:
    return np.array_equal(one.decisions, other.decisions) and np.array_equal(one.scores, other.scores, equal_nan=True)


def _gap(values: list[dict[str, np.ndarray]], metric: str, folds: int, column: int | None = None) -> Gap:
    one, other = (value[metric] if column is None else value[metric][:, column] for value in values)
    first, second = (None if np.isnan(points[0]) else float(points[0]) for points in (one, other))
    if first is None or second is None:
        return Gap(first, second, None, None)
    interval = percentile_interval((other - one)[1:], second - first, folds)
    return Gap(first, second, second - first, None if np.isnan(interval[0]) else interval)


def _class_gaps(common: Common, ours: list[dict[str, np.ndarray]], folds: int) -> list[ClassGaps]:
    known = ~np.isnan(common.first.labels)
    one, other = (run.methods[OURS].decisions == run.labels for run in (common.first, common.second))
    return [
        ClassGaps(
            name,
            _gap(ours, "accuracy", folds, k),
            _gap(ours, "ap", folds, k),
            both=int((one & other)[:, k].sum()),
            only_first=int((one & ~other)[:, k].sum()),
            only_second=int((~one & other)[:, k].sum()),
            neither=int((known & ~one & ~other)[:, k].sum()),
        )
        for k, name in enumerate(common.first.classes)
    ]


def disagreements(common: Common, count: int) -> list[Disagreement]:
    """Return where one run is right and the other wrong in HistoCLIP with patch tokens, the largest differences first.

    At most `count` for each run that is right, and no patch twice for the same run.
    """
    one, other = common.first.methods[OURS], common.second.methods[OURS]
    truth, known = common.first.labels == 1, ~np.isnan(common.first.labels)
    width = np.abs(other.scores - one.scores)
    found = []
    for first_is_right in (True, False):
        right, wrong = (one, other) if first_is_right else (other, one)
        split = (right.decisions == truth) & (wrong.decisions != truth) & known
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
