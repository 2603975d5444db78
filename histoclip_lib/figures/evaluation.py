"""Pictures of the rows of the table."""

from __future__ import annotations

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.figures.base import CLASS_COLOURS, described, heat_map, short_names


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
    columns = short_names(list(values.columns))
    heat_map(axes, values.astype(float), list(values.index), columns, label, 0, 1, cmap="viridis")
    listed = "; ".join(
        f"{row}: " + ", ".join(f"{c} {v:.2f}" for c, v in values.loc[row].items()) for row in values.index
    )
    return described(figure, f"Heat map of {label} for each row and class. {listed}.")
