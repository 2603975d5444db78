"""Pictures of how attention agrees with the masks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.figures.base import CLASS_COLOURS, described, short


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
