"""mAcc of eq. (6) and the metrics reported with it."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support, roc_auc_score

from histoclip_lib.common.arrays import all_right, nan_mean
from histoclip_lib.common.html import as_typed
from histoclip_lib.common.predictions import Predictions, mean_accuracy
from histoclip_lib.evaluation.methods import short_label


def point_metrics(labels: np.ndarray, predictions: Predictions, classes: list[str]) -> dict:
    """Return every metric of one method; `uncertainty.evaluate` adds the intervals.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0, 1, or NaN where not known: such cells count in no metric.
    predictions : Predictions
        For the same patches.
    classes : list of str
        N names.

    Returns
    -------
    dict
        `mAcc`, `mAP`, `macro_f1`, `micro_f1`, `auroc`, `exact_match` (whether all known labels of a patch are right)
        and `per_class`, there with `n`, the known labels. Means over classes leave out those for which a metric is not
        defined: without a known label, for `mAP` and `auroc` without a positive patch, and for `auroc` without a
        negative one. None if it is defined for no class.
    """
    scores, decisions, known = predictions.scores, predictions.decisions, ~np.isnan(labels)
    per_class = {
        name: _class_metrics(*(values[known[:, k], k] for values in (labels, scores, decisions)))
        for k, name in enumerate(classes)
    }
    return {
        "mAcc": mean_accuracy(labels, decisions),
        "mAP": _mean([values["ap"] for values in per_class.values()]),
        "macro_f1": _mean([values["f1"] for values in per_class.values()]),
        "micro_f1": float(f1_score(labels[known], decisions[known], zero_division=0)) if known.any() else None,
        "auroc": _mean([values["auroc"] for values in per_class.values()]),
        "exact_match": float(nan_mean(np.where(known.any(axis=1), all_right(labels, decisions), np.nan))),
        "per_class": per_class,
    }


CLASS_METRICS = ("accuracy", "ap", "auroc", "precision", "recall", "f1", "prevalence", "predicted")


def _class_metrics(labels: np.ndarray, scores: np.ndarray, decisions: np.ndarray) -> dict[str, float | None]:
    if not len(labels):
        return dict.fromkeys(CLASS_METRICS) | {"n": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(labels, decisions, average="binary", zero_division=0)
    has_positive, has_negative = bool(labels.any()), not labels.all()
    return {
        "accuracy": float((labels == decisions).mean()),
        "ap": float(average_precision_score(labels, scores)) if has_positive else None,
        "auroc": float(roc_auc_score(labels, scores)) if has_positive and has_negative else None,
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "prevalence": float(labels.mean()),
        "predicted": float(decisions.mean()),
        "n": len(labels),
    }


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def cut_counts(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count, for many weightings of the same patches, what a cut at each distinct score calls present.

    The patches are sorted once. With T distinct scores, entry t counts the patches at or above the t-th highest.

    Parameters
    ----------
    labels : ndarray of shape (B,)
        0 or 1, of one class.
    scores : ndarray of shape (B,)
        Of the same class.
    weights : ndarray of shape (R, B), int
        How often each patch counts.

    Returns
    -------
    hits, called : ndarray of shape (R, T), of the type of `weights`
        The positive patches called present, and all of them.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    weights = weights[:, order]
    hits = np.cumsum(weights * labels[order].astype(weights.dtype), axis=1, dtype=weights.dtype)
    called = np.cumsum(weights, axis=1, dtype=weights.dtype)
    return hits[:, last_of_tie], called[:, last_of_tie]


def average_precision(hits: np.ndarray, called: np.ndarray) -> np.ndarray:
    """Return the average precision (R,) from `cut_counts`, as scikit-learn defines it; NaN without a positive."""
    gains = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore"):
        return (gains * (hits / np.maximum(called, 1))).sum(axis=1) / hits[:, -1]


def auroc(hits: np.ndarray, called: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve (R,) from `cut_counts`; NaN without a positive or a negative.

    A tie between a positive and a negative patch counts one half: the trapezoidal rule.
    """
    false_calls = np.diff(called - hits, axis=1, prepend=0)
    hits_before = np.pad(hits[:, :-1], ((0, 0), (1, 0)))
    pairs = hits[:, -1].astype(float) * (called - hits)[:, -1]
    with np.errstate(invalid="ignore"):
        return (false_calls * ((hits + hits_before) / 2)).sum(axis=1) / pairs


def ranking_note(methods: dict[str, Predictions], labels: np.ndarray, classes: list[str]) -> str:
    """Name in Markdown the classes whose patches a strategy ranks below the others: an AUROC below 0.5.

    Parameters
    ----------
    methods : dict of str to Predictions
        Of the strategies, for the same B patches.
    labels : ndarray of shape (B, N)
        0, 1, or NaN where not known.
    classes : list of str
        N names.
    """
    below: dict[str, list[str]] = {}
    for name, own in methods.items():
        areas = point_metrics(labels, own, classes)["per_class"]
        for label in classes:
            if (area := areas[label]["auroc"]) is not None and area < 0.5:
                below.setdefault(label, []).append(f"{short_label(name)} {area:.2f}")
    if not below:
        return "No strategy ranks a class below chance (AUROC 0.5)."
    listed = "; ".join(f"**{as_typed(label)}** ({', '.join(said)})" for label, said in below.items())
    return f"Classes ranked below chance (AUROC below 0.5), with the AUROC of each such strategy: {listed}."
