"""Pictures of how a head was trained."""

from __future__ import annotations

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.figures.base import CLASS_COLOURS, described


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
