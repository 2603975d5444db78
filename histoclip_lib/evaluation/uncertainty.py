"""How sure a number is: intervals by bootstrap over groups, and paired tests of two methods.

In a cross-validation of K folds each model shares training patches with the others, so the errors of two groups depend
on each other, and no unbiased estimate of the variance exists (Bengio and Grandvalet, No unbiased estimator of the
variance of k-fold cross-validation, JMLR 5, 2004). Nadeau and Bengio (Inference for the generalization error, Machine
Learning 52, 2003, section 3) multiply the naive variance by 1 + K n_test / n_train, which is 1 + K / (K - 1) here:
intervals are stretched about the value by its root, 1.5 for five folds, and a test compares with differences that are
as much larger. The correction was derived for repeated splits and is an approximation here. In the simulation of
`benchmarks/coverage.py`, with five folds and 10, 20 and 40 groups, 78 to 88% of the plain 95% intervals held the
truth and 92 to 98% of the stretched ones; two encoders that are equally good had p < 0.05 in 10 to 13%
of data sets without the correction and in at most 1% with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from histoclip_lib.common.arrays import agreement, all_right, nan_mean
from histoclip_lib.common.predictions import Predictions, log_losses
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.metrics import auroc, average_precision, cut_counts, point_metrics

LEVEL = 0.95  # coverage that the intervals aim at
SHARE = (0.0, 1.0)  # what an interval of an accuracy, or of any other share, is cut off at
HEADLINES = ("mAcc", "mAP", "macro_f1", "micro_f1", "auroc", "exact_match")
PERMUTATIONS = 9999  # of the test in mAcc, which is cheap: enough for Holm's correction over a hundred pairs
EXACT_UNITS = 10  # with as few units every swap is tried
BLOCK_CELLS = 2**18  # resamples times patches worked on at once; a few MB stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Draws:
    """Bootstrap samples of units: `unit` (B,) numbers the unit of each patch, `counts` (R, U) how often each is drawn.

    `counts` is of type int32; `folds` are those of the cross-validation that predictions come from, see `evaluate`.
    """

    unit: np.ndarray
    counts: np.ndarray
    folds: int = 1


@dataclass(frozen=True)
class Difference:
    """First method minus second in one metric: value, 95% interval and two-sided p of the permutation test.

    All are NaN where the metric is not defined, p also where nothing was permuted.
    """

    value: float
    low: float
    high: float
    p: float = np.nan


@dataclass(frozen=True)
class Comparison:
    """Two methods compared in mAcc and in mAP."""

    macc: Difference
    map: Difference


def draw_units(units: np.ndarray, resamples: int, seed: int, folds: int = 1) -> Draws:
    """Draw as many units as there are, with replacement, `resamples` times.

    The draws depend on the units and the seed alone. All methods of a table therefore share them, and can be compared
    resample by resample.

    Parameters
    ----------
    units : ndarray of shape (B,)
        The unit of each patch: its group, or its own number.
    resamples, seed : int
        Number of bootstrap samples, and the seed they are drawn with.
    folds : int
        For `Draws`; what is drawn does not depend on it.

    References
    ----------
    Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8 (the cluster bootstrap).
    """
    names, unit = np.unique(units, return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return Draws(unit, counts.astype(np.int32), folds)


def whole_and_drawn(draws: Draws) -> Draws:
    """Return bootstrap samples with the patches themselves, each once, before them."""
    whole = np.ones((1, draws.counts.shape[1]), dtype=draws.counts.dtype)
    return replace(draws, counts=np.concatenate([whole, draws.counts]))


def bootstrap_interval(
    values: np.ndarray, units: np.ndarray, resamples: int = 1000, seed: int = 0, folds: int = 1
) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean of `values` (B,) or (B, N), by resampling whole units.

    NaN is left out. Patches of one patient are alike; drawing patients and not patches keeps the interval honest. See
    `draw_units`; `folds` as for `percentile_interval`.
    """
    drawn = _resampled_mean(values, draw_units(units, resamples, seed))
    return percentile_interval(drawn, float(nan_mean(values, axis=None)), folds)


def resampled_metrics(labels: np.ndarray, predictions: Predictions, draws: Draws) -> dict[str, np.ndarray]:
    """Compute the metrics of one method in every bootstrap sample.

    A sample in which a class has no positive patch (or, for AUROC, no negative one) leaves it out of the mean over
    classes, as `metrics.point_metrics` does; macro F1 leaves out only classes without any known label.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0, 1, or NaN where not known.
    predictions : Predictions
        For the same patches.
    draws : Draws
        R bootstrap samples of these patches.

    Returns
    -------
    dict of str to ndarray
        The HEADLINES (R,), and `accuracy` and `ap` of each class (R, N); NaN where a sample leaves one undefined.
    """
    known = ~np.isnan(labels)
    truth, decisions = labels == 1, predictions.decisions.astype(bool) & known
    accuracy = resampled_means(agreement(labels, predictions.decisions), draws)
    exact = np.where(known.any(axis=1), all_right(labels, predictions.decisions), np.nan)
    # F1 = 2 TP / (2 TP + FP + FN); the denominator is the number of positives plus the number predicted
    hits = draws.counts @ unit_sums(truth & decisions, draws.unit)
    total = draws.counts @ (unit_sums(truth, draws.unit) + unit_sums(decisions, draws.unit))
    ap, areas = _resampled_ranking(labels, predictions.scores, draws)
    return {
        "mAcc": nan_mean(accuracy),
        "mAP": nan_mean(ap),
        "macro_f1": nan_mean(np.where(known.any(axis=0), 2 * hits / np.maximum(total, 1), np.nan)),
        "micro_f1": 2 * hits.sum(axis=1) / np.maximum(total.sum(axis=1), 1),
        "auroc": nan_mean(areas),
        "exact_match": resampled_means(exact[:, None], draws)[:, 0],
        "accuracy": accuracy,
        "ap": ap,
    }


def evaluate(
    labels: np.ndarray,
    predictions: Predictions,
    classes: list[str],
    units: np.ndarray,
    resamples: int,
    seed: int,
    folds: int = 1,
) -> dict:
    """Return what `metrics.json` holds of one method: the metrics of `metrics.point_metrics`, and their intervals.

    Parameters
    ----------
    labels, predictions, classes
        As for `metrics.point_metrics`.
    units : ndarray of shape (B,)
        What the bootstrap draws: the group of each patch, or its own number where groups are not known.
    resamples, seed : int
        Of the bootstrap; see `draw_units`.
    folds : int
        Of the cross-validation that the predictions come from; 1 for a single split.

    Beside each of the HEADLINES is its 95% percentile interval, `mAcc_ci` and so on, as [low, high]; in `per_class`
    also `accuracy_ci` and `ap_ci`. None where the metric is not defined.

    Examples
    --------
    >>> import numpy as np
    >>> from histoclip_lib import evaluate
    >>> from histoclip_lib.common.predictions import from_probabilities
    >>> labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    >>> predictions = from_probabilities(np.abs(labels - 0.2))
    >>> found = evaluate(labels, predictions, ["tumor", "stroma"], units=np.arange(4), resamples=100, seed=0)
    >>> found["mAcc"]
    1.0
    """
    resampled = resampled_metrics(labels, predictions, draw_units(units, resamples, seed))
    points = point_metrics(labels, predictions, classes)
    per_class = {
        name: {
            **values,
            **{f"{key}_ci": _as_json(resampled[key][:, k], values[key], folds) for key in ("accuracy", "ap")},
        }
        for k, (name, values) in enumerate(points.pop("per_class").items())
    }
    scored = {}
    for key in HEADLINES:
        scored[key], scored[f"{key}_ci"] = points[key], _as_json(resampled[key], points[key], folds)
    return scored | {"per_class": per_class}


def proper_scores(
    labels: np.ndarray, probabilities: np.ndarray, units: np.ndarray, resamples: int, seed: int, folds: int = 1
) -> dict:
    """Return `cross_entropy` and `brier` of probabilities (B, N), with their intervals, for `metrics.json`.

    Both are means over all known labels, and lowest in expectation for the true probabilities (Gneiting and Raftery,
    Strictly proper scoring rules, prediction, and estimation, JASA 102, 2007). Other arguments as for `evaluate`.

    Raises
    ------
    HistoCLIPError
        If a value is not a probability.
    """
    losses = {"cross_entropy": log_losses(labels, probabilities), "brier": (probabilities - labels) ** 2}
    draws, found = draw_units(units, resamples, seed), {}
    for name, values in losses.items():
        found[name] = float(np.nanmean(values))
        found[f"{name}_ci"] = _as_json(_resampled_mean(values, draws), found[name], folds, (0.0, np.inf))
    return found


def _as_json(
    values: np.ndarray, point: float | None, folds: int, bounds: tuple[float, float] = SHARE
) -> list[float] | None:
    low, high = percentile_interval(values, point, folds, bounds)
    return None if point is None or np.isnan(low) else [low, high]


def compare(
    labels: np.ndarray,
    first: Predictions,
    second: Predictions,
    units: np.ndarray,
    resamples: int,
    seed: int,
    folds: int = 1,
) -> Comparison:
    """Compare two methods on the same patches.

    Both are resampled with the same draws, and the percentiles of the difference give its interval. The permutation
    test asks how often a difference as large, in either direction, comes up when the outputs of the two methods are
    swapped for a random half of the units. For mAP the scores of each method and class are first replaced by their
    ranks: one method's scores mean nothing on the other's scale, and average precision depends on their order only.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    first, second : Predictions
        For the same patches.
    units : ndarray of shape (B,)
        What is drawn and swapped as a whole.
    resamples, seed : int
        Bootstrap samples, and permutations for mAP; for mAcc there are PERMUTATIONS. With EXACT_UNITS or fewer units
        all swaps are tried.
    folds : int
        Of the cross-validation that the predictions come from; 1 for a single split.

    References
    ----------
    Smucker, Allan and Carterette, A comparison of statistical significance tests for information retrieval
    evaluation, CIKM 2007 (Fisher's paired randomisation test); Phipson and Smyth, Permutation p-values should never be
    zero, Statistical Applications in Genetics and Molecular Biology 9(1), 2010 (the 1 in p = (1 + hits) / (1 +
    permutations)).
    """
    macc, draws = accuracy_gap(labels, first, second, units, resamples, seed, folds), draw_units(units, resamples, seed)
    present = (labels == 1).any(axis=0)
    if not present.any():
        return Comparison(macc, Difference(np.nan, np.nan, np.nan))
    labels, scores = labels[:, present], [method.scores[:, present] for method in (first, second)]
    one, other = (nan_mean(_resampled_ranking(labels, values, draws)[0]) for values in scores)
    value, p = _precision_gap(labels, *scores, draws.unit, resamples, seed, stretch(folds))
    return Comparison(macc, Difference(value, *percentile_interval(one - other, value, folds), p))


def accuracy_gap(
    labels: np.ndarray,
    first: Predictions,
    second: Predictions,
    units: np.ndarray,
    resamples: int,
    seed: int,
    folds: int = 1,
) -> Difference:
    """Return the half of `compare` that is on mAcc, with the same arguments; it takes far less time."""
    gaps = agreement(labels, first.decisions) - agreement(labels, second.decisions)
    drawn, shares = nan_mean(resampled_means(gaps, draw_units(units, resamples, seed))), accuracy_shares(gaps)
    value, p = float(shares.mean()), float(mean_gap_p(shares[:, None], units, seed, folds)[0])
    return Difference(value, *percentile_interval(drawn, value, folds), p)


def accuracy_shares(cells: np.ndarray) -> np.ndarray:
    """Return what each patch adds to mAcc, shape (B,), so that the mean over patches is the mean over classes.

    `cells` (B, N) are 1 where a label is right, or differences of these, and NaN where it is not known: a class counts
    as much as another, however few of its labels are known.
    """
    known = (~np.isnan(cells)).sum(axis=0)
    return (np.nan_to_num(cells) / np.maximum(known, 1)).sum(axis=1) * len(cells) / max((known > 0).sum(), 1)


def mean_gap_p(gaps: np.ndarray, units: np.ndarray, seed: int, folds: int = 1) -> np.ndarray:
    """Return the two-sided p (K,) of K mean paired differences, by flipping the sign of whole units.

    `gaps` (B, K) are the first method minus the second, of each patch; `units` (B,) are what is flipped as a whole;
    `seed` is that of the PERMUTATIONS, `folds` as for `compare`.
    """
    _, unit = np.unique(units, return_inverse=True)
    sums = unit_sums(gaps, unit)
    observed, n_extreme = np.abs(sums.sum(axis=0)), np.zeros(sums.shape[1])
    flips = _flips(len(sums), PERMUTATIONS, seed)
    for block in blocks(len(flips), len(sums)):
        permuted = stretch(folds) * np.abs((1.0 - 2.0 * flips[block]) @ sums)
        n_extreme += (permuted >= observed - 1e-9).sum(axis=0)  # equal sums may differ in their last digit
    return (1 + n_extreme) / (1 + len(flips))


def pairwise_gaps(values: np.ndarray, units: np.ndarray, seed: int, folds: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean paired difference of every two columns of values (B, K), and its p after Holm's correction.

    Both have shape (K, K), that of the row minus that of the column, and NaN on the diagonal. Other arguments as for
    `mean_gap_p`.
    """
    differences, p = np.full((2, values.shape[1], values.shape[1]), np.nan)
    first, second = np.triu_indices(values.shape[1], 1)
    if len(first):
        gaps = values[:, first] - values[:, second]
        differences[first, second], differences[second, first] = gaps.mean(axis=0), -gaps.mean(axis=0)
        p[first, second] = p[second, first] = holm(mean_gap_p(gaps, units, seed, folds))
    return differences, p


def smallest_p(units: np.ndarray) -> float:
    """Return the p below which a permutation test cannot fall for want of units; 0 where that is less than 0.001.

    Besides no swap, the swap of all units gives as large a difference, with the other sign. In a cross-validation more
    swaps count as extreme; how many depends on how the units differ, so that no higher bound holds.
    """
    p = 2 * 0.5 ** len(np.unique(units))
    return p if p >= 0.001 else 0.0


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p values (K,) for their number; NaN stays NaN and does not count.

    References
    ----------
    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    adjusted, defined = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    ascending = defined[np.argsort(p[defined])]
    factors = len(ascending) - np.arange(len(ascending))
    adjusted[ascending] = np.minimum(np.maximum.accumulate(factors * p[ascending]), 1)
    return adjusted


def _precision_gap(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    unit: np.ndarray,
    permutations: int,
    seed: int,
    factor: float = 1.0,
) -> tuple[float, float]:
    """Return the difference in mAP of scores (B, N), every class with a positive, and the p of its permutation test.

    The ranks of both methods lie in one pool of 2 B entries, sorted once. A permutation takes one of the two entries
    of each patch for the first method and leaves the other to the second.
    """
    by_class = []
    for k, known in enumerate(~np.isnan(labels).T):
        ranks = np.concatenate([rankdata(scores[known, k]) for scores in (first, second)])
        truth, entries = np.tile(labels[known, k], 2), np.flatnonzero(np.tile(known, 2))
        by_class.append((entries, truth, ranks, *cut_counts(truth, ranks, np.ones((1, len(ranks)), np.int32))))
    flips = np.concatenate([np.zeros((1, unit.max() + 1), bool), _flips(unit.max() + 1, permutations, seed)])
    gaps = np.zeros(len(flips))
    for block in blocks(len(flips), 2 * len(labels)):
        swapped = flips[block][:, unit]
        mine = np.concatenate([~swapped, swapped], axis=1).astype(np.int32)
        for entries, truth, ranks, all_hits, all_called in by_class:
            hits, called = cut_counts(truth, ranks, mine[:, entries])
            gaps[block] += average_precision(hits, called) - average_precision(all_hits - hits, all_called - called)
    gaps /= len(by_class)
    return float(gaps[0]), float(np.mean(factor * np.abs(gaps) >= np.abs(gaps[0]) - 1e-12))  # gaps[0]: the 1 + in p


def _flips(n_units: int, permutations: int, seed: int) -> np.ndarray:
    """Return which units are swapped in each permutation, bool (P, U); all swaps but the empty one where few."""
    if n_units <= EXACT_UNITS:
        return (np.arange(1, 2**n_units)[:, None] >> np.arange(n_units) & 1).astype(bool)
    return np.random.default_rng(seed).integers(0, 2, (permutations, n_units), dtype=bool)


def _resampled_ranking(labels: np.ndarray, scores: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Return average precision and AUROC of each class in every bootstrap sample, both (R, N)."""
    ap, areas = (np.full((len(draws.counts), labels.shape[1]), np.nan) for _ in range(2))
    known = ~np.isnan(labels)
    for block in blocks(len(draws.counts), len(labels)):
        weights = draws.counts[block][:, draws.unit]
        for k in np.flatnonzero(known.any(axis=0)):
            own = np.flatnonzero(known[:, k])
            counts = cut_counts(labels[own, k], scores[own, k], weights if len(own) == len(labels) else weights[:, own])
            ap[block, k], areas[block, k] = average_precision(*counts), auroc(*counts)
    return ap, areas


def resampled_means(values: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the mean of the known, not NaN, in each column of values (B, K) in every bootstrap sample, (R, K)."""
    sums, known = (unit_sums(part, draws.unit) for part in (np.nan_to_num(values), ~np.isnan(values)))
    with np.errstate(invalid="ignore"):
        return (draws.counts @ sums) / (draws.counts @ known)


def _resampled_mean(values: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the mean of all defined values (B,) or (B, N) in every bootstrap sample, (R,)."""
    cells = values.reshape(len(values), -1)
    sums = unit_sums(np.stack([np.nansum(cells, axis=1), (~np.isnan(cells)).sum(axis=1)], axis=1), draws.unit)
    with np.errstate(invalid="ignore"):
        return np.divide(*(draws.counts @ sums).T)


def unit_sums(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Sum each column of values (B, K) over the patches of each unit, (U, K)."""
    return np.stack([np.bincount(unit, weights=column) for column in values.T], axis=1)


def blocks(n: int, width: int) -> Iterator[slice]:
    """Divide n resamples of so many patches or units into parts of at most BLOCK_CELLS."""
    step = max(1, BLOCK_CELLS // width)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def percentile_interval(
    values: np.ndarray,
    point: float | None = None,
    folds: int = 1,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[float, float]:
    """Return the 95% percentile interval of the defined values (R,) of bootstrap samples; NaN if none is defined.

    With several folds it is stretched about the `point` estimate for their dependence, where there is one; the module
    says by how much, and why. It is then cut off at the `bounds`.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if folds > 1 and point is not None and not np.isnan(point):
        low, high = (point + stretch(folds) * (end - point) for end in (low, high))
    return float(max(low, bounds[0])), float(min(high, bounds[1]))


def stretch(folds: int) -> float:
    """Return by how much the folds of a cross-validation widen an interval; 1 for a single split."""
    return float(np.sqrt(1 + folds / (folds - 1))) if folds > 1 else 1.0


MIN_GROUPS = 5
# In simulations 95% intervals of mAcc and mAP held the truth in 86 and 76 of 100 data sets with 5 groups, in 90 and 88
# with 20, in 95 with 60.
ENOUGH_GROUPS = 40


def bootstrap_units(patches: PatchDataset, index: np.ndarray) -> np.ndarray:
    """Return what the bootstrap draws: the group of each patch, or the patch itself.

    Patches are drawn where groups are not known, and where there are fewer than MIN_GROUPS of them: an interval from so
    few would be narrow by chance, from a single one it would have no width.
    """
    if patches.groups is None or len(np.unique(patches.groups[index])) < MIN_GROUPS:
        return index
    return patches.groups[index]


def interval_note(patches: PatchDataset, val: np.ndarray, folds: int = 1) -> str:
    """Say in Markdown what the intervals resample, what the permutation tests swap, and what the folds add to both."""
    n_groups = 0 if patches.groups is None else len(np.unique(patches.groups[val]))
    if n_groups < MIN_GROUPS:
        counted = f"there {'is' if n_groups == 1 else 'are'} only {n_groups} group{'s' * (n_groups > 1)}"
        return (
            f"Intervals come from a bootstrap over patches, since {counted if n_groups else 'groups are not known'}: "
            "they are probably too narrow. The permutation tests also swap patches, so p is probably too small."
            + folds_note(folds)
        )
    of = "" if folds > 1 else " of the validation set"
    note = (
        f"Intervals come from a bootstrap over the {n_groups} groups{of}. The permutation tests swap the outputs of "
        "two methods for whole groups."
    )
    if n_groups < ENOUGH_GROUPS and folds == 1:
        note += " With so few groups, intervals are somewhat too narrow."
    if smallest := smallest_p(patches.groups[val]):
        note += f" No p can fall below {smallest:.2g}."
    return note + folds_note(folds)


def folds_note(folds: int) -> str:
    """Say in Markdown how intervals and tests account for the dependence of the folds; nothing for a single split."""
    if folds == 1:
        return ""
    return (
        f" The {folds} folds share training patches, so their errors are not independent: intervals are widened by a "
        f"factor of {stretch(folds):.2f} and p is corrected accordingly (Nadeau and Bengio, 2003)."
    )
