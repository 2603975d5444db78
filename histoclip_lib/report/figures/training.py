"""Pictures of how a head was trained."""

from __future__ import annotations

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.report.figures.base import CLASS_COLOURS, described


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


def label_efficiency(sizes: pd.DataFrame, levels: dict[str, dict], labels: dict[str, str]) -> Figure:
    """Draw mAcc and mAP against the number of training patches.

    Parameters
    ----------
    sizes : DataFrame
        One line for each model: `row`, `n_train`, `mAcc` and `mAP`.
    levels : dict of str to dict
        Rows that see no label, as in `metrics.json`, drawn as horizontal lines.
    labels : dict of str to str
        Readable names of rows.
    """
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2))
    for axes, metric in zip(panels, ("mAcc", "mAP"), strict=True):
        for colour, (row, lines) in zip(CLASS_COLOURS, sizes.groupby("row", sort=False), strict=False):
            means = lines.groupby("n_train")[metric].mean()
            axes.plot(means.index, means, "-", color=colour, label=labels[row])
            axes.plot(lines["n_train"], lines[metric], "o", color=colour, alpha=0.5, ms=5)
        for style, (row, scores) in zip(("--", ":", "-.", (0, (5, 1, 1, 1))), levels.items(), strict=False):
            if scores[metric] is not None:
                axes.axhline(scores[metric], color="0.35", ls=style, lw=1.2, label=labels[row])
        ticks = sorted(sizes["n_train"].unique())
        axes.set_xscale("log")
        axes.set_xticks(ticks, ticks)
        axes.minorticks_off()
        axes.set(xlabel="training patches", ylabel=metric)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=min(3, len(names)), bbox_to_anchor=(0.5, 0.02), fontsize=9)
    figure.tight_layout()
    means = sizes.groupby(["row", "n_train"], sort=False)[["mAcc", "mAP"]].mean()
    listed = "; ".join(
        f"{labels[row]} with {size} patches: mAcc {line.mAcc:.3f}, mAP {line.mAP:.3f}"
        for (row, size), line in means.iterrows()
    )
    return described(figure, f"mAcc and mAP against the number of training patches, mean over draws. {listed}.")
