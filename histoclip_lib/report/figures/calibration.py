"""Figures of how far probabilities can be trusted, and of what other thresholds would change."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import beta
from sklearn.metrics import average_precision_score, precision_recall_curve

from histoclip_lib.common.predictions import THRESHOLD, Predictions
from histoclip_lib.evaluation.calibration import Calibration, Reliability, expected_calibration_error, reliability
from histoclip_lib.report.figures.base import (
    class_colour,
    described,
    figure,
    listed,
    method_colour,
    panel_grid,
    wrapped,
)

FEW_BINS, MANY_BINS, MANY_PATCHES = 5, 10, 1000  # a point should stand for some patches
DASHES = ("-", "--", "-.", ":")
CUTS = np.arange(101) / 100  # thresholds


@figure
def reliability_diagrams(
    labels: np.ndarray,
    methods: dict[str, Predictions],
    calibrations: dict[str, Calibration],
    classes: list[str],
    names: dict[str, str],
) -> Figure:
    """Draw how often each class is present where it is given a probability, before and after temperature.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1, of the validation set.
    methods : dict of str to Predictions
        For the same patches; their scores are probabilities. Those in `calibrations` are drawn.
    calibrations : dict of str to Calibration
        Fitted on the training set.
    classes : list of str
        N names.
    names : dict of str to str
        Labels of the methods.
    """
    bins, n_methods = (MANY_BINS if len(labels) >= MANY_PATCHES else FEW_BINS), len(calibrations)
    columns = n_methods * min(len(classes), max(1, 4 // n_methods))
    drawn, panels = _panels(len(classes) * n_methods, columns, 1.85, "mean probability", "fraction present")
    said = []
    for number, (method, calibration) in enumerate(calibrations.items()):
        colour, scores = method_colour(method), methods[method].scores
        stages = [(scores, "0.45", "white"), (calibration.calibrate(scores), colour, colour)]
        errors = [expected_calibration_error(labels, probabilities) for probabilities, *_ in stages]
        for k, (name, axes) in enumerate(zip(classes, panels[number::n_methods], strict=True)):
            axes.plot([0, 1], [0, 1], color="0.5", lw=1, ls="--", zorder=0)
            for probabilities, edge, face in stages:
                _reliability_points(axes, reliability(labels[:, [k]], probabilities[:, [k]], bins), edge, face)
            before, after = (error[k] for error in errors)
            title = f"{wrapped(name, 26)}\n{wrapped(names[method], 26)}\nECE {before:.2f} → {after:.2f}"
            axes.set_title(title, fontsize=8)
            said.append(f"{name}, {names[method]}: {before:.3f} and {after:.3f}")
    panels[0].scatter([], [], 30, ["white"], edgecolors="0.45", label="as it is")
    panels[0].scatter([], [], 30, ["0.2"], label="with temperature, and 95% interval")
    drawn.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return described(
        drawn,
        f"Reliability diagrams: fraction present against mean probability in {bins} bins, the area of a point by the "
        f"number of patches. Expected calibration error before and after temperature: {'; '.join(said)}.",
        f"Calibration on {len(labels):,} held-out patches, before and after temperature scaling. Points below the "
        "diagonal are overconfident: the class is present less often than predicted; points above are underconfident.",
    )


def _reliability_points(axes: Axes, binned: Reliability, edge: object, face: object) -> None:
    """Draw one class at one stage; the filled one of the two stages gets the Jeffreys interval of each fraction."""
    filled = binned.counts[0] > 0
    x, y, n = (values[0, filled] for values in (binned.predicted, binned.observed, binned.counts))
    axes.plot(x, y, color=edge, lw=1, ls=":" if face == "white" else "-", zorder=1)
    axes.scatter(x, y, 8 + 120 * n / n.sum(), [face], edgecolors=[edge], linewidths=1, zorder=3)
    if face != "white":
        low, high = beta.ppf([[0.025], [0.975]], n * y + 0.5, n * (1 - y) + 0.5)
        axes.vlines(x, low, high, color=edge, lw=1, alpha=0.6)


@figure
def precision_recall_curves(
    labels: np.ndarray,
    methods: dict[str, Predictions],
    calibrations: dict[str, Calibration],
    classes: list[str],
    names: dict[str, str],
) -> Figure:
    """Draw precision against recall of each class, with the points at which the methods decide.

    A dot is the decision of the method as it is, for a trained one p >= 0.5. A cross is the threshold fitted for
    accuracy, for methods in `calibrations`. Dashed: the prevalence, which a method without any skill reaches.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    methods : dict of str to Predictions
        All of them are drawn.
    calibrations, classes, names
        As for `reliability_diagrams`.
    """
    columns = 2 if len(classes) in (2, 4) else min(3, len(classes))
    drawn, panels = _panels(len(classes), columns, 2.5, "recall", "precision")
    fitted = {
        name: calibrations[name].predict(methods[name].scores).decisions for name in methods.keys() & calibrations
    }
    styles = {name: DASHES[number % len(DASHES)] for number, name in enumerate(methods)}
    said = []
    for k, (axes, name) in enumerate(zip(panels, classes, strict=True)):
        own = ~np.isnan(labels[:, k])
        truth = labels[own, k]
        if not truth.any():
            axes.set_title(f"{wrapped(name, 30)}\nno positive patch", fontsize=9)
            said.append(f"{name}: no positive patch")
            continue
        values = []
        for method, predictions in methods.items():
            colour = method_colour(method)
            precision, recall, _ = precision_recall_curve(truth, predictions.scores[own, k])
            axes.plot(recall, precision, styles[method], color=colour, lw=1.4, drawstyle="steps-post")
            _mark(axes, truth, predictions.decisions[own, k], "o", colour)
            if method in fitted:
                _mark(axes, truth, fitted[method][own, k], "X", colour)
            values.append(average_precision_score(truth, predictions.scores[own, k]))
        axes.axhline(truth.mean(), color="0.4", lw=1, ls=(0, (5, 4)), zorder=0)
        axes.set_title(f"{wrapped(name, 30)}\nAP {' / '.join(f'{value:.2f}' for value in values)}", fontsize=9)
        shown = listed([names[method] for method in methods], values, 3)
        said.append(f"{name} (prevalence {truth.mean():.2f}): {shown}")
    for method, style in styles.items():
        panels[0].plot([], [], style, color=method_colour(method), label=wrapped(names[method]))
    panels[0].plot([], [], "o", color="0.3", label="as decided")
    if fitted:
        panels[0].plot([], [], "X", color="0.3", label="at the fitted threshold")
    drawn.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return described(
        drawn,
        f"Precision-recall curves of each class. Average precision: {'; '.join(said)}.",
        f"Precision and recall on {len(labels):,} held-out patches; AP in the order of the legend. A curve near the "
        "dashed line, the prevalence, ranks no better than chance.",
    )


def _mark(axes: Axes, truth: np.ndarray, decisions: np.ndarray, marker: str, colour: tuple) -> None:
    """Mark precision and recall of decisions (B,); there is no precision where nothing is predicted."""
    if decisions.any():
        hits = (decisions & (truth == 1)).sum()
        axes.plot(hits / truth.sum(), hits / decisions.sum(), marker, color=colour, ms=7, mec="white", zorder=4)


def _panels(number: int, columns: int, side: float, x_label: str, y_label: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with square panels from 0 to 1, each of about `side` inches."""
    drawn, panels = panel_grid(number, columns, side, side + 0.45, 0.6, layout="constrained")
    for axes in panels:
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
        axes.tick_params(labelsize=8)
    drawn.supxlabel(x_label, fontsize=10)
    drawn.supylabel(y_label, fontsize=10)
    return drawn, panels


@figure
def threshold_curves(labels: np.ndarray, scores: np.ndarray, classes: list[str]) -> Figure:
    """Draw the accuracy and the F1 of each class, and their means, at every threshold.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    scores : ndarray of shape (B, N)
        Probabilities; a class is present at or above the threshold.
    classes : list of str
        N names.
    """
    counts = at_or_above(labels, scores)  # (N, 2, T)
    (false, true), (absent, present) = np.moveaxis(counts, 1, 0), np.moveaxis(counts[:, :, :1], 1, 0)
    accuracy, f1 = (true + absent - false) / (absent + present), 2 * true / np.maximum(true + false + present, 1)
    drawn, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axes, curves, name, mean in ((panels[0], accuracy, "accuracy", "mAcc"), (panels[1], f1, "F1", "macro F1")):
        for k, own in enumerate(curves):
            axes.plot(CUTS, own, color=class_colour(k), ls=DASHES[k // 10 % len(DASHES)], lw=1.4)
        axes.plot(CUTS, curves.mean(axis=0), color="0.15", lw=2.6)
        axes.axvline(THRESHOLD, color="0.5", lw=1, ls=":")
        axes.set(title=f"{name}; thick: {mean}", xlabel="threshold", xlim=(0, 1), ylim=(-0.02, 1.02))
    drawn.tight_layout()
    drawn.legend(
        panels[0].lines[: len(classes)], [wrapped(name) for name in classes], loc="upper center",
        ncols=min(len(classes), 5), bbox_to_anchor=(0.5, 0.02), frameon=False,
    )  # fmt: skip
    at = np.searchsorted(CUTS, THRESHOLD)
    said = "; ".join(
        f"{name}: F1 {own[at]:.2f} at {THRESHOLD}, highest {own.max():.2f} at {CUTS[own.argmax()]:.2f}"
        for name, own in zip(classes, f1, strict=True)
    )
    return described(
        drawn,
        f"Accuracy and F1 of each class at every threshold. {said}.",
        f"Accuracy and F1 of each class on {len(labels):,} patches at every threshold. If a curve is flat around "
        f"{THRESHOLD}, the exact threshold matters little.",
    )


def at_or_above(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return how many patches without and with each class score at or above each cut, int, shape (N, 2, 101).

    These are CUTS; `labels` and `scores`, probabilities, have the shape (B, N).
    """
    cuts = CUTS.astype(scores.dtype)  # as `scores >= 0.13` compares
    sides = [[np.sort(own[truth == label]) for label in (0, 1)] for own, truth in zip(scores.T, labels.T, strict=True)]
    return np.array([[len(side) - np.searchsorted(side, cuts) for side in both] for both in sides])
