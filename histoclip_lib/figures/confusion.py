"""Pictures of what is taken for what."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.figures.base import described, heat_map, short, short_names


def confusion_grid(matrices: np.ndarray, classes: list[str], row: str) -> Figure:
    """Draw the 2x2 confusion matrix of each class; `matrices` of shape (N, 2, 2) as `metrics.confusion` returns."""
    columns = min(5, len(classes))
    lines = -(-len(classes) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(2.5 * columns, 2.6 * lines), squeeze=False)
    for axes in grid.flat[len(classes) :]:
        axes.set_axis_off()
    for axes, matrix, name in zip(grid.flat, matrices, classes, strict=False):
        rates = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        text = np.array(
            [[f"{n}\n{r:.0%}" for n, r in zip(*line, strict=True)] for line in zip(matrix, rates, strict=True)]
        )
        sns.heatmap(
            rates, vmin=0, vmax=1, annot=text, fmt="", cmap="Blues", cbar=False, square=True, linewidths=1, ax=axes,
            xticklabels=["absent", "present"], yticklabels=["absent", "present"], annot_kws={"fontsize": 10},
        )  # fmt: skip
        axes.set_title(short(name))
        axes.tick_params(labelsize=9)
        axes.set_xlabel("predicted", fontsize=9)
        axes.set_ylabel("truth", fontsize=9)
    figure.tight_layout()
    listed = "; ".join(
        f"{name}: {m[1, 1]} found, {m[1, 0]} missed, {m[0, 1]} invented, {m[0, 0]} rightly absent"
        for name, m in zip(classes, matrices, strict=True)
    )
    return described(figure, f"Confusion matrix of each class for {row}. {listed}.")


def missed_class_map(rates: np.ndarray, misses: np.ndarray, classes: list[str]) -> Figure:
    """Draw the classes wrongly predicted when one is missed; see `metrics.predicted_when_missed`."""
    figure, axes = plt.subplots(figsize=(1.1 * len(classes) + 3.4, 0.75 * len(classes) + 1.4))
    rows = [f"{short(name)} (missed {count} times)" for name, count in zip(classes, misses, strict=True)]
    heat_map(axes, rates, rows, [*short_names(classes), "nothing"], "fraction of the misses", 0, 1)
    axes.set(xlabel="predicted though absent", ylabel="")
    listed = "; ".join(
        f"{row}: " + ", ".join(f"{c} {v:.2f}" for c, v in zip([*classes, "nothing"], line, strict=True) if v > 0)
        for row, line in zip(rows, rates, strict=True)
    )
    return described(figure, f"Heat map of what is predicted when a class is missed. {listed}.")
