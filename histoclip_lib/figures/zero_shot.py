"""Pictures of prompts and of the four zero-shot strategies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.figures.base import described, heat_map, short_names
from histoclip_lib.metrics import Predictions


def similarity_map(similarity: np.ndarray, names: list[str]) -> Figure:
    """Draw the cosines of the class embeddings with each other, shape (N, N)."""
    figure, axes = plt.subplots(figsize=(1.1 * len(names) + 2.6, 0.8 * len(names) + 1.6))
    heat_map(axes, similarity, short_names(names), short_names(names), "cosine", min(0.0, float(similarity.min())), 1)
    listed = "; ".join(f"{names[i]} and {names[j]} {similarity[i, j]:.2f}" for i in range(len(names)) for j in range(i))
    return described(figure, f"Heat map of the cosine between class embeddings. {listed}.")


def score_distributions(rows: dict[str, Predictions], labels: np.ndarray, classes: list[str]) -> Figure:
    """Draw each row's scores for patches with and without each class, against its decision threshold, 0.

    Parameters
    ----------
    rows : dict of str to Predictions
        Scores of shape (B, N), positive where the class is chosen.
    labels : ndarray of shape (B, N)
        0 or 1.
    classes : list of str
        N names.
    """
    columns = 2
    lines = -(-len(rows) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(5.5 * columns, (0.6 * len(classes) + 1) * lines), sharey=True, squeeze=False
    )
    names, listed = short_names(classes), []
    for axes, (row, predictions) in zip(grid.flat, rows.items(), strict=False):
        frame = pd.DataFrame(
            {
                "class": np.tile(names, len(labels)),
                "score": predictions.scores.ravel(),
                "truth": np.where(labels.ravel() == 1, "present", "absent"),
            }
        )
        sns.boxplot(
            frame, y="class", x="score", hue="truth", hue_order=["absent", "present"], fliersize=1, linewidth=0.9,
            order=names, legend=axes is grid.flat[0], ax=axes,
        )  # fmt: skip
        axes.axvline(0, color="0.2", lw=1.2, ls="--")
        axes.set(title=row, ylabel="", xlabel="")
        medians = frame.groupby(["class", "truth"], sort=False)["score"].median()
        listed.append(row + ": " + ", ".join(f"{name} {truth} {v:.3f}" for (name, truth), v in medians.items()))
    figure.tight_layout()
    return described(figure, f"Box plots of zero-shot scores. Medians: {'; '.join(listed)}.")
