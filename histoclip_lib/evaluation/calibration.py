"""Calibration of probabilities: temperature and thresholds fitted out of fold, and what they change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit

from histoclip_lib.common.arrays import nan_mean
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import (
    THRESHOLD,
    Predictions,
    apply_temperature,
    cross_entropy,
    from_probabilities,
    log_losses,
    logits_of,
)
from histoclip_lib.evaluation.methods import label_of
from histoclip_lib.evaluation.metrics import cut_counts, point_metrics
from histoclip_lib.evaluation.text import number_text
from histoclip_lib.evaluation.uncertainty import bootstrap_interval

BINS = 15  # as Guo et al. 2017
TEMPERATURES = (0.2, 20.0)  # without bounds, a few separable patches would ask for no temperature at all
OBJECTIVES = {"accuracy": "mAcc", "f1": "macro F1"}  # what a threshold may be fitted for, and the metric it serves
CHANCE_DRAWS = 100
ENSEMBLE, MEMBERS = "histoclip_ensemble", ("linear_probe", "histoclip_patch")


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was fitted on the out-of-fold probabilities of one method.

    `temperature` divides every logit; it is above 1 where the method is overconfident. `thresholds` are, for each of
    the OBJECTIVES, the calibrated probabilities (N,) from which each class is predicted. `platt` are the slope and the
    intercept of each class (N, 2), see `fit_platt`.
    """

    temperature: float
    thresholds: dict[str, np.ndarray]
    platt: np.ndarray

    def calibrate(self, probabilities: np.ndarray) -> np.ndarray:
        """Return probabilities (B, N) at the fitted temperature; their order within a class stays."""
        return apply_temperature(probabilities, self.temperature)

    def cut(self) -> np.ndarray:
        """Return the thresholds (N,) for accuracy as probabilities before calibration: they decide alike."""
        thresholds = self.thresholds["accuracy"]
        inner = expit(logit(np.clip(thresholds, 0, 1)) * self.temperature)
        return np.where(thresholds > 1, thresholds, inner)

    def platt_scaled(self, probabilities: np.ndarray) -> np.ndarray:
        """Return probabilities (B, N) with the fitted slope and intercept of each class applied to their logits."""
        return expit(logits_of(probabilities) * self.platt[:, 0] + self.platt[:, 1])

    def predict(self, probabilities: np.ndarray, objective: str = "accuracy") -> Predictions:
        """Calibrate probabilities (B, N) and decide at the thresholds fitted for one of the OBJECTIVES."""
        calibrated = self.calibrate(probabilities)
        return Predictions(calibrated, calibrated >= self.thresholds[objective])


@dataclass(frozen=True, eq=False)
class FoldCalibrations:
    """What was fitted inside each fold of a cross-validation, used like one `Calibration` on the patches of all folds.

    Attributes
    ----------
    fits : list of Calibration
        One for each fold.
    fold : ndarray of shape (B,), int
        Which of them applies to each patch.
    """

    fits: list[Calibration]
    fold: np.ndarray

    @property
    def temperature(self) -> float:
        """The geometric mean over the folds."""
        return float(np.exp(np.mean([np.log(fit.temperature) for fit in self.fits])))

    @property
    def thresholds(self) -> dict[str, np.ndarray]:
        """The mean over the folds."""
        return {name: np.mean([fit.thresholds[name] for fit in self.fits], axis=0) for name in OBJECTIVES}

    def calibrate(self, probabilities: np.ndarray) -> np.ndarray:
        """Return probabilities (B, N), each at the temperature of its fold."""
        return self._of_its_fold([fit.calibrate(probabilities) for fit in self.fits])

    def platt_scaled(self, probabilities: np.ndarray) -> np.ndarray:
        """Return probabilities (B, N), each with the slope and intercept of its fold."""
        return self._of_its_fold([fit.platt_scaled(probabilities) for fit in self.fits])

    def predict(self, probabilities: np.ndarray, objective: str = "accuracy") -> Predictions:
        """Calibrate probabilities (B, N) and decide, each at the thresholds of its fold."""
        calibrated = self.calibrate(probabilities)
        cuts = np.stack([fit.thresholds[objective] for fit in self.fits])
        return Predictions(calibrated, calibrated >= cuts[self.fold])

    def _of_its_fold(self, values: list[np.ndarray]) -> np.ndarray:
        return np.stack(values)[self.fold, np.arange(len(self.fold))]


def fit_calibration(labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Fit temperature and Platt scaling, then the thresholds on the probabilities at that temperature.

    Parameters
    ----------
    labels, probabilities : ndarray of shape (B, N)
        Of the training set, the probabilities out of fold (cross-validation by group).

    Raises
    ------
    HistoCLIPError
        If the shapes differ or a value is not a probability.
    """
    if labels.shape != probabilities.shape:
        raise HistoCLIPError(
            f"Labels have shape {labels.shape}, probabilities {probabilities.shape}. Give both for the same patches."
        )
    temperature = fit_temperature(labels, probabilities)
    calibrated = apply_temperature(probabilities, temperature)
    thresholds = {objective: fit_thresholds(labels, calibrated, objective) for objective in OBJECTIVES}
    return Calibration(temperature, thresholds, fit_platt(labels, probabilities))


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the one temperature that minimises the binary cross-entropy of all classes together.

    One for all classes, since a few hundred patches hold too few examples of a rare class: fitted on halves of the
    validation sets of CoNSeP and the demo, one for each class did worse on the other half with every method tried.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0, 1, or NaN where not known, which is left out, here and below. A class that is always or never present says
        nothing about confidence and is left out.
    probabilities : ndarray of shape (B, N)
        Sigmoid outputs; 0 and 1 are taken as FINEST away from it.

    Returns
    -------
    float
        Within TEMPERATURES; 1 where nothing is gained, as with no class left or all probabilities at 0.5.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger, On calibration of modern neural networks, ICML 2017, section 4.2.
    """
    usable = ~np.isnan(labels) & (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
    if not usable.any():
        return 1.0
    logits = logits_of(probabilities[usable])
    margins = np.where(labels[usable] == 1, logits, -logits)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margins / np.exp(log_temperature)).mean())  # convex in 1 / T: one minimum

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def fit_platt(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the slope and the intercept of each class, shape (N, 2), that minimise its binary cross-entropy.

    The targets are Platt's, (P + 1) / (P + 2) for the P patches with the class and 1 / (Q + 2) for the Q without, so
    that a class that can be separated keeps a finite slope. A class that is always or never present keeps slope 1 and
    intercept 0. Where a method ranks a class worse than chance its slope is negative, which reverses the order.

    Parameters
    ----------
    labels, probabilities : ndarray of shape (B, N)
        As for `fit_calibration`.

    References
    ----------
    Platt, Probabilistic outputs for support vector machines, Advances in Large Margin Classifiers, 1999.
    """
    fitted, logits, known = np.tile([1.0, 0.0], (labels.shape[1], 1)), logits_of(probabilities), ~np.isnan(labels)
    positives, total = (labels == 1).sum(axis=0), known.sum(axis=0)
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (total - positives + 2))
    for k in np.flatnonzero((positives > 0) & (positives < total)):

        def loss(
            line: np.ndarray, x: np.ndarray = logits[known[:, k], k], y: np.ndarray = targets[known[:, k], k]
        ) -> tuple:
            scores = line[0] * x + line[1]
            errors = expit(scores) - y
            return (np.logaddexp(0, scores) - y * scores).sum(), np.array([errors @ x, errors.sum()])

        fitted[k] = minimize(loss, fitted[k], jac=True, method="BFGS").x  # convex
    return fitted


def fit_thresholds(labels: np.ndarray, probabilities: np.ndarray, objective: str = "accuracy") -> np.ndarray:
    """Return the best threshold of each class for an objective; a class is predicted where p >= threshold.

    Whole intervals of thresholds do equally well, since no probability lies within them. The one nearest to 0.5 is
    taken, to depart from eq. (6) no more than the training set asks for; its middle is the threshold.

    Parameters
    ----------
    labels, probabilities : ndarray of shape (B, N)
        As for `fit_calibration`.
    objective : str
        `accuracy` (its mean over classes is mAcc, the paper's metric) or `f1`, which does not reward the common answer.

    Returns
    -------
    ndarray of shape (N,)
        From 0 to 1, and just above 1 where it is best never to predict a class whose probability reaches 1. A class
        that is never present has no F1 and keeps 0.5 for it, one without a known label keeps 0.5 for both.
    """
    known = ~np.isnan(labels)
    return np.array(
        [_best_threshold(labels[own, k], probabilities[own, k], objective) for k, own in enumerate(known.T)]
    )


def _best_threshold(labels: np.ndarray, probabilities: np.ndarray, objective: str) -> float:
    """Return the threshold of one class, both arguments of shape (B,)."""
    positives = int(labels.sum())
    if not len(labels) or (objective == "f1" and not positives):
        return THRESHOLD
    hits, called = (
        np.append(0, counts[0])  # first of all, the cut above every patch
        for counts in cut_counts(labels, probabilities, np.ones((1, len(labels)), dtype=np.int64))
    )
    quality = 2 * hits - called if objective == "accuracy" else 2 * hits / (called + positives)
    # Cut t predicts the t highest distinct values; its thresholds lie above the next lower one, up to their lowest
    values = np.unique(probabilities)[::-1].astype(np.float64)
    ceiling = 1.0 if values[0] < 1 else np.nextafter(1.0, 2.0)
    upper, lower = np.append(ceiling, values), np.append(values, 0.0)
    best = np.pad(quality == quality.max(), 1).astype(int)
    starts, ends = np.flatnonzero(np.diff(best) == 1), np.flatnonzero(np.diff(best) == -1) - 1
    high, low = upper[starts], lower[ends]  # neighbours that do equally well are one interval
    distance = np.maximum(0, np.maximum(low - THRESHOLD, THRESHOLD - high))
    chosen = np.lexsort((low - high, distance))[0]  # nearest to one half, then the widest
    middle = (low[chosen] + high[chosen]) / 2
    return float(middle if middle > low[chosen] else high[chosen])  # the lower end itself would predict one value more


@dataclass(frozen=True, eq=False)
class Reliability:
    """Patches by their probability, in bins of equal width; arrays of shape (N, bins).

    `counts` of patches, their mean probability `predicted`, and the fraction `observed` in which the class is present;
    NaN in an empty bin.
    """

    counts: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> Reliability:
    """Bin labels and probabilities (B, N) by probability; a bin holds its upper edge, the first also 0."""
    n_classes = labels.shape[1]
    bin_of = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities)  # the edges of calibration_curve
    known = ~np.isnan(labels)
    cell = (bin_of + bins * np.arange(n_classes))[known]
    counts, predicted, observed = (
        np.bincount(cell, weights, n_classes * bins).reshape(n_classes, bins)
        for weights in (None, probabilities[known], labels[known])
    )
    with np.errstate(invalid="ignore"):
        return Reliability(counts, predicted / counts, observed / counts)


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the expected calibration error of each class, shape (N,); NaN for one without a known label.

    The mean over patches of how far the mean probability of their bin lies from the fraction that is present. Few
    patches in a bin raise it by chance alone: compare it with `chance_calibration_error`. (Naeini, Cooper and
    Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.)
    """
    binned = reliability(labels, probabilities, bins)
    gaps = np.nan_to_num(np.abs(binned.predicted - binned.observed))
    with np.errstate(invalid="ignore"):
        return (binned.counts * gaps).sum(axis=1) / binned.counts.sum(axis=1)


def chance_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the error (N,) that these probabilities (B, N) would show on average if they were perfectly calibrated.

    Where labels are known, they are drawn from the probabilities CHANCE_DRAWS times (Bröcker and Smith, Increasing the
    reliability of reliability diagrams, Weather and Forecasting 22, 2007).
    """
    generator, known = np.random.default_rng(0), ~np.isnan(labels)
    draws = (
        np.where(known, generator.random(probabilities.shape) < probabilities, np.nan) for _ in range(CHANCE_DRAWS)
    )
    return np.mean([expected_calibration_error(drawn, probabilities) for drawn in draws], axis=0)


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the mean squared error of the probabilities of each class, shape (N,) (Brier 1950)."""
    return nan_mean((probabilities - labels) ** 2, axis=0)


def threshold_table(
    labels: np.ndarray, methods: dict[str, Predictions], calibrations: dict[str, Calibration], classes: list[str]
) -> pd.DataFrame:
    """Return mAcc, macro F1 and exact match at 0.5 and at fitted thresholds, and these thresholds, as text.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1, of the validation set.
    methods : dict of str to Predictions
        For the same patches; their scores are probabilities. Those in `calibrations` are shown.
    calibrations : dict of str to Calibration
        Fitted on the training set.
    classes : list of str
        N names.
    """
    columns = {}
    for method, calibration in calibrations.items():
        scores = methods[method].scores
        rules = {"at 0.5": (from_probabilities(scores), np.full(len(classes), THRESHOLD))}
        for objective, metric in OBJECTIVES.items():
            rules[f"fitted for {metric}"] = calibration.predict(scores, objective), calibration.thresholds[objective]
        for rule, (predictions, cuts) in rules.items():
            points = point_metrics(labels, predictions, classes)
            columns[label_of(method), rule] = {
                "mAcc": f"{points['mAcc']:.3f}",
                "macro F1": f"{points['macro_f1']:.3f}",
                "exact match": f"{points['exact_match']:.3f}",
                **{f"threshold, {name}": f"{cut:.2f}" for name, cut in zip(classes, cuts, strict=True)},
            }
    return pd.DataFrame(columns)


def calibration_table(
    labels: np.ndarray, methods: dict[str, Predictions], calibrations: dict[str, Calibration], classes: list[str]
) -> pd.DataFrame:
    """Return cross-entropy, Brier score and expected calibration error (ECE) before and after calibration, as text.

    Stages are the probabilities as they are, at the fitted temperature, and with Platt scaling of each class.

    `ECE by chance` is what perfectly calibrated probabilities would show on as many patches. Arguments as for
    `threshold_table`.
    """
    columns = {}
    for method, calibration in calibrations.items():
        scores = methods[method].scores
        stages = {"uncalibrated": scores, f"T = {calibration.temperature:.2f}": calibration.calibrate(scores)}
        stages["Platt"] = calibration.platt_scaled(scores)
        for stage, probabilities in stages.items():
            errors, brier = expected_calibration_error(labels, probabilities), brier_score(labels, probabilities)
            columns[label_of(method), stage] = {
                "cross-entropy": f"{cross_entropy(labels, probabilities):.3f}",
                "Brier score": f"{np.nanmean((probabilities - labels) ** 2):.3f}",
                "ECE": number_text(nan_mean(errors)),
                "ECE by chance": number_text(nan_mean(chance_calibration_error(labels, probabilities))),
                **{f"ECE, {name}": number_text(value) for name, value in zip(classes, errors, strict=True)},
                **{f"Brier score, {name}": number_text(value) for name, value in zip(classes, brier, strict=True)},
            }
    return pd.DataFrame(columns)


def temperature_note(calibrations: dict[str, Calibration]) -> str:
    """Say in Markdown which temperatures were fitted and what they mean."""
    listed = "; ".join(f"{label_of(method)}: T = {fit.temperature:.2f}" for method, fit in calibrations.items())
    return (
        "One temperature for all classes was fitted by cross-entropy on out-of-fold probabilities of the training set; "
        f"in cross-validation, values are means over the folds. {listed}. T above 1 means that the method is "
        "overconfident, T below 1 that it is underconfident. A temperature changes neither the ranking of the patches "
        "nor any decision at 0.5; Platt scaling, with a slope and an intercept for each class, can change decisions."
    )


def ensemble_note(
    labels: np.ndarray, methods: dict[str, Predictions], units: np.ndarray, resamples: int, seed: int, folds: int = 1
) -> str:
    """Say in Markdown whether the mean of head and probe has a lower cross-entropy than each of the two.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0, 1, or NaN where not known, of the validation set.
    methods : dict of str to Predictions
        With ENSEMBLE and its two MEMBERS, whose scores are probabilities.
    units, resamples, seed
        Of the bootstrap; see `uncertainty.evaluate`.
    """
    losses = {name: log_losses(labels, methods[name].scores) for name in (ENSEMBLE, *MEMBERS)}
    said = []
    for name in MEMBERS:
        gaps = losses[ENSEMBLE] - losses[name]
        low, high = bootstrap_interval(gaps, units, resamples, seed, folds)
        order = "lower than" if high < 0 else "higher than" if low > 0 else "not significantly different from"
        said.append(f"{order} that of *{label_of(name)}* ({np.nanmean(gaps):+.3f}, {low:+.3f} to {high:+.3f})")
    return (
        f"Averaging the probabilities of head and probe gives a cross-entropy of {np.nanmean(losses[ENSEMBLE]):.3f}, "
        f"{' and '.join(said)}. Brackets hold the difference and its 95% interval, without calibration."
    )
