"""Thresholds that limit the false-negative rate of each class, on average over patients."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from histoclip_lib.common.arrays import nan_mean
from histoclip_lib.common.predictions import THRESHOLD, Predictions
from histoclip_lib.evaluation.methods import label_of
from histoclip_lib.evaluation.text import number_text, value_text
from histoclip_lib.evaluation.uncertainty import SHARE, Difference, Draws, percentile_interval, unit_sums

LEVELS = 1000  # thresholds that are tried, evenly from 0 to 1
DRAWS = 500  # random divisions of the units on which the promise is tried


def missed_shares(labels: np.ndarray, probabilities: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return the share of each unit's positive labels that a threshold misses, for each class and threshold.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    probabilities : ndarray of shape (B, N)
        For the same patches.
    units : ndarray of shape (B,)
        What is exchangeable: the group of each patch, or its own number.

    Returns
    -------
    ndarray of shape (U, N, LEVELS + 1)
        At the thresholds 0, 1 / LEVELS, ..., 1; NaN for a unit without the class. It never falls with the threshold.
    """
    _, unit = np.unique(units, return_inverse=True)
    n_units, n_classes = unit.max() + 1, labels.shape[1]
    level = np.floor(probabilities * LEVELS + 1e-9).astype(int)  # the highest threshold that the probability reaches
    cells = (unit[:, None] * n_classes + np.arange(n_classes)) * (LEVELS + 1) + level
    cells = cells[labels == 1]
    counts = np.bincount(cells, np.ones(len(cells)), n_units * n_classes * (LEVELS + 1))
    counts = counts.reshape(n_units, n_classes, LEVELS + 1)
    shares = counts.cumsum(axis=2)  # in place from here on: these arrays are large
    shares -= counts
    with np.errstate(invalid="ignore"):
        shares /= counts.sum(axis=2, keepdims=True)
    return shares


def risk_thresholds(shares: np.ndarray, alpha: float) -> np.ndarray:
    """Return the highest threshold of each class that keeps the promise, shape (N,).

    For a new unit with the class, exchangeable with the n units here, the expected share that is missed is at most
    alpha: the mean over n + 1 units, of which the new one misses everything, is. With fewer than 1 / alpha - 1 units
    nothing less than predicting the class always keeps it, and the threshold is 0.

    Parameters
    ----------
    shares : ndarray of shape (U, N, LEVELS + 1)
        As `missed_shares` returns.
    alpha : float
        Between 0 and 1.

    References
    ----------
    Angelopoulos, Bates, Fisch, Lei and Schuster, Conformal risk control, ICLR 2024, eq. (4) with B = 1.
    """
    return _highest(np.nansum(shares, axis=0), (~np.isnan(shares[:, :, 0])).sum(axis=0), alpha) / LEVELS


def _highest(missed: np.ndarray, counted: np.ndarray, alpha: float) -> np.ndarray:
    """Return the number of the highest level that keeps the promise, from sums (K, LEVELS + 1) over so many units."""
    bound = (missed + 1) / (counted[:, None] + 1)  # rising with the level
    return np.maximum((bound <= alpha + 1e-12).sum(axis=1) - 1, 0)


def promise_kept(shares: np.ndarray, alpha: float, seed: int = 0) -> np.ndarray:
    """Return the mean share that is missed, of each class (N,), in a fifth of the units by thresholds of the others.

    The units are divided at random DRAWS times. NaN for a class that no fifth has.
    """
    generator, fit = np.random.default_rng(seed), np.zeros((DRAWS, len(shares)))
    for own in fit:
        own[generator.permutation(len(shares))[: len(shares) * 4 // 5]] = 1
    kept = np.empty(shares.shape[1])
    for k, of_class in enumerate(np.moveaxis(shares, 1, 0)):
        of_class = of_class[~np.isnan(of_class[:, 0])]  # (u, LEVELS + 1)
        inside = fit[:, ~np.isnan(shares[:, k, 0])]  # (DRAWS, u)
        at = _highest(inside @ of_class, inside.sum(axis=1), alpha)  # (DRAWS,)
        missed = ((1 - inside) * of_class[:, at].T).sum(axis=1)
        with np.errstate(invalid="ignore"):
            kept[k] = nan_mean(missed / (1 - inside).sum(axis=1))
    return kept


def risk_table(
    fitted_on: tuple[np.ndarray, np.ndarray],
    out_of_fold: dict[str, np.ndarray],
    labels: np.ndarray,
    methods: dict[str, Predictions],
    classes: list[str],
    draws: Draws,
    alpha: float,
    seed: int,
) -> pd.DataFrame:
    """Return the thresholds, what they miss and what they cost, as text: a line for each method and class.

    Parameters
    ----------
    fitted_on : (ndarray of shape (T, N), ndarray of shape (T,))
        Labels and units of the training set.
    out_of_fold : dict of str to ndarray of shape (T, N)
        Probabilities of the training patches by models that have not seen their group, by method.
    labels : ndarray of shape (B, N)
        Of the validation set.
    methods : dict of str to Predictions
        For the validation set; those in `out_of_fold` are shown.
    classes : list of str
        N names.
    draws : Draws
        Bootstrap samples of the validation set.
    alpha, seed
        The share that may be missed; of the divisions.

    In a cross-validation both parts are all patches with their out-of-fold probabilities: only the last column is then
    on patches that the thresholds were not fitted on.
    """
    lines, (train_labels, train_units) = {}, fitted_on
    for name, probabilities in out_of_fold.items():
        shares = missed_shares(train_labels, probabilities, train_units)
        cuts, tried = risk_thresholds(shares, alpha), promise_kept(shares, alpha, seed=seed)
        scores = methods[name].scores
        for k, class_name in enumerate(classes):
            line = {"threshold": number_text(cuts[k]), "groups": int((~np.isnan(shares[:, k, 0])).sum())}
            for rule, cut in (("", cuts[k]), (" at 0.5", THRESHOLD)):
                called = scores[:, k] >= cut
                line[f"FNR{rule}"] = value_text(_mean_of_units(~called, labels[:, k] == 1, draws))
                line[f"FPR{rule}"] = value_text(_mean_of_units(called, labels[:, k] == 0, draws))
            lines[label_of(name), class_name] = line | {"FNR in held-out fifths": number_text(tried[k])}
    return pd.DataFrame.from_dict(lines, orient="index")


def _mean_of_units(wrong: np.ndarray, counted: np.ndarray, draws: Draws) -> Difference:
    """Return the mean over units of the share of their counted patches that are wrong, with its bootstrap interval."""
    sums = unit_sums(np.stack([wrong & counted, counted], axis=1), draws.unit)
    there = sums[:, 1] > 0
    if not there.any():
        return Difference(np.nan, np.nan, np.nan)
    shares, counts = sums[there, 0] / sums[there, 1], draws.counts[:, there]
    value = float(shares.mean())
    with np.errstate(invalid="ignore"):
        return Difference(value, *percentile_interval(counts @ shares / counts.sum(axis=1), value, draws.folds, SHARE))


def risk_note(alpha: float, n_units: int) -> str:
    """Say in Markdown what the thresholds promise, and what the promise rests on."""
    note = (
        "For a new group (or patch, if groups are unknown or very few) from the same source, the expected "
        f"false-negative rate of each class is at most {100 * alpha:g}%. "
        "This holds on average over groups and over the choice of training groups, not for every single group and not "
        "for another hospital. The thresholds come from out-of-fold predictions of models fitted on fewer patches than "
        "the final model; the last column of the table shows how well the guarantee holds."
    )
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    if n_units < needed:
        note += f" With only {n_units} groups a class must always be predicted; {needed} or more are needed."
    return note
