"""Whether a random split flatters: the same models trained and scored under a random and under a grouped split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoclip_lib.metrics import Predictions, point_metrics
from histoclip_lib.results import ROW_LABELS
from histoclip_lib.uncertainty import LEVEL, draw_units, resampled_metrics

METRICS = ("mAcc", "mAP")


@dataclass(frozen=True, eq=False)
class SplitScores:
    """What models trained under one split say of its validation part.

    Attributes
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    units : ndarray of shape (B,)
        What the bootstrap draws, as `results.bootstrap_units` returns.
    rows : dict of str to Predictions
        By row of the table, such as `linear_probe`.
    """

    labels: np.ndarray
    units: np.ndarray
    rows: dict[str, Predictions]


def split_gaps(random: SplitScores, grouped: SplitScores, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Compare mAcc and mAP of each row that both splits have.

    The two validation parts are different patches, of which some may be the same, so nothing is paired: each part is
    resampled by itself, and the percentiles of the difference of the two give the interval of the gap. It is wider than
    a paired one would be. It holds the chance of which units were validated on, not that of the training's seed.

    Parameters
    ----------
    random, grouped : SplitScores
        Under either split.
    resamples, seed : int
        Of the bootstrap; the second part is drawn with seed + 1.

    Returns
    -------
    DataFrame
        A line for each row and metric: `row`, `metric`, `random`, `grouped`, `gap` (random minus grouped), each with
        its 95 % percentile interval in `..._low` and `..._high`. NaN where no class has a positive patch.
    """
    parts = {"random": random, "grouped": grouped}
    draws = {name: draw_units(part.units, resamples, seed + k) for k, (name, part) in enumerate(parts.items())}
    lines = []
    for row in (row for row in ROW_LABELS if row in random.rows and row in grouped.rows):
        points, resampled = {}, {}
        for name, part in parts.items():
            columns = [str(k) for k in range(part.labels.shape[1])]
            points[name] = point_metrics(part.labels, part.rows[row], columns)
            resampled[name] = resampled_metrics(part.labels, part.rows[row], draws[name])
        for metric in METRICS:
            values = {name: points[name][metric] for name in parts}
            values = {name: np.nan if value is None else value for name, value in values.items()}
            values["gap"] = values["random"] - values["grouped"]
            spread = {name: resampled[name][metric] for name in parts}
            spread["gap"] = spread["random"] - spread["grouped"]
            line = {"row": row, "metric": metric}
            for name, value in values.items():
                low, high = _interval(spread[name])
                line |= {name: value, f"{name}_low": low, f"{name}_high": high}
            lines.append(line)
    return pd.DataFrame(lines)


def _interval(values: np.ndarray) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def split_gap_table(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return what `split_gaps` found as text, with 95 % intervals."""
    lines = [
        {
            "row": ROW_LABELS[gap["row"]],
            "metric": gap["metric"],
            "random split": _text(gap, "random", "{:.3f}"),
            "grouped split": _text(gap, "grouped", "{:.3f}"),
            "random minus grouped": _text(gap, "gap", "{:+.3f}"),
        }
        for gap in gaps.to_dict("records")
    ]
    return pd.DataFrame(lines).set_index("row").rename_axis(None)


def _text(gap: dict, name: str, number: str) -> str:
    if np.isnan(gap[name]):
        return "—"
    low, high = (number.format(gap[f"{name}_{end}"]) for end in ("low", "high"))
    return f"{number.format(gap[name])} ({low} to {high})"


def split_gap_note(gaps: pd.DataFrame) -> str:
    """Say in Markdown whether the random split flatters each row."""
    lines = []
    for gap in gaps.to_dict("records"):
        label, metric = ROW_LABELS[gap["row"]], gap["metric"]
        if np.isnan(gap["gap"]):
            lines.append(f"- {label}, {metric}: not defined, since no class has a positive patch.")
            continue
        if gap["gap_low"] > 0:
            finding = "the random split **flatters**"
        elif gap["gap_high"] < 0:
            finding = "the random split gives **less** than the grouped one"
        else:
            finding = "the two splits **cannot be told apart**"
        lines.append(
            f"- {label}, {metric}: {finding}, {gap['gap']:+.4f} (95 % interval {gap['gap_low']:+.4f} to "
            f"{gap['gap_high']:+.4f})."
        )
    luck = "The two validation parts are different patches and each model was trained once: a gap holds their luck too."
    return "\n".join([*lines, "", luck])
