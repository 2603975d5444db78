"""Pictures: each function takes arrays and returns a Matplotlib figure with a text alternative."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.files import replacing
from histoclip_lib.metrics import Predictions

sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
matplotlib.rcParams.update({"text.parse_math": False, "figure.dpi": 100, "axes.titlesize": "medium"})

CLASS_COLOURS = sns.color_palette("colorblind", 10)
MAX_NAME = 28


def described(figure: Figure, alternative: str) -> Figure:
    """Attach a text alternative to a figure; `show` hands it to the page."""
    figure.alternative = alternative
    return figure


def show(figure: Figure) -> None:
    """Display a figure as a PNG of double resolution with its text alternative, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, bbox_inches="tight")
    data = buffer.getvalue()
    plt.close(figure)
    width = int.from_bytes(data[16:20], "big") // 2  # the PNG header holds the width in pixels
    display(Image(data=data, alt=figure.alternative, width=width))


def save_thumbnail(figure: Figure, path: Path) -> None:
    """Write a small PNG of a figure, for the overview of all runs."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=70, bbox_inches="tight")


def short(name: str) -> str:
    """Return a name that fits on an axis: names from users can be of any length."""
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def _names(classes: list[str]) -> list[str]:
    return [short(name) for name in classes]


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
    _heat_map(axes, conditional, _names(classes), _names(classes), "fraction", 0, 1)
    axes.set(xlabel="... this one is present too", ylabel="where this class is present ...")
    pairs = "; ".join(
        f"given {a}: " + ", ".join(f"{b} {conditional[i, j]:.2f}" for j, b in enumerate(classes) if j != i)
        for i, a in enumerate(classes)
    )
    return described(figure, f"Heat map of how often classes occur together. {pairs}.")


def _heat_map(axes, values, rows, columns, label, low, high, fmt=".2f", cmap="rocket_r") -> None:
    sns.heatmap(
        values,
        vmin=low,
        vmax=high,
        annot=True,
        fmt=fmt,
        cmap=cmap,
        xticklabels=columns,
        yticklabels=rows,
        linewidths=1,
        cbar_kws={"label": label},
        ax=axes,
    )
    axes.tick_params(axis="x", rotation=30)
    axes.tick_params(axis="y", rotation=0)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right")


def similarity_map(similarity: np.ndarray, names: list[str]) -> Figure:
    """Draw the cosines of the class embeddings with each other, shape (N, N)."""
    figure, axes = plt.subplots(figsize=(1.1 * len(names) + 2.6, 0.8 * len(names) + 1.6))
    _heat_map(axes, similarity, _names(names), _names(names), "cosine", min(0.0, float(similarity.min())), 1)
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
    names, listed = _names(classes), []
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


def training_curves(history: pd.DataFrame, levels: dict[str, float]) -> Figure:
    """Draw loss and validation mAcc against the epoch, for each head.

    Parameters
    ----------
    history : DataFrame
        As `train_head` returns, with a column `head`.
    levels : dict of str to float
        mAcc of rows to draw as horizontal lines.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for colour, (head, rows) in zip(CLASS_COLOURS, history.groupby("head", sort=False), strict=False):
        left.plot(rows["epoch"], rows["loss"], color=colour, lw=1, label=f"{head}, train")
        scored = rows.dropna(subset=["val_loss"])
        left.plot(scored["epoch"], scored["val_loss"], color=colour, ls="--", label=f"{head}, validation")
        right.plot(scored["epoch"], scored["val_mAcc"], color=colour, label=head)
    for style, (name, level) in zip(("-.", ":", "--"), levels.items(), strict=False):
        right.axhline(level, color="0.35", ls=style, lw=1.2, label=name)
    left.set(xlabel="epoch", ylabel="binary cross-entropy", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="validation mAcc")
    for axes in (left, right):
        axes.legend(fontsize=9)
    figure.tight_layout()
    last = history.dropna(subset=["val_mAcc"]).groupby("head", sort=False).last()
    listed = "; ".join(
        f"{head}: train loss {row.loss:.3f}, validation loss {row.val_loss:.3f}, mAcc {row.val_mAcc:.3f}"
        for head, row in last.iterrows()
    )
    return described(figure, f"Training curves. At the last epoch, {listed}.")


def forest_plot(rows: dict[str, dict], labels: dict[str, str]) -> Figure:
    """Draw mAcc of every row with its interval; `rows` as in `metrics.json`, `labels` their readable names."""
    figure, axes = plt.subplots(figsize=(7.5, 0.38 * len(rows) + 1.1))
    for height, (name, row) in enumerate(reversed(rows.items())):
        low, high = row["mAcc_ci"]
        colour = CLASS_COLOURS[0] if name.startswith("histoclip") else "0.35"
        axes.plot([low, high], [height, height], color=colour, lw=2)
        axes.plot(row["mAcc"], height, "o", color=colour)
        axes.annotate(f"{row['mAcc']:.3f}", (high, height), xytext=(6, -3), textcoords="offset points", fontsize=9)
    axes.set_yticks(range(len(rows)), [labels[name] for name in reversed(rows)])
    axes.set(xlabel="mAcc, with 95 % bootstrap interval")
    axes.margins(x=0.12)
    listed = "; ".join(f"{n} {r['mAcc']:.3f} ({r['mAcc_ci'][0]:.3f} to {r['mAcc_ci'][1]:.3f})" for n, r in rows.items())
    return described(figure, f"Forest plot of mAcc with intervals. {listed}.")


def per_class_map(values: pd.DataFrame, label: str) -> Figure:
    """Draw one metric as a heat map, rows of the table against classes; `values` with both as labels."""
    figure, axes = plt.subplots(figsize=(1.1 * values.shape[1] + 3, 0.42 * values.shape[0] + 1.3))
    _heat_map(axes, values.astype(float), list(values.index), _names(list(values.columns)), label, 0, 1, cmap="viridis")
    listed = "; ".join(
        f"{row}: " + ", ".join(f"{c} {v:.2f}" for c, v in values.loc[row].items()) for row in values.index
    )
    return described(figure, f"Heat map of {label} for each row and class. {listed}.")


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
    _heat_map(axes, rates, rows, [*_names(classes), "nothing"], "fraction of the misses", 0, 1)
    axes.set(xlabel="predicted though absent", ylabel="")
    listed = "; ".join(
        f"{row}: " + ", ".join(f"{c} {v:.2f}" for c, v in zip([*classes, "nothing"], line, strict=True) if v > 0)
        for row, line in zip(rows, rates, strict=True)
    )
    return described(figure, f"Heat map of what is predicted when a class is missed. {listed}.")


def map_score_bars(scores: dict[str, np.ndarray], classes: list[str]) -> Figure:
    """Draw how attention agrees with the masks, beside uniform attention; see `attention.score_maps`."""
    series = {
        "pointing game": scores["pointing"],
        "attention inside the mask": scores["mass"],
        "uniform attention": scores["area"],
    }
    frame = pd.DataFrame(
        [(short(c), name, values[k]) for name, values in series.items() for k, c in enumerate(classes)],
        columns=["class", "measure", "value"],
    )
    figure, axes = plt.subplots(figsize=(8, 0.7 * len(classes) + 1.2))
    sns.barplot(frame, y="class", x="value", hue="measure", palette=[*CLASS_COLOURS[:2], "0.7"], ax=axes)
    axes.set(xlim=(0, 1), xlabel="fraction", ylabel="")
    axes.legend(title="", loc="upper left", bbox_to_anchor=(1, 1))
    listed = "; ".join(
        f"{c}: " + ", ".join(f"{name} {values[k]:.2f}" for name, values in series.items())
        for k, c in enumerate(classes)
    )
    return described(figure, f"Bar chart of attention against masks. {listed}.")
