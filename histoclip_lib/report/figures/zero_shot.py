"""Figures of prompts and of the zero-shot strategies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.evaluation.text import state_text
from histoclip_lib.prompting.sensitivity import AS_REPORTED, METRICS, SINGLE_TEMPLATE, SYNONYMS
from histoclip_lib.report.figures.base import SERIES_COLOURS, described, figure, heat_map, panel_grid, wrapped


@figure
def similarity_map(similarity: np.ndarray, names: list[str]) -> Figure:
    """Draw the cosines of the class embeddings with each other, shape (N, N)."""
    cell = min(1.1, 6 / len(names))  # inches: with many classes the cells shrink, for a page shrinks a wider figure
    drawn, axes = plt.subplots(figsize=(cell * len(names) + 2.6, 0.75 * cell * len(names) + 1.6))
    heat_map(axes, similarity, names, names, "cosine", min(0.0, float(similarity.min())), 1)
    if cell < 0.75:
        plt.setp([*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()], fontsize=7)
    said = "; ".join(f"{names[i]} and {names[j]} {similarity[i, j]:.2f}" for i in range(len(names)) for j in range(i))
    return described(
        drawn,
        f"Heat map of the cosine between class embeddings. {said}.",
        f"Cosine similarity of the class embeddings of eq. (2), {len(names)} classes. A value close to 1 means that "
        "the text encoder hardly distinguishes the two names.",
    )


@figure
def score_distributions(methods: dict[str, Predictions], labels: np.ndarray, classes: list[str]) -> Figure:
    """Draw each strategy's scores for patches with and without each class, against its decision threshold, 0.

    Parameters
    ----------
    methods : dict of str to Predictions
        By label: scores of shape (B, N), positive where the class is chosen.
    labels : ndarray of shape (B, N)
        0 or 1.
    classes : list of str
        N names.
    """
    height = 0.6 * len(classes) + 1
    drawn, panels = panel_grid(len(methods), 2, 5.5, height, 0.4, sharey=True, layout="constrained")
    names, said = [wrapped(name) for name in classes], []
    for axes, (label, predictions) in zip(panels, methods.items(), strict=True):
        frame = pd.DataFrame(
            {
                "class": np.tile(names, len(labels)),
                "score": predictions.scores.ravel(),
                "truth": [state_text(label) for label in labels.ravel()],
            }
        )
        sns.boxplot(
            frame, y="class", x="score", hue="truth", hue_order=["absent", "present"], fliersize=1, linewidth=0.9,
            order=names, legend=axes is panels[0], ax=axes,
        )  # fmt: skip
        axes.axvline(0, color="0.2", lw=1.2, ls="--")
        axes.set(title=wrapped(label), ylabel="", xlabel="score")
        medians = frame.groupby(["class", "truth"], sort=False)["score"].median()
        said.append(f"{label}: " + ", ".join(f"{name} {truth} {value:.3f}" for (name, truth), value in medians.items()))
    inside = panels[0].get_legend()
    drawn.legend(inside.legend_handles, ["absent", "present"], loc="outside upper center", ncols=2, frameon=False)
    inside.remove()
    return described(
        drawn,
        f"Box plots of zero-shot scores. Medians: {'; '.join(said)}.",
        f"Zero-shot scores of {len(labels):,} patches with and without each class; to the right of the dashed line a "
        "class is predicted. A class is separated if its boxes do not overlap and lie on either side of the line.",
    )


@figure
def prompt_spread(table: pd.DataFrame) -> Figure:
    """Draw mAcc and mAP of every choice of words as a dot; a diamond is the strategy as reported.

    Parameters
    ----------
    table : DataFrame
        As in `prompt_sensitivity.Variants`.
    """
    strategies = list(dict.fromkeys(table["strategy"]))
    tried = [kind for kind in (SINGLE_TEMPLATE, SYNONYMS) if kind in set(table["kind"])]
    drawn, panels = plt.subplots(1, 2, figsize=(7.5, 0.62 * len(strategies) + 1.3), sharey=True, layout="constrained")
    for axes, metric in zip(panels, METRICS, strict=True):
        sns.stripplot(
            table[table["kind"].isin(tried)], y="strategy", x=metric, order=strategies, hue="kind", hue_order=tried,
            palette=SERIES_COLOURS[: len(tried)], dodge=True, jitter=False, size=5, alpha=0.65, legend=False, ax=axes,
        )  # fmt: skip
        reported = table[table["kind"] == AS_REPORTED]
        places = [strategies.index(strategy) for strategy in reported["strategy"]]
        axes.plot(reported[metric], places, "D", color="0.15", ms=7)
        axes.set(ylabel="")
        axes.margins(x=0.06)
    marks = [plt.Line2D([], [], marker="D", color="0.15", ls="", ms=7, label=AS_REPORTED)]
    marks += [
        plt.Line2D([], [], marker="o", color=colour, ls="", ms=5, label=kind)
        for kind, colour in zip(tried, SERIES_COLOURS, strict=False)
    ]
    drawn.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=10, frameon=False)
    said = "; ".join(
        f"{strategy}, {kind}: "
        + ", ".join(f"{metric} {_span(part[metric])}" for metric in METRICS if part[metric].notna().any())
        for (strategy, kind), part in table.groupby(["strategy", "kind"], sort=False)
    )
    return described(
        drawn,
        f"Strip plot of mAcc and mAP by strategy and words. {said}.",
        f"mAcc and mAP of {len(strategies)} strategies, with {len(table) - len(reported)} results for other wordings. "
        "The wider the dots spread, the more a strategy depends on the wording of the prompts.",
    )


def _span(values: pd.Series) -> str:
    return f"{values.min():.3f}" if len(values) == 1 else f"{values.min():.3f} to {values.max():.3f} ({len(values)})"


@figure
def patch_cosines(
    image: np.ndarray, cosines: np.ndarray, negative: float, names: list[str], labels: np.ndarray, file: str
) -> Figure:
    """Draw a patch beside its cosines with the class embeddings.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        The patch.
    cosines : ndarray of shape (N,)
        With the class embeddings of eq. (2).
    negative : float
        The cosine with the negative prompt, a line.
    names : list of str
        The words of the N classes.
    labels : ndarray of shape (N,)
        0 or 1.
    file : str
        Of the patch.
    """
    drawn, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, max(3.0, 0.42 * len(names) + 1)), gridspec_kw={"width_ratios": [1, 1.5]}
    )
    left.imshow(image)
    left.set_axis_off()
    left.set_title(wrapped(file), fontsize=10)
    right.barh(np.arange(len(names)), cosines, color=[SERIES_COLOURS[0] if label == 1 else "0.75" for label in labels])
    right.axvline(negative, color="0.2", lw=1.2, ls="--")
    right.axvline(0, color="0.2", lw=0.8)
    right.set_yticks(np.arange(len(names)), [wrapped(name) for name in names])
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    right.set_xlabel("cosine; coloured: present; dashed: the negative prompt")
    drawn.tight_layout()
    said = "; ".join(
        f"{name} ({state_text(label)}) {cosine:.3f}" for name, label, cosine in zip(names, labels, cosines, strict=True)
    )
    return described(
        drawn,
        f"Patch {file} and its cosines. {said}; the negative prompt {negative:.3f}.",
        f"Cosine similarity of one held-out patch to the names of {len(names)} classes. The classes that are present "
        "should have the longest bars.",
    )
