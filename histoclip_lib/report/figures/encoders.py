"""Figures that compare encoders: methods by encoder, ranks with tests, agreement."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from histoclip_lib.evaluation.comparisons import ALPHA
from histoclip_lib.evaluation.encoders import Ranking
from histoclip_lib.evaluation.methods import label_of
from histoclip_lib.report.figures.base import UNCOLOURED, described, figure, heat_map, method_colour, wrapped


@figure
def methods_by_encoder(scored: dict[str, dict[str, tuple[float, tuple[float, float] | None]]]) -> Figure:
    """Draw mAcc of some methods for each encoder, with intervals.

    Parameters
    ----------
    scored : dict of str to dict of str to (float, (float, float) or None)
        By method, then by encoder: mAcc and its interval.
    """
    encoders = list(dict.fromkeys(name for own in scored.values() for name in own))
    height = 0.22 * len(scored) + 0.25
    drawn, axes = plt.subplots(figsize=(7.5, height * len(encoders) + 1.6), layout="constrained")
    for line, (method, own) in enumerate(scored.items()):
        offset = (line - (len(scored) - 1) / 2) * 0.8 / len(scored)
        places = [encoders.index(name) + offset for name in own]
        colour = method_colour(method)
        for place, (_, interval) in zip(places, own.values(), strict=True):
            if interval is not None:
                axes.plot(interval, [place, place], color=colour, lw=1.5)
        axes.plot([value for value, _ in own.values()], places, "o", color=colour, ms=4.5, label=label_of(method))
    axes.set_yticks(range(len(encoders)), [wrapped(name) for name in encoders])
    axes.set_ylim(len(encoders) - 0.5, -0.5)
    for edge in range(len(encoders) - 1):
        axes.axhline(edge + 0.5, color=UNCOLOURED, lw=0.4)
    axes.set_xlabel("mAcc, 95% interval")
    axes.grid(axis="y", visible=False)
    drawn.legend(loc="outside lower center", ncols=min(3, len(scored)), fontsize=8, frameon=False)
    said = "; ".join(
        f"{name}: "
        + ", ".join(f"{label_of(method)} {own[name][0]:.3f}" for method, own in scored.items() if name in own)
        for name in encoders
    )
    return described(
        drawn,
        f"mAcc of {len(scored)} methods for each of {len(encoders)} encoders. {said}.",
        f"mAcc of {len(scored)} methods for each of {len(encoders)} encoders, on the validation set of its run. "
        "Zero-shot methods are absent where an encoder has no text tower.",
    )


@figure
def encoder_ranks(ranking: Ranking, method: str) -> Figure:
    """Draw encoders in the order of mAcc; a bar joins those that are not significantly different."""
    names, count = ranking.names, len(ranking.names)
    drawn, axes = plt.subplots(figsize=(7.5, 0.36 * count + 1.3), layout="constrained")
    for place in range(count):
        axes.plot(ranking.intervals[place], [place, place], color=UNCOLOURED, lw=2)
        axes.plot(ranking.accuracy[place], place, "o", color=method_colour(method), ms=6)
        axes.annotate(
            f"{ranking.accuracy[place]:.3f}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9
        )
    alike = (ranking.p.to_numpy() >= ALPHA) | np.eye(count, dtype=bool)
    groups, reached = [], 0
    for start in range(count):
        end = start
        while end + 1 < count and alike[start : end + 2, start : end + 2].all():
            end += 1
        if end > max(start, reached):
            groups.append((start, end))
            reached = end
    for number, (start, end) in enumerate(groups):
        axes.plot(
            [-0.02 - 0.02 * number] * 2, [start - 0.25, end + 0.25], transform=axes.get_yaxis_transform(), color="0",
            lw=2.5, clip_on=False, solid_capstyle="butt",
        )  # fmt: skip
    axes.set_yticks(range(count), [wrapped(name) for name in names])
    axes.tick_params(axis="y", pad=8 + 9 * len(groups))
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlabel(f"mAcc of {label_of(method)} on the common patches, 95% interval")
    axes.grid(axis="y", visible=False)
    pairs = "; ".join(
        f"{one} minus {other} {ranking.differences.loc[one, other]:+.3f} (p {ranking.p.loc[one, other]:.3f})"
        for k, one in enumerate(names)
        for other in names[k + 1 :]
    )
    return described(
        drawn,
        f"Encoders ranked by mAcc of {label_of(method)}: "
        + ", ".join(f"{name} {value:.3f}" for name, value in zip(names, ranking.accuracy, strict=True))
        + (f". {pairs}." if pairs else "."),
        f"{count} encoders ranked by mAcc of {label_of(method)}, on the same patches. A black bar joins encoders of "
        f"which no two differ significantly (paired permutation test, Holm's correction, p < {ALPHA:g}).",
    )


@figure
def agreement_map(kappa: pd.DataFrame, method: str) -> Figure:
    """Draw Cohen's kappa of the decisions of every two encoders, as `encoders.agreement` returns it."""
    names = [wrapped(name) for name in kappa.index]
    cell = min(0.9, 6 / len(names))
    drawn, axes = plt.subplots(figsize=(cell * len(names) + 3, 0.75 * cell * len(names) + 1.8))
    values = kappa.to_numpy()
    heat_map(axes, values, names, names, "Cohen's kappa", min(0.0, float(np.nanmin(values))), 1)
    said = "; ".join(
        f"{one} and {other} {kappa.loc[one, other]:.2f}"
        for k, one in enumerate(kappa.index)
        for other in kappa.index[k + 1 :]
    )
    return described(
        drawn,
        f"Heat map of Cohen's kappa between the decisions of encoders under {label_of(method)}. {said}.",
        f"Agreement of the decisions of {label_of(method)} between encoders, over all labels: 1 is the same decision "
        "everywhere, 0 no more than by chance.",
    )
