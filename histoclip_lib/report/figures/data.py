"""Pictures of a data set's labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.report.figures.base import described, heat_map, short, short_names


def prevalence_bars(labels: np.ndarray, train: np.ndarray, val: np.ndarray, classes: list[str]) -> Figure:
    """Draw how often each class is present in the training and the validation part.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
    train, val : ndarray of int
        Positions of the two parts.
    classes : list of str
        N names.
    """
    parts = {"train": labels[train].mean(axis=0), "validation": labels[val].mean(axis=0)}
    frame = pd.DataFrame(
        [(short(c), part, value[k]) for part, value in parts.items() for k, c in enumerate(classes)],
        columns=["class", "part", "prevalence"],
    )
    figure, axes = plt.subplots(figsize=(7, 0.55 * len(classes) + 1.2))
    sns.barplot(frame, y="class", x="prevalence", hue="part", ax=axes)
    axes.set(xlim=(0, 1), ylabel="", xlabel="fraction of patches in which the class is present")
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    sns.move_legend(axes, "lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, title="", frameon=False)
    listed = "; ".join(f"{c} {parts['train'][k]:.2f} and {parts['validation'][k]:.2f}" for k, c in enumerate(classes))
    return described(figure, f"Bar chart of class prevalence in train and validation. {listed}.")


def co_occurrence_map(labels: np.ndarray, classes: list[str]) -> Figure:
    """Draw P(column class | row class); `labels` of shape (B, N)."""
    counts = labels.astype(int).T @ labels.astype(int)
    with np.errstate(invalid="ignore", divide="ignore"):
        conditional = counts / np.diag(counts)[:, None]
    figure, axes = plt.subplots(figsize=(1.1 * len(classes) + 2.2, 0.8 * len(classes) + 1.4))
    heat_map(axes, conditional, short_names(classes), short_names(classes), "fraction", 0, 1)
    axes.set(xlabel="... this one is present too", ylabel="where this class is present ...")
    pairs = "; ".join(
        f"given {a}: " + ", ".join(f"{b} {conditional[i, j]:.2f}" for j, b in enumerate(classes) if j != i)
        for i, a in enumerate(classes)
    )
    return described(figure, f"Heat map of how often classes occur together. {pairs}.")
