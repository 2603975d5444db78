"""Confusion between classes, where the errors lie, and whether one class is predicted because another is present."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import binomtest

from histoclip_lib.common.arrays import agreement
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.evaluation.uncertainty import LEVEL, draw_units, stretch, unit_sums

AREAS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)  # shares of a patch that a class covers, between which recall is counted
MIN_UNITS = 5  # fewer patients on either side of a comparison show no spread between patients


def confusion(labels: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """Return the 2x2 counts of each class, shape (N, 2, 2): rows truth, columns decision, order absent, present.

    Labels that are NaN, not known, are left out, here and below.
    """
    absent, present, decisions = labels == 0, labels == 1, decisions.astype(bool)
    cells = [[absent & ~decisions, absent & decisions], [present & ~decisions, present & decisions]]
    return np.moveaxis(np.array([[cell.sum(axis=0) for cell in row] for row in cells]), 2, 0)


def recall_by_area(labels: np.ndarray, decisions: np.ndarray, area: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Return how often a class is found, by the share of the patch that its mask covers.

    Parameters
    ----------
    labels, decisions : ndarray of shape (B, N)
        Truth, and what a method decides.
    area : ndarray of shape (B, N)
        Share of the patch that each class covers in the mask; NaN where there is no mask.
    classes : list of str
        N names.

    Returns
    -------
    DataFrame
        A line for each class, and for all together (`all classes`), and each of the AREAS with a patch: `class`,
        `area`, `present`, `found`, `recall` and its 95% interval by Wilson, `low` and `high`.

    References
    ----------
    Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
    """
    present, found = (labels == 1) & ~np.isnan(area), decisions.astype(bool)
    lines = []
    for name, columns in [("all classes", range(len(classes))), *((name, [k]) for k, name in enumerate(classes))]:
        own, hit, size = (values[:, list(columns)] for values in (present, found, area))
        for low, high in pairwise(AREAS):
            inside = own & (size >= low) & ((size < high) | (high == AREAS[-1]))
            if n := int(inside.sum()):
                interval = binomtest(k := int((inside & hit).sum()), n).proportion_ci(LEVEL, "wilson")
                lines.append((name, f"{low:.0%} to {high:.0%}", n, k, k / n, interval.low, interval.high))
    return pd.DataFrame(lines, columns=["class", "area", "present", "found", "recall", "low", "high"])


def rates_table(labels: np.ndarray, decisions: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Return sensitivity and specificity of each class as text, with 95% intervals by Wilson; see `recall_by_area`."""
    lines = {}
    for name, counts in zip(classes, confusion(labels, decisions), strict=True):
        sides = {"sensitivity": counts[1, ::-1], "specificity": counts[0]}
        lines[name] = {side: _share_text(*map(int, own)) for side, own in sides.items()}
    return pd.DataFrame.from_dict(lines, orient="index")


def _share_text(hits: int, others: int) -> str:
    if not hits + others:
        return "—"
    low, high = binomtest(hits, hits + others).proportion_ci(LEVEL, "wilson")
    return f"{hits / (hits + others):.3f} ({low:.3f} to {high:.3f}), {hits} of {hits + others}"


def predicted_when_missed(labels: np.ndarray, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which classes are wrongly predicted when one is missed.

    Returns
    -------
    rates : ndarray of shape (N, N + 1)
        Entry i, j: of the patches in which class i is missed, the fraction in which class j is predicted though absent;
        last column, the fraction in which no absent class is predicted. NaN for a class without misses.
    misses : ndarray of shape (N,)
        Number of misses of each class.
    """
    decisions = decisions.astype(bool)
    missed, invented = (labels == 1) & ~decisions, (labels == 0) & decisions
    misses = missed.sum(axis=0)
    counts = missed.astype(int).T @ np.column_stack([invented, ~invented.any(axis=1)]).astype(int)
    with np.errstate(invalid="ignore"):
        return counts / misses[:, None], misses


def multilabel_confusion(labels: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """Return the multi-label confusion matrix (MLCM) of Heydarian, Doyle and Samavi.

    Every label that is found counts on the diagonal. A missed label counts against each false positive in the same
    patch, and under "no predicted label" where there is none. Where nothing is missed, a false positive counts against
    every label of the patch, and under "no true label" where it has none.

    Parameters
    ----------
    labels, decisions : ndarray of shape (B, N)
        0 or 1.

    Returns
    -------
    ndarray of shape (N + 1, N + 1), int
        Rows truth, the last one "no true label"; columns prediction, the last one "no predicted label".

    References
    ----------
    Heydarian, Doyle and Samavi, MLCM: Multi-Label Confusion Matrix, IEEE Access 10, 2022. Their package `mlcm` 0.0.1
    departs from these three categories, in an order that depends on the class numbers, where a patch has a found, a
    missed and two invented labels; the package `mlcm-fixed` 0.1.0 does as we do.
    """
    absent, labels, decisions = labels == 0, labels == 1, decisions.astype(bool)
    missed, invented = labels & ~decisions, absent & decisions
    any_missed, any_invented, any_true = (part.any(axis=1, keepdims=True) for part in (missed, invented, labels))
    blamed = np.hstack([np.where(any_missed, missed, labels), ~any_true])
    unanswered = np.hstack([missed, ~any_true]) & ~any_invented
    matrix = np.column_stack([blamed.astype(int).T @ invented.astype(int), unanswered.sum(axis=0)])
    found = np.arange(labels.shape[1])
    matrix[found, found] += (labels & decisions).sum(axis=0)
    return matrix


def errors_by_group(labels: np.ndarray, decisions: np.ndarray, groups: np.ndarray | None) -> pd.DataFrame:
    """Return the errors in each group (patient or source image), the worst first.

    `labels` and `decisions` have shape (B, N), `groups` (B,). A line for each group: `patches`, `mAcc` within it,
    `error rate` = 1 - mAcc, and `share of errors`, its fraction of all wrong decisions.

    Raises
    ------
    HistoCLIPError
        If groups are not known.
    """
    if groups is None:
        raise HistoCLIPError("Errors by group need groups, and this data set has none. Leave this table out.")
    right = pd.DataFrame(agreement(labels, decisions)).groupby(np.asarray(groups), sort=True)
    table = pd.DataFrame({"patches": right.size(), "mAcc": right.mean().mean(axis=1)})
    table["error rate"] = 1 - table["mAcc"]
    wrong = (right.count() - right.sum()).sum(axis=1)
    table["share of errors"] = wrong / max(wrong.sum(), 1)
    return table.rename_axis("group").sort_values("error rate", ascending=False, kind="stable")


def errors_by_label_set(labels: np.ndarray, decisions: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Return the errors in patches with each set of labels, the most frequent set first.

    `labels` and `decisions` have shape (B, N). A line for each set of labels that occurs, in words: `patches`, `exact
    match`, `mAcc`, `most common wrong prediction` (in words, empty where none is wrong) and `patches with it`.
    """
    right = pd.DataFrame(agreement(labels, decisions))
    labels, decisions = labels == 1, decisions.astype(bool) & ~np.isnan(labels)
    sets, code = np.unique(np.concatenate([labels, decisions]), axis=0, return_inverse=True)
    words = np.array([" + ".join(np.array(classes, dtype=object)[row]) or "none" for row in sets], dtype=object)
    truth, answer = np.split(code.ravel(), 2)
    frame = pd.DataFrame({"truth": truth, "answer": answer, "exact": truth == answer})
    grouped = frame.groupby("truth")
    table = pd.DataFrame({"patches": grouped.size(), "exact match": grouped["exact"].mean()})
    table["mAcc"] = right.groupby(truth).mean().mean(axis=1)
    wrong = frame[~frame["exact"]].groupby(["truth", "answer"]).size().rename("n").reset_index()
    worst = wrong.sort_values("n", ascending=False, kind="stable").drop_duplicates("truth").set_index("truth")
    answers = pd.Series(words[worst["answer"]], index=worst.index, dtype=object)
    table["most common wrong prediction"] = answers.reindex(table.index).fillna("")
    table["patches with it"] = worst["n"].reindex(table.index).fillna(0).astype(int)
    table.index = pd.Index(words[table.index], name="labels")
    return table.sort_values("patches", ascending=False, kind="stable")


@dataclass(frozen=True, eq=False)
class CoOccurrenceBias:
    """How much more often class b is predicted where class a is present than where it is absent: entry [t, a, b].

    t is the truth about b: at 0 are the patches without b, and the gap is one of false positives; at 1 are those with
    b, and it is one of recall. NaN on the diagonal.

    Attributes
    ----------
    gaps : ndarray of shape (2, N, N)
        Rate at which b is predicted where a is present, less the rate where a is absent. NaN where either has no patch.
    low, high : ndarray of shape (2, N, N)
        The simultaneous 95% interval. NaN where either side has patches from fewer than MIN_UNITS units.
    rates : ndarray of shape (2, 2, N, N)
        The two rates; the second axis is the truth about a.
    counts : ndarray of shape (2, 2, N, N), int
        The patches that each rate is taken over.
    """

    gaps: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rates: np.ndarray
    counts: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Where the interval excludes 0, bool (2, N, N)."""
        return (self.low > 0) | (self.high < 0)


def co_occurrence_bias(
    labels: np.ndarray, decisions: np.ndarray, units: np.ndarray, resamples: int = 1000, seed: int = 0, folds: int = 1
) -> CoOccurrenceBias:
    """Test for every ordered pair of classes whether the presence of a changes how often b is predicted.

    A gap does not prove a cause: patches with a may be harder, or easier, in other ways.

    A rate of 0 or 1 in a few patches shows no spread and looks certain. The intervals are therefore those of Agresti
    and Caffo, who add one patch with b predicted and one without to both sides; that shifts the middle of an interval
    from the gap towards 0. Units are resampled whole, and the spread over the samples is the standard error wherever
    it exceeds the binomial one. The intervals hold for all 2 N (N - 1) gaps at once: their half-width is the standard
    error times the 95% quantile, over the samples, of the largest deviation in units of the spread.

    Parameters
    ----------
    labels, decisions : ndarray of shape (B, N)
        0 or 1.
    units, resamples, seed, folds
        Of the bootstrap; see `uncertainty.evaluate`.

    References
    ----------
    Agresti and Caffo, Simple and effective confidence intervals for proportions and differences of proportions, The
    American Statistician 54, 2000; Westfall and Young, Resampling-Based Multiple Testing, 1993 (the largest of all
    deviations, single-step).
    """
    decisions = decisions.astype(bool)
    draws, n_classes = draw_units(units, resamples, seed), labels.shape[1]
    drawn = draws.counts.astype(np.float32)  # exact for counts, and the product is fast
    counts, hits, n_units = (np.zeros((2, 2, n_classes, n_classes)) for _ in range(3))  # axes: truth of b, of a, a, b
    resampled = np.empty((resamples, 2, n_classes, n_classes))
    for b in range(n_classes):
        for t in (0, 1):
            of_b = (labels[:, b] == t)[:, None]
            cells = np.hstack([of_b & (labels == 0), of_b & (labels == 1)])  # without a, with a, for every a
            sums = unit_sums(np.hstack([cells, cells & decisions[:, [b]]]), draws.unit).astype(np.float32)
            n, k = sums.sum(axis=0).reshape(2, 2, n_classes)
            counts[t, :, :, b], hits[t, :, :, b] = n, k
            n_units[t, :, :, b] = (sums[:, : 2 * n_classes] > 0).sum(axis=0).reshape(2, n_classes)
            n, k = np.moveaxis((drawn @ sums).reshape(resamples, 2, 2, n_classes), 1, 0)
            resampled[:, t, :, b] = np.diff((k + 1) / (n + 2), axis=1)[:, 0]
    with np.errstate(invalid="ignore"):
        rates = hits / counts
    rates[:, :, *np.diag_indices(n_classes)] = np.nan  # a class is not compared with itself
    gaps = rates[:, 1] - rates[:, 0]
    tested = (n_units >= MIN_UNITS).all(axis=1) & ~np.isnan(gaps)
    low, high = np.full(gaps.shape, np.nan), np.full(gaps.shape, np.nan)
    low[tested], high[tested] = _simultaneous(hits, counts, resampled, tested, stretch(folds))
    return CoOccurrenceBias(gaps, low, high, rates, counts.astype(int))


def _simultaneous(
    hits: np.ndarray, counts: np.ndarray, resampled: np.ndarray, tested: np.ndarray, factor_of_folds: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the intervals, of shape (K,), of the K gaps to test."""
    rates = (hits + 1) / (counts + 2)
    middle, least = np.diff(rates, axis=1)[:, 0][tested], (rates * (1 - rates) / (counts + 2)).sum(axis=1)[tested]
    deviation, spread = np.abs(resampled[:, tested] - middle), resampled[:, tested].std(axis=0)
    in_spreads = deviation / np.where(spread > 0, spread, np.inf)  # a gap that never varies does not count
    factor = max(np.quantile(in_spreads.max(axis=1, initial=0), LEVEL), ndtri((1 + LEVEL) / 2))
    half = factor_of_folds * factor * np.maximum(spread, np.sqrt(least))
    return middle - half, middle + half


def bias_note(bias: CoOccurrenceBias, classes: list[str], name: str) -> str:
    """Say in Markdown which gap is the largest of those that are not chance, for the method called `name`."""
    tested = int((~np.isnan(bias.low)).sum())
    if not tested:
        return f"{name}: no difference can be tested: none has patches from {MIN_UNITS} groups or more on both sides."
    if not bias.found.any():
        return (
            f"{name}: none of {tested} differences is significant (simultaneous 95% intervals). This neither shows "
            "nor rules out that the prediction of one class depends on another."
        )
    t, a, b = np.unravel_index(np.nanargmax(np.where(bias.found, np.abs(bias.gaps), np.nan)), bias.gaps.shape)
    other, target = _as_text(classes[a]), _as_text(classes[b])
    among = f"patches without {target}, it is falsely predicted" if t == 0 else f"patches with {target}, it is found"
    (absent, present), (n_absent, n_present) = bias.rates[t, :, a, b], bias.counts[t, :, a, b]
    return (
        f"{name}: {int(bias.found.sum())} of {tested} differences exclude zero. The largest: among {among} in "
        f"{present:.0%} of {n_present} with {other} and in {absent:.0%} of {n_absent} without {other} "
        f"(difference {bias.gaps[t, a, b]:+.2f}, interval {bias.low[t, a, b]:+.2f} to {bias.high[t, a, b]:+.2f})."
    )


def _as_text(name: str) -> str:
    """Return a class name that Markdown shows literally: any of its characters could be markup."""
    return re.sub(r"[^\w\s]|_", lambda sign: f"&#{ord(sign[0])};", " ".join(name.split()))
