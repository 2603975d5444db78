"""mAcc of eq. (6) and the metrics that stand beside it, with intervals by bootstrap over groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support, roc_auc_score

THRESHOLD = 0.5  # sigma >= 0.5, eq. (6)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one row of the table says about B patches and N classes.

    Attributes
    ----------
    scores : ndarray of shape (B, N), float
        Higher means more likely; only their order counts, within a class.
    decisions : ndarray of shape (B, N), bool
        The labels that the row assigns.
    """

    scores: np.ndarray
    decisions: np.ndarray


def from_probabilities(probabilities: np.ndarray) -> Predictions:
    """Decide by sigma >= 0.5, eq. (6); the scores are the probabilities (B, N)."""
    return Predictions(probabilities, probabilities >= THRESHOLD)


def mean_accuracy(labels: np.ndarray, decisions: np.ndarray) -> float:
    """Return mAcc, eq. (6): the mean over classes of label-wise accuracy, both arguments of shape (B, N)."""
    return float((labels == decisions).mean(axis=0).mean())


def evaluate(
    labels: np.ndarray, predictions: Predictions, classes: list[str], units: np.ndarray, resamples: int, seed: int
) -> dict:
    """Return one row of `metrics.json`.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    predictions : Predictions
        For the same patches.
    classes : list of str
        N names.
    units : ndarray of shape (B,)
        What the bootstrap draws: the group of each patch, or its own number where groups are not known.
    resamples, seed : int
        Of the bootstrap; see `bootstrap_interval`.

    Returns
    -------
    dict
        `mAcc`, `mAcc_ci`, `mAP`, `macro_f1`, `micro_f1`, `auroc`, `exact_match` and `per_class`. `mAP` and `auroc`
        are means over the classes for which they are defined (both a positive and, for `auroc`, a negative patch);
        None where there is none.
    """
    scores, decisions = predictions.scores, predictions.decisions
    correct = labels == decisions
    per_class = {name: _class_metrics(labels[:, k], scores[:, k], decisions[:, k]) for k, name in enumerate(classes)}
    return {
        "mAcc": mean_accuracy(labels, decisions),
        "mAcc_ci": list(bootstrap_interval(correct.mean(axis=1), units, resamples, seed)),
        "mAP": _mean([values["ap"] for values in per_class.values()]),
        "macro_f1": float(f1_score(labels, decisions, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(labels, decisions, average="micro", zero_division=0)),
        "auroc": _mean([values["auroc"] for values in per_class.values()]),
        "exact_match": float(correct.all(axis=1).mean()),
        "per_class": per_class,
    }


def _class_metrics(labels: np.ndarray, scores: np.ndarray, decisions: np.ndarray) -> dict[str, float | None]:
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
    }


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def bootstrap_interval(
    values: np.ndarray, units: np.ndarray, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of a mean, by resampling whole units.

    Patches of one patient are alike; drawing patients and not patches keeps the interval honest.

    Parameters
    ----------
    values : ndarray of shape (B,)
        One value for each patch; their mean is the statistic.
    units : ndarray of shape (B,)
        The unit of each patch.
    resamples : int
        Number of bootstrap samples.
    seed : int
        Of the resampling.
    level : float
        Coverage aimed at.

    References
    ----------
    Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8 (the cluster bootstrap).
    """
    _, unit = np.unique(units, return_inverse=True)
    sizes = np.bincount(unit)
    sums = np.bincount(unit, weights=values)
    draws = np.random.default_rng(seed).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)
    means = (draws @ sums) / (draws @ sizes)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def confusion(labels: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """Return the 2x2 counts of each class, shape (N, 2, 2): rows truth, columns decision, order absent, present."""
    labels, decisions = labels.astype(bool), decisions.astype(bool)
    cells = [[~labels & ~decisions, ~labels & decisions], [labels & ~decisions, labels & decisions]]
    return np.moveaxis(np.array([[cell.sum(axis=0) for cell in row] for row in cells]), 2, 0)


def predicted_when_missed(labels: np.ndarray, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Say which classes are wrongly predicted when one is missed.

    Returns
    -------
    rates : ndarray of shape (N, N + 1)
        Row i: of the patches in which class i is present and missed, the fraction in which class j is predicted
        though absent; last column, the fraction in which no absent class is predicted. NaN in a row without misses.
    misses : ndarray of shape (N,)
        Number of misses of each class.
    """
    labels, decisions = labels.astype(bool), decisions.astype(bool)
    missed, invented = labels & ~decisions, ~labels & decisions
    misses = missed.sum(axis=0)
    counts = missed.astype(int).T @ np.column_stack([invented, ~invented.any(axis=1)]).astype(int)
    with np.errstate(invalid="ignore"):
        return counts / misses[:, None], misses
