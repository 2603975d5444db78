"""Predictions of a method for patches, and the loss and metric that judge them: eqs. (5) and (6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from histoclip_lib.common.arrays import agreement, nan_mean
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import element, histogram, html, table

THRESHOLD = 0.5  # sigma >= 0.5, eq. (6)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a method predicts for B patches and N classes.

    Attributes
    ----------
    scores : ndarray of shape (B, N), float
        Higher means more likely; only their order counts, within a class.
    decisions : ndarray of shape (B, N), bool
        The labels that the method assigns.
    """

    scores: np.ndarray
    decisions: np.ndarray

    def take(self, rows: np.ndarray) -> Predictions:
        """Return the predictions for the patches at `rows` (n,), positions or bool."""
        return Predictions(self.scores[rows], self.decisions[rows])

    def _repr_html_(self) -> str:
        """Show in a notebook how often each class is chosen and how its scores lie."""
        n_patches, n_classes = self.scores.shape
        lines = []
        for k, (scores, decisions) in enumerate(zip(self.scores.T, self.decisions.T, strict=True), 1):
            low, high, chosen = f"{scores.min():.3g}", f"{scores.max():.3g}", int(decisions.sum())
            shape = histogram(scores, f"scores of class {k}, from {low} to {high}")
            lines.append([f"class {k}", f"{chosen:,}", f"{chosen / n_patches:.1%}", low, shape, high])
        header = ["", "chosen", "fraction", "lowest", "scores", "highest"]
        return html(element("p", f"{n_patches:,} patches, {n_classes} classes"), table(header, lines))


def from_probabilities(probabilities: np.ndarray) -> Predictions:
    """Decide by sigma >= 0.5, eq. (6); the scores are the probabilities (B, N)."""
    return Predictions(probabilities, probabilities >= THRESHOLD)


def join_folds(held_out: list[np.ndarray], parts: list[Predictions]) -> Predictions:
    """Return the predictions of all folds as one, in ascending order of the patches.

    Parameters
    ----------
    held_out : list of ndarray of int
        The patches that each fold holds out; no patch twice.
    parts : list of Predictions
        For these.
    """
    order = np.argsort(np.concatenate(held_out))
    scores, decisions = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "decisions"))
    return Predictions(scores[order], decisions[order])


def mean_accuracy(labels: np.ndarray, decisions: np.ndarray) -> float:
    """Return mAcc, eq. (6): the mean over classes of label-wise accuracy, both arguments of shape (B, N).

    Labels that are NaN, not known, are left out, here and below.
    """
    return float(nan_mean(nan_mean(agreement(labels, decisions), axis=0)))


FINEST = 2.0**-24  # the step of float32 below 1: a sigmoid rounded to 0 or 1 counts as this far from it


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean binary cross-entropy over patches and classes; both arguments of shape (B, N)."""
    return float(np.nanmean(log_losses(labels, probabilities)))


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the binary cross-entropy of each patch and class, eq. (5), shape (B, N); NaN where the label is."""
    logits = logits_of(probabilities)
    return np.where(np.isnan(labels), np.nan, np.logaddexp(0, np.where(labels == 1, -logits, logits)))


def logits_of(probabilities: np.ndarray) -> np.ndarray:
    """Return the logits of probabilities, float64; 0 and 1 are taken as FINEST away from it."""
    low, high = float(probabilities.min()), float(probabilities.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise HistoCLIPError(
            f"Values from {low:g} to {high:g} are not probabilities. Calibrate sigmoid outputs, not cosines."
        )
    return logit(np.clip(probabilities.astype(np.float64), FINEST, 1 - FINEST))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits of probabilities (B, N) by a temperature; float64. No value crosses 0.5."""
    return expit(logits_of(probabilities) / temperature)
