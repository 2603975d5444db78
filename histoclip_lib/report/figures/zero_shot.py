"""Pictures of prompts and of the four zero-shot strategies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.prompting.sensitivity import AS_REPORTED, METRICS, SINGLE_TEMPLATE, SYNONYMS
from histoclip_lib.report.figures.base import CLASS_COLOURS, described, heat_map, short_names


def similarity_map(similarity: np.ndarray, names: list[str]) -> Figure:
    """Draw the cosines of the class embeddings with each other, shape (N, N)."""
    cell = min(1.1, 6 / len(names))  # inches: with many classes the cells shrink, for a page shrinks a wider figure
    figure, axes = plt.subplots(figsize=(cell * len(names) + 2.6, 0.75 * cell * len(names) + 1.6))
    heat_map(axes, similarity, short_names(names), short_names(names), "cosine", min(0.0, float(similarity.min())), 1)
    if cell < 0.75:
        plt.setp([*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()], fontsize=7)
    listed = "; ".join(f"{names[i]} and {names[j]} {similarity[i, j]:.2f}" for i in range(len(names)) for j in range(i))
    return described(figure, f"Heat map of the cosine between class embeddings. {listed}.")


def score_distributions(rows: dict[str, Predictions], labels: np.ndarray, classes: list[str]) -> Figure:
    """Draw each row's scores for patches with and without each class, against its decision threshold, 0.

    Parameters
    ----------
    rows : dict of str to Predictions
        By readable name: scores of shape (B, N), positive where the class is chosen.
    labels : ndarray of shape (B, N)
        0 or 1.
    classes : list of str
        N names.
    """
    columns = 2
    lines = -(-len(rows) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(5.5 * columns, (0.6 * len(classes) + 1) * lines + 0.4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
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
        said = ", ".join(f"{name} {truth} {value:.3f}" for (name, truth), value in medians.items())
        listed.append(f"{row}: {said}")
    inside = grid.flat[0].get_legend()
    figure.legend(inside.legend_handles, ["absent", "present"], loc="outside upper center", ncols=2, frameon=False)
    inside.remove()
    return described(figure, f"Box plots of zero-shot scores. Medians: {'; '.join(listed)}.")


def prompt_spread(table: pd.DataFrame) -> Figure:
    """Draw mAcc and mAP of every choice of words as a dot, a line for each strategy; a diamond is the row as reported.

    Parameters
    ----------
    table : DataFrame
        As in `prompt_sensitivity.Variants`.
    """
    strategies = list(dict.fromkeys(table["strategy"]))
    tried = [kind for kind in (SINGLE_TEMPLATE, SYNONYMS) if kind in set(table["kind"])]
    figure, panels = plt.subplots(1, 2, figsize=(7.5, 0.62 * len(strategies) + 1.3), sharey=True, layout="constrained")
    for axes, metric in zip(panels, METRICS, strict=True):
        sns.stripplot(
            table[table["kind"].isin(tried)], y="strategy", x=metric, order=strategies, hue="kind", hue_order=tried,
            palette=[CLASS_COLOURS[0], CLASS_COLOURS[1]][: len(tried)], dodge=True, jitter=False, size=5, alpha=0.65,
            legend=False, ax=axes,
        )  # fmt: skip
        reported = table[table["kind"] == AS_REPORTED]
        places = [strategies.index(strategy) for strategy in reported["strategy"]]
        axes.plot(reported[metric], places, "D", color="0.15", ms=7)
        axes.set(ylabel="")
        axes.margins(x=0.06)
    marks = [plt.Line2D([], [], marker="D", color="0.15", ls="", ms=7, label=AS_REPORTED)]
    marks += [
        plt.Line2D([], [], marker="o", color=colour, ls="", ms=5, label=kind)
        for kind, colour in zip(tried, CLASS_COLOURS, strict=False)
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=10, frameon=False)
    listed = "; ".join(
        f"{strategy}, {kind}: "
        + ", ".join(f"{metric} {_span(part[metric])}" for metric in METRICS if part[metric].notna().any())
        for (strategy, kind), part in table.groupby(["strategy", "kind"], sort=False)
    )
    return described(figure, f"Strip plot of mAcc and mAP by strategy and words. {listed}.")


def _span(values: pd.Series) -> str:
    return f"{values.min():.3f}" if len(values) == 1 else f"{values.min():.3f} to {values.max():.3f} ({len(values)})"
