"""Figures of how a head was trained."""

from __future__ import annotations

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.evaluation.text import number_text
from histoclip_lib.report.figures.base import UNCOLOURED, described, figure, method_colour, wrapped

DASHES = ("--", ":", "-.", (0, (5, 1, 1, 1)))


@figure
def training_curves(history: pd.DataFrame, levels: dict[str, float], n_train: int, n_val: int) -> Figure:
    """Draw loss and validation mAcc against the epoch, for each head.

    Parameters
    ----------
    history : DataFrame
        As `train_head` returns, with a column `head`.
    levels : dict of str to float
        mAcc of methods to draw as horizontal lines.
    n_train, n_val : int
        Patches that are trained and validated on.
    """
    drawn, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for head, epochs in history.groupby("head", sort=False):
        colour, scored = method_colour(f"histoclip_{head}"), epochs.dropna(subset=["val_loss"])
        left.plot(epochs["epoch"], epochs["loss"], color=colour, lw=1, label=f"{head}, train")
        left.plot(scored["epoch"], scored["val_loss"], color=colour, ls="--", label=f"{head}, validation")
        right.plot(scored["epoch"], scored["val_mAcc"], color=colour, label=head)
    for style, (name, level) in zip(DASHES, levels.items(), strict=False):
        right.axhline(level, color=UNCOLOURED, ls=style, lw=1.2, label=wrapped(name))
    left.set(xlabel="epoch", ylabel="binary cross-entropy", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="validation mAcc")
    for axes in (left, right):
        axes.legend(fontsize=9)
    drawn.tight_layout()
    last = history.dropna(subset=["val_mAcc"]).groupby("head", sort=False).last()
    said = "; ".join(
        f"{head}: train loss {line.loss:.3f}, validation loss {line.val_loss:.3f}, mAcc {line.val_mAcc:.3f}"
        for head, line in last.iterrows()
    )
    return described(
        drawn,
        f"Training curves. At the last epoch, {said}.",
        f"Loss and validation mAcc over {history['epoch'].max():,} epochs, with {n_train:,} training and {n_val:,} "
        "validation patches. The training loss is measured on mixed patches with dropout, so it may lie above the "
        "validation loss: compare trends. A head overfits where its validation loss rises while its training loss "
        "falls.",
    )


@figure
def label_efficiency(
    sizes: pd.DataFrame, levels: dict[str, dict], labels: dict[str, str], n_val: int, n_all: int
) -> Figure:
    """Draw mAcc and mAP against the number of training patches.

    Parameters
    ----------
    sizes : DataFrame
        A line for each model: `method`, `n_train`, `mAcc` and `mAP`.
    levels : dict of str to dict
        Methods that are not trained, as in `metrics.json`, drawn as horizontal lines.
    labels : dict of str to str
        Labels of the methods.
    n_val, n_all : int
        Patches on which the models, and `levels`, are scored.
    """
    drawn, panels = plt.subplots(1, 2, figsize=(11, 4.2))
    for axes, metric in zip(panels, ("mAcc", "mAP"), strict=True):
        for method, lines in sizes.groupby("method", sort=False):
            means, colour = lines.groupby("n_train")[metric].mean(), method_colour(method)
            axes.plot(means.index, means, "-", color=colour, label=wrapped(labels[method]))
            axes.plot(lines["n_train"], lines[metric], "o", color=colour, alpha=0.5, ms=5)
        for style, (method, scores) in zip(DASHES, levels.items(), strict=False):
            if scores[metric] is not None:
                axes.axhline(scores[metric], color=UNCOLOURED, ls=style, lw=1.2, label=wrapped(labels[method]))
        ticks = sorted(sizes["n_train"].unique())
        axes.set_xscale("log")
        axes.set_xticks(ticks, ticks)
        axes.minorticks_off()
        axes.set(xlabel="training patches", ylabel=metric)
    handles, names = panels[0].get_legend_handles_labels()
    drawn.legend(handles, names, loc="upper center", ncols=min(3, len(names)), bbox_to_anchor=(0.5, 0.02), fontsize=9)
    drawn.tight_layout()
    means = sizes.groupby(["method", "n_train"], sort=False)[["mAcc", "mAP"]].mean()
    said = "; ".join(
        f"{labels[method]} with {size} patches: mAcc {number_text(line.mAcc)}, mAP {number_text(line.mAP)}"
        for (method, size), line in means.iterrows()
    )
    return described(
        drawn,
        f"mAcc and mAP against the number of training patches, mean over draws. {said}.",
        f"mAcc and mAP with {sizes['n_train'].min():,} to {sizes['n_train'].max():,} training patches: dots are single "
        f"draws, lines their means, on the same {n_val:,} patches. Horizontal lines, on all {n_all:,} held-out "
        "patches, are methods that are not trained: labels help once a line rises above the zero-shot strategies.",
    )


@figure
def hidden_labels(shares: pd.DataFrame, labels: dict[str, str], n_val: int) -> Figure:
    """Draw mAcc and mAP against the share of training labels that were hidden.

    Parameters
    ----------
    shares : DataFrame
        A line for each model: `method`, `hidden`, `mAcc` and `mAP`.
    labels : dict of str to str
        Labels of the methods.
    n_val : int
        Patches on which the models are scored.
    """
    drawn, panels = plt.subplots(1, 2, figsize=(11, 3.6))
    for axes, metric in zip(panels, ("mAcc", "mAP"), strict=True):
        for method, lines in shares.groupby("method", sort=False):
            axes.plot(100 * lines["hidden"], lines[metric], "o-", color=method_colour(method), label=labels[method])
        axes.set(xlabel="training labels hidden, %", ylabel=metric, xticks=100 * shares["hidden"].unique())
    panels[0].legend(fontsize=9)
    drawn.tight_layout()
    said = "; ".join(
        f"{labels[line.method]} with {line.hidden:.0%} hidden: mAcc {number_text(line.mAcc)}, "
        f"mAP {number_text(line.mAP)}"
        for line in shares.itertuples()
    )
    return described(
        drawn,
        f"mAcc and mAP against the share of training labels that were hidden. {said}.",
        "mAcc and mAP with a random share of the training labels hidden, as if they had not been annotated; one draw, "
        f"{n_val:,} held-out patches. The flatter a line, the better the method tolerates missing labels.",
    )
