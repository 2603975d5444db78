"""Pictures of what is taken for what, and of where the errors lie."""

from __future__ import annotations

import textwrap
import unicodedata

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.evaluation.confusion import CoOccurrenceBias
from histoclip_lib.report.figures.base import CLASS_COLOURS, described, heat_map, short, short_names

MAX_SETS = 12
WORST = 5  # groups that are named
ANNOTATED = 7  # with more classes the numbers of a cell would not be legible


def confusion_grid(matrices: np.ndarray, classes: list[str], row: str) -> Figure:
    """Draw the 2x2 confusion matrix of each class; `matrices` of shape (N, 2, 2) as `confusion.confusion` returns."""
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
    """Draw the classes wrongly predicted when one is missed; see `confusion.predicted_when_missed`."""
    figure, axes = plt.subplots(figsize=(1.1 * len(classes) + 3.4, 0.75 * len(classes) + 1.4))
    rows = [f"{short(name)} (missed {count} times)" for name, count in zip(classes, misses, strict=True)]
    heat_map(axes, rates, rows, [*short_names(classes), "nothing"], "fraction of the misses", 0, 1)
    axes.set(xlabel="predicted though absent", ylabel="")
    listed = "; ".join(
        f"{row}: " + ", ".join(f"{c} {v:.2f}" for c, v in zip([*classes, "nothing"], line, strict=True) if v > 0)
        for row, line in zip(rows, rates, strict=True)
    )
    return described(figure, f"Heat map of what is predicted when a class is missed. {listed}.")


def multilabel_confusion_map(matrix: np.ndarray, classes: list[str], row: str) -> Figure:
    """Draw the counts of `confusion.multilabel_confusion`, shape (N + 1, N + 1), coloured by their part of the row."""
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    roomy = len(classes) <= ANNOTATED
    text = np.array(
        [
            [(f"{n}\n{f:.0%}" if roomy else f"{n}") if n else "" for n, f in zip(*line, strict=True)]
            for line in zip(matrix, fractions, strict=True)
        ]
    )
    truth, predicted = [*short_names(classes), "no true label"], [*short_names(classes), "no predicted label"]
    side = (0.75 if roomy else 0.36) * len(matrix)
    figure, axes = plt.subplots(figsize=(side + _room(truth) + 1.4, side + 0.7 * _room(predicted) + 0.6))
    sns.heatmap(
        fractions, vmin=0, vmax=1, annot=text, fmt="", cmap="Blues", linewidths=1, square=True, ax=axes,
        xticklabels=predicted, yticklabels=truth, annot_kws={"fontsize": 9 if roomy else 6.5},
        cbar_kws={"label": "fraction of the row", "shrink": 0.7},
    )  # fmt: skip
    axes.set_xticks(axes.get_xticks(), predicted, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="predicted", ylabel="truth")
    figure.set_layout_engine("constrained")  # not before: seaborn draws once with the names as yet unturned
    counts = [
        ", ".join(f"{n} as {other}" for other, n in zip([*classes, "no label"], line, strict=True) if n) or "nothing"
        for line in matrix
    ]
    listed = "; ".join(f"{name}: {text}" for name, text in zip([*classes, "no true label"], counts, strict=True))
    return described(figure, f"Multi-label confusion matrix of {row}, rows truth. {listed}.")


def group_error_plot(table: pd.DataFrame) -> Figure:
    """Draw the error rate of each group, the worst first; `table` as `confusion.errors_by_group` returns it."""
    rates, patches = table["error rate"].to_numpy(), table["patches"].to_numpy()
    area = np.clip(2500 / len(rates), 15, 110)  # many dots must not run into a band
    overall = float(np.average(rates, weights=patches))
    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    axes.scatter(np.arange(len(rates)), rates, area * patches / patches.max(), color=CLASS_COLOURS[0], alpha=0.6)
    axes.axhline(overall, color="0.3", lw=1.2, ls="--")
    axes.annotate(
        f"all patches {overall:.3f}", (1, overall), xycoords=("axes fraction", "data"), xytext=(-4, 4),
        textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    worst = [
        f"{short(str(name))}: {line['error rate']:.3f} ({line['patches']:.0f} patches)"
        for name, line in table.head(WORST).iterrows()
    ]
    axes.text(  # the dots fall from the left: the upper right is free
        0.98, 0.97, "\n".join(["from the left:", *worst]), transform=axes.transAxes, ha="right", va="top", fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
    )  # fmt: skip
    sizes = f"{patches.min()} to {patches.max()}"
    axes.set(xlabel=f"{len(table)} groups, the worst first; area by patches, {sizes}", ylabel="error rate (1 - mAcc)")
    axes.set_xticks([])
    axes.set_ylim(-0.03 * max(rates.max(), 0.05), 1.5 * max(rates.max(), 0.05))
    return described(
        figure,
        f"Error rate of {len(table)} groups of {sizes} patches, from {rates.max():.3f} to "
        f"{rates.min():.3f}; over all patches {overall:.3f}. The worst: {'; '.join(worst)}.",
    )


def label_set_bars(table: pd.DataFrame) -> Figure:
    """Draw exact match and mAcc of the most frequent label sets; `table` as `confusion.errors_by_label_set` returns."""
    shown = table.head(MAX_SETS)
    names = [
        "\n".join(textwrap.wrap(f"{' '.join(str(name).split())} ({n})", 40, max_lines=2, placeholder=f" … ({n})"))
        for name, n in zip(shown.index, shown["patches"], strict=True)
    ]
    heights, room = np.arange(len(shown))[::-1], _room([line for name in names for line in name.splitlines()])
    figure, axes = plt.subplots(figsize=(4 + room, 0.48 * len(shown) + 1.2), layout="constrained")
    for metric, shift, colour in (("mAcc", 0.19, CLASS_COLOURS[0]), ("exact match", -0.19, CLASS_COLOURS[1])):
        bars = axes.barh(heights + shift, shown[metric], 0.36, color=colour, label=metric)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(heights, names, fontsize=9)
    axes.set(xlim=(0, 1.1), xticks=np.linspace(0, 1, 6), ylabel="true labels (patches)")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    left_out = f" {len(table) - len(shown)} rarer sets are not shown." if len(table) > len(shown) else ""
    listed = "; ".join(
        f"{name} ({line['patches']} patches): exact match {line['exact match']:.2f}, mAcc {line['mAcc']:.2f}"
        for name, line in shown.iterrows()
    )
    return described(figure, f"Bar chart of errors by the true labels of a patch. {listed}.{left_out}")


def co_occurrence_bias_map(biases: dict[str, CoOccurrenceBias], classes: list[str]) -> Figure:
    """Draw both kinds of gap for some rows of the table side by side.

    Parameters
    ----------
    biases : dict of str to CoOccurrenceBias
        By readable name of the row. An asterisk marks an interval that excludes 0.
    classes : list of str
        N names.
    """
    names, roomy = short_names(classes), len(classes) <= ANNOTATED
    bound = max(0.1, max(np.nanmax(np.abs(bias.gaps), initial=0) for bias in biases.values()))
    side, room = max(1.6, (0.5 if roomy else 0.19) * len(classes)), _room(names)
    figure, grid = plt.subplots(
        2, len(biases), figsize=(side * len(biases) + room + 1.6, 2 * side + room + 1.5), sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    for line, kind in enumerate(("false positives", "recall")):
        for axes, (row, bias) in zip(grid[line], biases.items(), strict=True):
            text = _gap_text(bias.gaps[line], bias.found[line], roomy)
            sns.heatmap(
                bias.gaps[line], vmin=-bound, vmax=bound, cmap="vlag", annot=text, fmt="", cbar=False, square=True,
                xticklabels=names, yticklabels=names, linewidths=0.5, annot_kws={"fontsize": 8}, ax=axes,
            )  # fmt: skip
            axes.set_title(f"{short(row)}\n{kind}", fontsize=9)
            axes.tick_params(labelsize=9 if roomy else 7)
            axes.tick_params(axis="x", rotation=90)
            axes.tick_params(axis="y", rotation=0)
            axes.grid(visible=False)
            axes.set_facecolor("0.9")  # where there is nothing to compare
    figure.supxlabel("class that is predicted", fontsize=10)
    figure.supylabel("class that is present, or absent", fontsize=10)
    figure.set_layout_engine("compressed")  # not before, as above
    bar = figure.colorbar(grid[0, 0].collections[0], ax=grid, shrink=0.6)
    bar.set_label("rate where present minus where absent", fontsize=9)
    listed = "; ".join(f"{row}, {_found_gaps(bias, classes) or 'none'}" for row, bias in biases.items())
    return described(
        figure, f"Heat maps of how the presence of one class moves the prediction of another. Not chance: {listed}."
    )


def _gap_text(gaps: np.ndarray, found: np.ndarray, roomy: bool) -> np.ndarray:
    text = np.where(found, "*", "").astype(object)
    if roomy:
        for i, j in np.argwhere(~np.isnan(gaps)):
            text[i, j] = f"{round(gaps[i, j], 2) + 0.0:+.2f}{text[i, j]}".replace("0.", ".", 1)  # never -0
    return text


def _found_gaps(bias: CoOccurrenceBias, classes: list[str]) -> str:
    return ", ".join(
        f"{('false positives', 'recall')[t]} of {classes[b]} by {classes[a]} {bias.gaps[t, a, b]:+.2f}"
        for t, a, b in np.argwhere(bias.found)
    )


def _room(names: list[str]) -> float:
    """Return about how many inches of an axis the longest name takes; ideographs are twice as wide as letters."""
    widths = [sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in name) for name in names]
    return 0.3 + 0.075 * max(widths)
