"""Figure of how alike validation and training patches are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.evaluation.leakage import SAME_PIXELS, NearDuplicates
from histoclip_lib.report.figures.base import SERIES_COLOURS, described, figure


@figure
def similarity_histogram(found: NearDuplicates) -> Figure:
    """Draw how alike each held-out patch and its nearest training patch are, beside unrelated training patches.

    Left the cosine of their features, right the correlation of their pixels, with the line from which on two patches
    count as copies.
    """
    label = f"{len(found.val)} held-out patches"
    reference = f"{len(found.reference_similarity)} training patches, nearest of another group"
    panels = {
        "cosine of centred features": (found.similarity, found.reference_similarity),
        "correlation of pixels": (found.correlation, found.reference_correlation),
    }
    drawn, grid = plt.subplots(1, 2, figsize=(7.5, 3.1), layout="constrained")
    said = []
    for axes, (name, (own, others)) in zip(grid, panels.items(), strict=True):
        frame = pd.DataFrame(
            {"value": np.concatenate([own, others]), "of": np.repeat([label, reference], [len(own), len(others)])}
        ).dropna()
        low = min(0.0, float(frame["value"].min())) if len(frame) else 0.0
        sns.histplot(
            frame, x="value", hue="of", hue_order=[label, reference], palette=SERIES_COLOURS[:2], stat="proportion",
            common_norm=False, element="step", bins=np.linspace(low, 1, 31), legend=False, ax=axes,
        )  # fmt: skip
        axes.set(xlabel=name, ylabel="fraction")
        axes.tick_params(labelsize=10)
        said.append(f"{name}: {_quartiles(own)} for validation, {_quartiles(others)} for the reference")
    grid[1].axvline(SAME_PIXELS, color="0.2", lw=1.2, ls="--")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour, alpha=0.5) for colour in SERIES_COLOURS[:2]]
    handles.append(plt.Line2D([], [], color="0.2", lw=1.2, ls="--"))
    names = [label, reference, f"copies from {SAME_PIXELS} on"]
    drawn.legend(handles, names, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return described(
        drawn,
        f"Histograms of how alike nearest patches are. {'; '.join(said)}. {found.flagged.sum()} held-out patches "
        "have a near-duplicate.",
        f"Similarity of {len(found.val):,} held-out patches to their nearest training patches, compared with training "
        "patches of different groups. Held-out patches to the right of the dashed line are near-duplicates.",
    )


def _quartiles(values: np.ndarray) -> str:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return "no value"
    low, middle, high = np.quantile(defined, [0.25, 0.5, 0.75])
    return f"median {middle:.2f} (quartiles {low:.2f} and {high:.2f}, highest {defined.max():.2f})"
