"""Figures of the methods' scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histoclip_lib.evaluation.across import Ranks, cliques
from histoclip_lib.evaluation.comparisons import ALPHA, PROBE
from histoclip_lib.evaluation.methods import label_of
from histoclip_lib.evaluation.methods import methods as registered
from histoclip_lib.evaluation.text import p_clause
from histoclip_lib.report.figures.base import (
    UNCOLOURED,
    described,
    figure,
    heat_map,
    listed,
    method_colour,
    wrapped,
)


@figure
def forest_plot(methods: dict[str, dict], labels: dict[str, str]) -> Figure:
    """Draw mAcc and mAP of every method with their intervals.

    HistoCLIP is coloured, a dashed line marks the linear probe. A metric that no method has gets no panel, a method
    without it no mark.

    Parameters
    ----------
    methods : dict of str to dict
        As in `metrics.json`.
    labels : dict of str to str
        Their labels.
    """
    metrics = [metric for metric in ("mAcc", "mAP") if any(own.get(metric) is not None for own in methods.values())]
    drawn, panels = plt.subplots(
        1, len(metrics), figsize=(7.5, 0.34 * len(methods) + 1.1), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, metric in zip(panels[0], metrics, strict=True):
        _forest(axes, methods, metric)
    panels[0, 0].set_yticks(range(len(methods)), [wrapped(labels[name]) for name in reversed(methods)])
    panels[0, 0].set_ylim(-0.6, len(methods) - 0.4)
    said = "; ".join(
        f"{labels[name]} "
        + ", ".join(
            f"{metric} {own[metric]:.3f} ({own[f'{metric}_ci'][0]:.3f} to {own[f'{metric}_ci'][1]:.3f})"
            for metric in metrics
            if own.get(metric) is not None
        )
        for name, own in methods.items()
    )
    shown = " and ".join(metrics)
    return described(
        drawn,
        f"Forest plot of {shown} with 95% intervals. {said}.",
        f"{shown} of {len(methods)} methods on held-out patches, with 95% intervals from the bootstrap. Methods "
        "are scored on the same patches, so overlapping intervals do not rule out a significant difference.",
    )


def _forest(axes: Axes, methods: dict[str, dict], metric: str) -> None:
    """Draw one metric, the first method at the top."""
    for height, (name, own) in enumerate(reversed(methods.items())):
        if own.get(metric) is None:
            continue
        ours = name in registered() and registered()[name].family == "histoclip"
        colour = method_colour(name) if ours else UNCOLOURED
        low, high = own[f"{metric}_ci"]
        axes.plot([low, high], [height, height], color=colour, lw=2)
        axes.plot(own[metric], height, "o", color=colour, ms=5)
        # the value is at the right edge: beside an interval it would cover the line of the linear probe
        axes.annotate(
            f"{own[metric]:.3f}", (1.02, height), xycoords=("axes fraction", "data"), va="center", fontsize=9,
            color=colour,
        )  # fmt: skip
    probe = methods.get(PROBE, {}).get(metric)
    if probe is not None:
        axes.axvline(probe, color=method_colour(PROBE), lw=1, ls="--", zorder=0)
        axes.set_title("dashed: linear probe", fontsize=9, color=method_colour(PROBE))
    axes.set_xlabel(f"{metric}, 95% interval")
    axes.margins(x=0.06)
    axes.tick_params(labelsize=10)
    axes.grid(axis="y", visible=False)


@figure
def comparison_map(differences: pd.DataFrame, p: pd.DataFrame) -> Figure:
    """Draw the difference in mAcc of every pair of methods, times 100: row minus column.

    Parameters
    ----------
    differences, p : DataFrame of shape (K, K)
        As `comparisons.all_pairs` returns them. An asterisk marks p < 0.05.
    """
    values, significant = 100 * differences.to_numpy(), (p < ALPHA).to_numpy()
    text = np.array(
        [
            ["" if np.isnan(v) else f"{v:+.1f}{'*' if s else ''}" for v, s in zip(*line, strict=True)]
            for line in zip(values, significant, strict=True)
        ]
    )
    names, side = [wrapped(name) for name in differences.index], len(differences)
    bound = np.nanmax(np.abs(values), initial=1)  # below one point all is pale
    colours = sns.diverging_palette(245, 30, s=85, l=65, as_cmap=True)  # both ends light enough for black text
    drawn, axes = plt.subplots(figsize=(0.37 * max(side, 5) + 2.3, 0.3 * max(side, 5) + 2.1), layout="constrained")
    sns.heatmap(
        values, vmin=-bound, vmax=bound, annot=text, fmt="", cmap=colours, xticklabels=names, yticklabels=names,
        linewidths=0.5, annot_kws={"fontsize": 7, "color": "black"}, cbar=False, ax=axes,
    )  # fmt: skip
    axes.grid(visible=False)
    axes.tick_params(labelsize=9)
    axes.tick_params(axis="y", rotation=0)
    axes.set_xticks(axes.get_xticks(), names, rotation=60, ha="right", rotation_mode="anchor")
    star = f"; * p < {ALPHA:g} (Holm)" if significant.any() else ""
    drawn.suptitle(f"mAcc × 100, row minus column{star}", fontsize=10)
    said = "; ".join(
        f"{differences.index[i]} minus {differences.columns[j]} {differences.iloc[i, j]:+.3f} "
        f"({p_clause(p.iloc[i, j])})"
        for i in range(side)
        for j in range(i + 1, side)
    )
    return described(
        drawn,
        f"Heat map of differences in mAcc, p after Holm's correction. {said}.",
        f"Difference in mAcc between any two of {side} methods on the same patches (row minus column), times 100. "
        + (
            f"An asterisk marks p below {ALPHA:g}, corrected for all {side * (side - 1) // 2} pairs: fewer "
            "differences are significant here than where HistoCLIP alone is compared."
            if significant.any()
            else "After correction for all pairs, no two methods are significantly different."
        ),
    )


@figure
def per_class_map(values: pd.DataFrame, label: str) -> Figure:
    """Draw one metric as a heat map, methods against classes; `values` with both as labels."""
    drawn, axes = plt.subplots(figsize=(1.1 * values.shape[1] + 3, 0.42 * values.shape[0] + 1.3))
    heat_map(axes, values.astype(float), list(values.index), list(values.columns), label, 0, 1, cmap="viridis")
    said = "; ".join(f"{name}: {listed(values.columns, values.loc[name])}" for name in values.index)
    return described(
        drawn,
        f"Heat map of {label} for each method and class. {said}.",
        f"{label.capitalize()} of {values.shape[0]} methods on each of {values.shape[1]} classes. Look for "
        "classes in which HistoCLIP falls below the simple baselines.",
    )


@figure
def critical_differences(ranks: Ranks) -> Figure:
    """Draw mean ranks over data sets, and bars over methods that are not significantly different (Demšar 2006)."""
    heights, joined = np.arange(len(ranks.methods)), cliques(ranks)
    names = [label_of(method) for method in ranks.methods]
    drawn, axes = plt.subplots(figsize=(7.5, 0.34 * len(names) + 1.1), layout="constrained")
    axes.plot(ranks.mean, heights, "o", color="0.2", ms=5)
    room = 0.12 * max(1.0, np.ptp(ranks.mean))
    for number, (first, last) in enumerate(joined):
        axes.plot([ranks.mean[-1] + room * (number + 1)] * 2, [first - 0.2, last + 0.2], color="0.5", lw=3)
    axes.set_yticks(heights, [wrapped(name) for name in names])
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=f"mean rank in mAP over {ranks.n} data sets, 1 is best")
    axes.grid(axis="y", visible=False)
    said = "; ".join(f"{name} {rank:.2f}" for name, rank in zip(names, ranks.mean, strict=True))
    bars = "; ".join(f"{names[first]} to {names[last]}" for first, last in joined)
    return described(
        drawn,
        f"Mean ranks. {said}. Not significantly different: {bars or 'no two methods'}.",
        f"Mean ranks of {len(names)} methods over {ranks.n} data sets. A grey bar joins methods whose ranks differ by "
        f"less than {ranks.critical:.1f}, the critical difference.",
    )
