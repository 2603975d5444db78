"""Pictures of how attention agrees with the masks."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.evaluation.localisation import MEASURES, MapScores, class_means
from histoclip_lib.models.attention import MAP_LABELS, TRAINED
from histoclip_lib.report.figures.base import CLASS_COLOURS, described, short_names

MARKERS = {TRAINED: "o", "untrained": "s", "similarity": "^", "centre": "D", "uniform": "|"}
COLOURS = {
    TRAINED: CLASS_COLOURS[0],
    "untrained": CLASS_COLOURS[1],
    "similarity": CLASS_COLOURS[2],
    "centre": CLASS_COLOURS[4],
    "uniform": "0.3",
}


def map_agreement(scores: MapScores, classes: list[str]) -> Figure:
    """Draw how trained attention and the references agree with the masks, one panel for each of the MEASURES.

    Parameters
    ----------
    scores : MapScores
        Of n patches and N classes.
    classes : list of str
        N names.
    """
    n_classes = len(classes)
    counts = (~np.isnan(scores.area)).sum(axis=0)
    figure, panels = plt.subplots(1, len(MEASURES), figsize=(9, 0.5 * n_classes + 1.8), sharey=True)
    highest = np.nanmax([class_means(getattr(scores, measure)) for measure in MEASURES], initial=0.1)
    limit = min(1.03, 1.15 * highest)
    listed = []
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        means = class_means(getattr(scores, measure))
        ranges = [np.nanmin(column) if count else np.nan for column, count in zip(means.T, counts, strict=True)]
        axes.hlines(np.arange(n_classes), ranges, means[scores.maps.index(TRAINED)], color="0.8", lw=2, zorder=1)
        for name, values in zip(scores.maps, means, strict=True):
            axes.plot(
                values, np.arange(n_classes), MARKERS[name], color=COLOURS[name], mew=1.8,
                ms=11 if name == "uniform" else 6.5, mfc=COLOURS[name] if name == TRAINED else "white",
                label=MAP_LABELS[name], zorder=4 if name == TRAINED else 3,
            )  # fmt: skip
        axes.set(title=label, xlim=(-0.03 * limit, limit), ylim=(n_classes - 0.5, -0.5))
        listed += [
            f"{label}, {name}: "
            + ", ".join(f"{MAP_LABELS[m].lower()} {v:.2f}" for m, v in zip(scores.maps, column, strict=True))
            for name, column, count in zip(classes, means.T, counts, strict=True)
            if count
        ]
    panels[0].set_yticks(
        range(n_classes), [f"{name} ({count})" for name, count in zip(short_names(classes), counts, strict=True)]
    )
    figure.tight_layout()
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(scores.maps),
        frameon=False, handletextpad=0.1, columnspacing=1.2,
    )  # fmt: skip
    return described(
        figure, f"How maps agree with the masks, by class (patches that count in brackets). {'; '.join(listed)}."
    )
