"""Figures of the confusion between classes, and of where the errors lie."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.evaluation.comparisons import OURS
from histoclip_lib.evaluation.confusion import CoOccurrenceBias
from histoclip_lib.report.figures.base import (
    SERIES_COLOURS,
    class_colour,
    confusion_heat_map,
    described,
    figure,
    heat_map,
    method_colour,
    panel_grid,
    short,
    width_of,
    wrapped,
)

MAX_SETS = 12
WORST = 5  # groups that are named
ANNOTATED = 7  # with more classes the numbers of a cell would not be legible


@figure
def confusion_grid(matrices: np.ndarray, classes: list[str], method: str) -> Figure:
    """Draw the 2x2 confusion matrix of each class; `matrices` of shape (N, 2, 2) as `confusion.confusion` returns."""
    drawn, panels = panel_grid(len(classes), 5, 2.5, 2.6)
    for axes, matrix, name in zip(panels, matrices, classes, strict=True):
        rates, states = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), ["absent", "present"]
        text = _cells(matrix, rates, "{n}\n{rate:.0%}")
        confusion_heat_map(axes, rates, text, states, states, cbar=False, annot_kws={"fontsize": 10})
        axes.set_title(wrapped(name))
        axes.tick_params(labelsize=9)
        axes.set_xlabel("predicted", fontsize=9)
        axes.set_ylabel("truth", fontsize=9)
    drawn.tight_layout()
    said = "; ".join(
        f"{name}: {m[1, 1]} true positives, {m[1, 0]} false negatives, {m[0, 1]} false positives, {m[0, 0]} true "
        "negatives"
        for name, m in zip(classes, matrices, strict=True)
    )
    return described(
        drawn,
        f"Confusion matrix of each class for {method}. {said}.",
        f"Decisions of {method} on {matrices[0].sum():,} patches, class by class; percentages are of the row. Lower "
        "left are the false negatives, upper right the false positives.",
    )


def _cells(counts: np.ndarray, rates: np.ndarray, form: str) -> np.ndarray:
    """Write each cell with its count `n` and its `rate`."""
    pairs = (zip(*line, strict=True) for line in zip(counts, rates, strict=True))
    return np.array([[form.format(n=n, rate=rate) for n, rate in line] for line in pairs])


@figure
def recall_by_area_plot(table: pd.DataFrame, method: str) -> Figure:
    """Draw recall against the covered area, all classes and each; `table` as `confusion.recall_by_area` returns it."""
    areas, names = list(dict.fromkeys(table["area"])), list(dict.fromkeys(table["class"]))
    areas = sorted(areas, key=lambda text: int(text.split("%")[0]))
    drawn, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
    for number, name in enumerate(names):
        own = table[table["class"] == name]
        place = np.array([areas.index(area) for area in own["area"]]) + 0.09 * (number - len(names) / 2)
        if number:  # the table has the intervals of single classes
            axes.plot(place, own["recall"], "o-", color=class_colour(number - 1), lw=1.2, ms=5, label=wrapped(name))
            continue
        errors = np.abs(own[["low", "high"]].to_numpy().T - own["recall"].to_numpy())
        axes.errorbar(
            place, own["recall"], errors, fmt="o-", color="0.15", lw=2.5, ms=5, capsize=2, label=wrapped(name)
        )
    axes.set_xticks(range(len(areas)), areas)
    axes.set(xlabel="share of the patch that the class covers in the mask", ylabel="recall (sensitivity)")
    axes.set_ylim(-0.03, 1.05)
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    overall = table[table["class"] == names[0]]
    said = "; ".join(
        f"{line.area} of the patch: {line.found} of {line.present} found ({line.recall:.2f})"
        for line in overall.itertuples()
    )
    return described(
        drawn,
        f"Recall by covered area, all classes together. {said}.",
        f"Sensitivity of {method} by how much of the patch a class covers ({overall['present'].sum():,} labels with "
        "masks). Bars are 95% Wilson intervals for all classes together, which treat patches as independent. Look at "
        "how steeply sensitivity falls to the left.",
    )


@figure
def missed_class_map(rates: np.ndarray, misses: np.ndarray, classes: list[str]) -> Figure:
    """Draw the classes wrongly predicted when one is missed; see `confusion.predicted_when_missed`."""
    drawn, axes = plt.subplots(figsize=(1.1 * len(classes) + 3.4, 0.75 * len(classes) + 1.4))
    lines = [f"{name} ({count} false negatives)" for name, count in zip(classes, misses, strict=True)]
    predicted = [*classes, "nothing"]
    heat_map(axes, rates, lines, predicted, "fraction of the misses", 0, 1)
    axes.set(xlabel="predicted though absent", ylabel="")
    said = "; ".join(
        f"{line}: " + ", ".join(f"{c} {v:.2f}" for c, v in zip(predicted, values, strict=True) if v > 0)
        for line, values in zip(lines, rates, strict=True)
    )
    return described(
        drawn,
        f"Heat map of what is predicted instead of a false negative. {said}.",
        f"What is predicted instead of a false negative ({misses.sum():,} in all). High values away from “nothing” are "
        "classes that are mistaken for each other.",
    )


@figure
def multilabel_confusion_map(matrix: np.ndarray, classes: list[str], method: str) -> Figure:
    """Draw the counts of `confusion.multilabel_confusion`, shape (N + 1, N + 1), coloured by their part of the line."""
    fractions, roomy = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), len(classes) <= ANNOTATED
    text = np.where(matrix > 0, _cells(matrix, fractions, "{n}\n{rate:.0%}" if roomy else "{n}"), "")
    names = [wrapped(name) for name in classes]
    truth, predicted = [*names, "no true label"], [*names, "no predicted label"]
    side = (0.75 if roomy else 0.36) * len(matrix)
    drawn, axes = plt.subplots(figsize=(side + width_of(truth) + 1.4, side + 0.7 * width_of(predicted) + 0.6))
    confusion_heat_map(
        axes, fractions, text, truth, predicted, annot_kws={"fontsize": 9 if roomy else 6.5},
        cbar_kws={"label": "fraction of the row", "shrink": 0.7},
    )  # fmt: skip
    axes.set_xticks(axes.get_xticks(), predicted, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="predicted", ylabel="truth")
    drawn.set_layout_engine("constrained")  # not before: seaborn draws once with the names as yet unturned
    counts = [
        ", ".join(f"{n} as {other}" for other, n in zip([*classes, "no label"], line, strict=True) if n) or "nothing"
        for line in matrix
    ]
    said = "; ".join(f"{name}: {text}" for name, text in zip([*classes, "no true label"], counts, strict=True))
    return described(
        drawn,
        f"Multi-label confusion matrix of {method}, rows truth. {said}.",
        f"Multi-label confusion matrix of {method} ({matrix.sum():,} entries; Heydarian et al. 2022). Off the diagonal "
        "a missed label counts against each false positive on the same patch; where no label is missed, a false "
        "positive counts against every true label. The entries are therefore not numbers of false negatives.",
    )


@figure
def group_error_plot(table: pd.DataFrame) -> Figure:
    """Draw the error rate of each group, the worst first; `table` as `confusion.errors_by_group` returns it."""
    rates, patches = table["error rate"].to_numpy(), table["patches"].to_numpy()
    area = np.clip(2500 / len(rates), 15, 110)  # many dots must not run into a band
    overall = float(np.average(rates, weights=patches))
    drawn, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    axes.scatter(np.arange(len(rates)), rates, area * patches / patches.max(), color=method_colour(OURS), alpha=0.6)
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
    few, many = patches.min(), patches.max()
    sizes, highest = f"{few}" if few == many else f"{few} to {many}", max(rates.max(), 0.05)
    axes.set(
        xlabel=f"{len(table)} groups of {sizes} patches (area of the dot), the worst first",
        ylabel="error rate (1 - mAcc)",
    )
    axes.set_xticks([])
    axes.set_ylim(-0.03 * highest, 1.5 * highest)
    return described(
        drawn,
        f"Error rate of {len(table)} groups of {sizes} patches, from {rates.max():.3f} to "
        f"{rates.min():.3f}; over all patches {overall:.3f}. The worst: {'; '.join(worst)}.",
        f"Error rate of each of {len(table):,} groups (patients or source images), {patches.sum():,} patches. A few "
        "groups far above the dashed line would account for most errors; small groups vary by chance.",
    )


@figure
def label_set_bars(table: pd.DataFrame) -> Figure:
    """Draw exact match and mAcc of the most frequent label sets; `table` as `confusion.errors_by_label_set` returns."""
    shown = table.head(MAX_SETS)
    names = [
        "\n".join(textwrap.wrap(f"{name} ({n})", 40, max_lines=3, placeholder=f" … ({n})"))
        for name, n in zip(shown.index, shown["patches"], strict=True)
    ]
    heights = np.arange(len(shown))[::-1]
    drawn, axes = plt.subplots(figsize=(4 + width_of(names), 0.48 * len(shown) + 1.2), layout="constrained")
    for metric, shift, colour in (("mAcc", 0.19, SERIES_COLOURS[0]), ("exact match", -0.19, SERIES_COLOURS[1])):
        bars = axes.barh(heights + shift, shown[metric], 0.36, color=colour, label=metric)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(heights, names, fontsize=9)
    axes.set(xlim=(0, 1.1), xticks=np.linspace(0, 1, 6), ylabel="true labels (patches)")
    axes.grid(axis="y", visible=False)
    drawn.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    left_out = f" {len(table) - len(shown)} rarer sets are not shown." if len(table) > len(shown) else ""
    said = "; ".join(
        f"{name} ({line['patches']} patches): exact match {line['exact match']:.2f}, mAcc {line['mAcc']:.2f}"
        for name, line in shown.iterrows()
    )
    return described(
        drawn,
        f"Bar chart of errors by the true labels of a patch. {said}.{left_out}",
        f"Exact match and mAcc by the combination of labels ({table['patches'].sum():,} patches).{left_out} Short "
        "orange bars are combinations that are rarely predicted as a whole.",
    )


@figure
def co_occurrence_bias_map(biases: dict[str, CoOccurrenceBias], classes: list[str]) -> Figure:
    """Draw both kinds of gap for some methods side by side.

    Parameters
    ----------
    biases : dict of str to CoOccurrenceBias
        By the method's label. An asterisk marks an interval that excludes 0.
    classes : list of str
        N names.
    """
    names, roomy = [wrapped(name) for name in classes], len(classes) <= ANNOTATED
    bound = max(0.1, max(np.nanmax(np.abs(bias.gaps), initial=0) for bias in biases.values()))
    side, room = max(1.6, (0.5 if roomy else 0.19) * len(classes)), width_of(names)
    drawn, grid = plt.subplots(
        2, len(biases), figsize=(side * len(biases) + room + 1.6, 2 * side + room + 1.5), sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    for t, kind in enumerate(("false positives", "recall")):
        for axes, (method, bias) in zip(grid[t], biases.items(), strict=True):
            text = _gap_text(bias.gaps[t], bias.found[t], roomy)
            sns.heatmap(
                bias.gaps[t], vmin=-bound, vmax=bound, cmap="vlag", annot=text, fmt="", cbar=False, square=True,
                xticklabels=names, yticklabels=names, linewidths=0.5, annot_kws={"fontsize": 8}, ax=axes,
            )  # fmt: skip
            axes.set_title(f"{wrapped(method)}\n{kind}", fontsize=9)
            axes.tick_params(labelsize=9 if roomy else 7)
            axes.tick_params(axis="x", rotation=90)
            axes.tick_params(axis="y", rotation=0)
            axes.grid(visible=False)
            axes.set_facecolor("0.9")  # where there is nothing to compare
    drawn.supxlabel("class that is predicted", fontsize=10)
    drawn.supylabel("class that is present, or absent", fontsize=10)
    drawn.set_layout_engine("compressed")  # not before, as above
    bar = drawn.colorbar(grid[0, 0].collections[0], ax=grid, shrink=0.6)
    bar.set_label("rate where present minus where absent", fontsize=9)
    said = "; ".join(f"{method}, {_found_gaps(bias, classes) or 'none'}" for method, bias in biases.items())
    return described(
        drawn,
        f"Heat maps of how the presence of one class changes the prediction of another. Significant: {said}.",
        "Difference in how often the class of the column is predicted between patches with and without the class of "
        f"the row ({len(classes)} classes). An asterisk marks a simultaneous 95% interval that excludes 0. That is an "
        "association: the patches may also be harder for other reasons.",
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
