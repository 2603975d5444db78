"""Pictures of how far probabilities can be believed, and of what other thresholds would do."""

from __future__ import annotations

import unicodedata

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import beta
from sklearn.metrics import average_precision_score, precision_recall_curve

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.evaluation.calibration import Calibration, Reliability, expected_calibration_error, reliability
from histoclip_lib.report.figures.base import CLASS_COLOURS, described, short, short_names

FEW_BINS, MANY_BINS, MANY_PATCHES = 5, 10, 1000  # a point should stand for some patches
LINES = ("-", "--", "-.", ":")


def reliability_diagrams(
    labels: np.ndarray,
    rows: dict[str, Predictions],
    calibrations: dict[str, Calibration],
    classes: list[str],
    names: dict[str, str],
) -> Figure:
    """Draw how often each class is present where it is given a probability, before and after temperature.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1, of the validation part.
    rows : dict of str to Predictions
        For the same patches; their scores are probabilities. Those in `calibrations` are drawn.
    calibrations : dict of str to Calibration
        Fitted on the training part.
    classes : list of str
        N names.
    names : dict of str to str
        Readable names of the rows.
    """
    bins, n_rows = (MANY_BINS if len(labels) >= MANY_PATCHES else FEW_BINS), len(calibrations)
    columns = n_rows * min(len(classes), max(1, 4 // n_rows))
    figure, panels = _panels(len(classes) * n_rows, columns, 1.85, "mean probability", "fraction present")
    listed = []
    for number, (row, calibration) in enumerate(calibrations.items()):
        colour, scores = CLASS_COLOURS[number % len(CLASS_COLOURS)], rows[row].scores
        stages = [(scores, "0.45", "white"), (calibration.calibrate(scores), colour, colour)]
        errors = [expected_calibration_error(labels, probabilities) for probabilities, *_ in stages]
        for k, (name, axes) in enumerate(zip(classes, panels[number::n_rows], strict=True)):
            axes.plot([0, 1], [0, 1], color="0.5", lw=1, ls="--", zorder=0)
            for probabilities, edge, face in stages:
                _reliability_points(axes, reliability(labels[:, [k]], probabilities[:, [k]], bins), edge, face)
            change = [error[k] for error in errors]
            title = f"{_fit(name, 26)}\n{_fit(names[row], 26)}\nECE {change[0]:.2f} → {change[1]:.2f}"
            axes.set_title(title, fontsize=8)
            listed.append(f"{name}, {names[row]}: {change[0]:.3f} and {change[1]:.3f}")
    panels[0].scatter([], [], 30, ["white"], edgecolors="0.45", label="as it is")
    panels[0].scatter([], [], 30, ["0.2"], label="at its temperature, with 95 % interval")
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return described(
        figure,
        f"Reliability diagrams: fraction present against mean probability in {bins} bins, the area of a point by the "
        f"number of patches. Expected calibration error before and after temperature: {'; '.join(listed)}.",
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


def precision_recall_curves(
    labels: np.ndarray,
    rows: dict[str, Predictions],
    calibrations: dict[str, Calibration],
    classes: list[str],
    names: dict[str, str],
) -> Figure:
    """Draw precision against recall of each class, with the points at which the rows decide.

    A dot is the decision that the row makes as it stands, for a trained row p >= 0.5. A cross is the threshold
    fitted for accuracy, for rows in `calibrations`. Dashed: the prevalence, which a row without any skill reaches.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    rows : dict of str to Predictions
        All of them are drawn.
    calibrations, classes, names
        As for `reliability_diagrams`.
    """
    columns = 2 if len(classes) in (2, 4) else min(3, len(classes))
    figure, panels = _panels(len(classes), columns, 2.5, "recall", "precision")
    fitted = {row: calibrations[row].predict(rows[row].scores).decisions for row in rows if row in calibrations}
    listed = []
    for k, (axes, name) in enumerate(zip(panels, classes, strict=True)):
        truth = labels[:, k]
        if not truth.any():
            axes.set_title(f"{_fit(name, 30)}\nno positive patch", fontsize=9)
            listed.append(f"{name}: no positive patch")
            continue
        values = []
        for number, (row, predictions) in enumerate(rows.items()):
            colour, style = CLASS_COLOURS[number % len(CLASS_COLOURS)], LINES[number % len(LINES)]
            precision, recall, _ = precision_recall_curve(truth, predictions.scores[:, k])
            axes.plot(recall, precision, style, color=colour, lw=1.4, drawstyle="steps-post")
            _mark(axes, truth, predictions.decisions[:, k], "o", colour)
            if row in fitted:
                _mark(axes, truth, fitted[row][:, k], "X", colour)
            values.append(average_precision_score(truth, predictions.scores[:, k]))
        axes.axhline(truth.mean(), color="0.4", lw=1, ls=(0, (5, 4)), zorder=0)
        axes.set_title(f"{_fit(name, 30)}\nAP {' / '.join(f'{value:.2f}' for value in values)}", fontsize=9)
        shown = ", ".join(f"{names[row]} {value:.3f}" for row, value in zip(rows, values, strict=True))
        listed.append(f"{name} (prevalence {truth.mean():.2f}): {shown}")
    for number, name in enumerate(short_names([names[row] for row in rows])):
        style = LINES[number % len(LINES)]
        panels[0].plot([], [], style, color=CLASS_COLOURS[number % len(CLASS_COLOURS)], label=name)
    panels[0].plot([], [], "o", color="0.3", label="as decided")
    if fitted:
        panels[0].plot([], [], "X", color="0.3", label="at the fitted threshold")
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return described(figure, f"Precision-recall curves of each class. Average precision: {'; '.join(listed)}.")


def _mark(axes: Axes, truth: np.ndarray, decisions: np.ndarray, marker: str, colour: tuple) -> None:
    """Mark precision and recall of decisions (B,); there is no precision where nothing is called."""
    if decisions.any():
        hits = (decisions & (truth == 1)).sum()
        axes.plot(hits / truth.sum(), hits / decisions.sum(), marker, color=colour, ms=7, mec="white", zorder=4)


def _panels(number: int, columns: int, side: float, x_label: str, y_label: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with square panels from 0 to 1, each of about `side` inches."""
    lines = -(-number // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(side * columns, (side + 0.45) * lines + 0.6), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[number:]:
        axes.set_axis_off()
    panels = list(grid.flat[:number])
    for axes in panels:
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
        axes.tick_params(labelsize=8)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    return figure, panels


def _fit(name: str, width: int) -> str:
    """Return a name that fits above a panel of so many letters; ideographs are twice as wide."""
    name, used = short(name), 0
    for position, sign in enumerate(name):
        used += 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        if used > width:
            return name[: position - 1] + "…"
    return name
