"""Pictures of the rows of the table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histoclip_lib.report.figures.base import CLASS_COLOURS, described, heat_map, short_names

OURS = ("histoclip_global", "histoclip_patch")
ALPHA = 0.05


def forest_plot(rows: dict[str, dict], labels: dict[str, str]) -> Figure:
    """Draw mAcc and mAP of every row with their intervals; `rows` as in `metrics.json`, `labels` their readable names.

    HistoCLIP is coloured, a dashed line stands at the linear probe. A metric that no row has gets no panel, a row
    without it no mark.
    """
    metrics = [metric for metric in ("mAcc", "mAP") if any(row.get(metric) is not None for row in rows.values())]
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(7.5, 0.34 * len(rows) + 1.1), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, metric in zip(panels[0], metrics, strict=True):
        _forest(axes, rows, metric)
    panels[0, 0].set_yticks(range(len(rows)), short_names([labels[name] for name in reversed(rows)]))
    panels[0, 0].set_ylim(-0.6, len(rows) - 0.4)
    listed = "; ".join(
        f"{name} "
        + ", ".join(
            f"{metric} {row[metric]:.3f} ({row[f'{metric}_ci'][0]:.3f} to {row[f'{metric}_ci'][1]:.3f})"
            for metric in metrics
            if row.get(metric) is not None
        )
        for name, row in rows.items()
    )
    return described(figure, f"Forest plot of {' and '.join(metrics)} with 95 % intervals. {listed}.")


def _forest(axes: Axes, rows: dict[str, dict], metric: str) -> None:
    """Draw one metric, the first row at the top."""
    for height, (name, row) in enumerate(reversed(rows.items())):
        if row.get(metric) is None:
            continue
        colour = CLASS_COLOURS[0] if name in OURS else "0.35"
        low, high = row[f"{metric}_ci"]
        axes.plot([low, high], [height, height], color=colour, lw=2)
        axes.plot(row[metric], height, "o", color=colour, ms=5)
        # the value stands at the right edge: beside an interval it would cover the line of the linear probe
        axes.annotate(
            f"{row[metric]:.3f}",
            (1.02, height),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=colour,
        )
    probe = rows.get("linear_probe", {}).get(metric)
    if probe is not None:
        axes.axvline(probe, color=CLASS_COLOURS[3], lw=1, ls="--", zorder=0)
        axes.set_title("dashed: linear probe", fontsize=9, color=CLASS_COLOURS[3])
    axes.set_xlabel(f"{metric}, 95 % interval")
    axes.margins(x=0.06)
    axes.tick_params(labelsize=10)
    axes.grid(axis="y", visible=False)


def comparison_map(differences: pd.DataFrame, p: pd.DataFrame) -> Figure:
    """Draw the difference in mAcc of every pair of rows, in points of a hundred: row minus column.

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
    names, side = short_names(list(differences.index)), len(differences)
    bound = np.nanmax(np.abs(values), initial=1)  # below one point all is pale
    colours = sns.diverging_palette(
        245, 30, s=85, l=65, as_cmap=True
    )  # blue to orange, both light enough for black text
    figure, axes = plt.subplots(figsize=(0.37 * max(side, 5) + 2.3, 0.3 * max(side, 5) + 2.1), layout="constrained")
    sns.heatmap(
        values, vmin=-bound, vmax=bound, annot=text, fmt="", cmap=colours, xticklabels=names, yticklabels=names,
        linewidths=0.5, annot_kws={"fontsize": 7, "color": "black"}, cbar=False, ax=axes,
    )  # fmt: skip
    axes.grid(visible=False)
    axes.tick_params(labelsize=9)
    axes.tick_params(axis="y", rotation=0)
    axes.set_xticks(axes.get_xticks(), names, rotation=60, ha="right", rotation_mode="anchor")
    figure.suptitle("mAcc × 100, row minus column; * p < 0.05 (Holm)", fontsize=10)
    listed = "; ".join(
        f"{differences.index[i]} minus {differences.columns[j]} {differences.iloc[i, j]:+.3f} (p {p.iloc[i, j]:.3f})"
        for i in range(side)
        for j in range(i + 1, side)
    )
    return described(figure, f"Heat map of differences in mAcc, p after Holm's correction. {listed}.")


def per_class_map(values: pd.DataFrame, label: str) -> Figure:
    """Draw one metric as a heat map, rows of the table against classes; `values` with both as labels."""
    figure, axes = plt.subplots(figsize=(1.1 * values.shape[1] + 3, 0.42 * values.shape[0] + 1.3))
    columns = short_names(list(values.columns))
    heat_map(axes, values.astype(float), list(values.index), columns, label, 0, 1, cmap="viridis")
    listed = "; ".join(
        f"{row}: " + ", ".join(f"{c} {v:.2f}" for c, v in values.loc[row].items()) for row in values.index
    )
    return described(figure, f"Heat map of {label} for each row and class. {listed}.")
