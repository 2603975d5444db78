"""Figures of a data set's labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.common.arrays import nan_mean
from histoclip_lib.report.figures.base import described, figure, heat_map, listed, wrapped


@figure
def prevalence_bars(labels: np.ndarray, parts: dict[str, np.ndarray], classes: list[str]) -> Figure:
    """Draw how often each class is present in training and validation sets.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    parts : dict of str to ndarray of int
        Indices of the patches of each part, such as `train` and `validation`.
    classes : list of str
        N names.
    """
    sizes = ", ".join(f"{part} {len(index):,}" for part, index in parts.items())
    parts = {part: nan_mean(labels[index], axis=0) for part, index in parts.items()}
    frame = pd.DataFrame(
        [(wrapped(c), part, value[k]) for part, value in parts.items() for k, c in enumerate(classes)],
        columns=["class", "part", "prevalence"],
    )
    drawn, axes = plt.subplots(figsize=(7, (0.15 + 0.2 * len(parts)) * len(classes) + 1.2))
    sns.barplot(frame, y="class", x="prevalence", hue="part", ax=axes)
    axes.set(xlim=(0, 1), ylabel="", xlabel="fraction of patches in which the class is present")
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    sns.move_legend(axes, "lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(len(parts), 5), title="", frameon=False)
    said = "; ".join(
        f"{c} {' and '.join(f'{value[k]:.2f}' for value in parts.values())}" for k, c in enumerate(classes)
    )
    return described(
        drawn,
        f"Bar chart of class prevalence in {' and '.join(parts)}. {said}.",
        f"Fraction of the patches ({sizes}) in which each class is present. Bars of different length show a class that "
        "is unevenly split.",
    )


@figure
def co_occurrence_map(labels: np.ndarray, classes: list[str]) -> Figure:
    """Draw P(column class | row class); `labels` (B, N) as in `PatchDataset`, where both are known."""
    present, known = (labels == 1).astype(int), (~np.isnan(labels)).astype(int)
    with np.errstate(invalid="ignore", divide="ignore"):
        conditional = (present.T @ present) / (present.T @ known)
    drawn, axes = plt.subplots(figsize=(1.1 * len(classes) + 2.2, 0.8 * len(classes) + 1.4))
    heat_map(axes, conditional, classes, classes, "fraction", 0, 1)
    axes.set(xlabel="... this one is present too", ylabel="where this class is present ...")
    pairs = "; ".join(
        f"given {a}: {listed(np.delete(classes, i), np.delete(conditional[i], i))}" for i, a in enumerate(classes)
    )
    return described(
        drawn,
        f"Heat map of how often classes occur together. {pairs}.",
        f"Fraction of the patches with the class of the row that also have the class of the column "
        f"({len(labels):,} patches). If two classes nearly always occur together, a classifier can get one "
        "right by recognising the other.",
    )
