"""Which row is ahead of which: HistoCLIP against every other row in words and as a table, and all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from histoclip_lib.datasets.base import PatchDataset
from histoclip_lib.metrics import Predictions
from histoclip_lib.results import ROW_LABELS, bootstrap_units
from histoclip_lib.uncertainty import Comparison, Difference, compare, holm, mean_gap_p, smallest_p

OURS = "histoclip_patch"
RIVALS = {
    "linear_probe": "the linear probe on the same features",
    "knn": "the nearest neighbours on the same features",
    "mlp": "the two-layer MLP on the same features",
    "histoclip_text_free": "the head with random queries",
    "tissue_prior": "the tissue prior",
    "majority": "the majority row",
}
METRICS = {"mAcc": "macc", "mAP": "map"}  # of a Comparison
ALPHA = 0.05


def against_every_row(
    rows: dict[str, Predictions], patches: PatchDataset, val: np.ndarray, resamples: int, seed: int
) -> dict[str, Comparison]:
    """Compare HistoCLIP with patch keys with each other row, in the order of ROW_LABELS.

    Parameters
    ----------
    rows : dict of str to Predictions
        For the patches `val`; one of them is `histoclip_patch`.
    patches : PatchDataset
        The data set.
    val : ndarray of int
        Its validation part.
    resamples, seed : int
        See `uncertainty.compare`.
    """
    units = bootstrap_units(patches, val)
    return {
        name: compare(patches.labels[val], rows[OURS], rows[name], units, resamples, seed)
        for name in ROW_LABELS
        if name in rows and name != OURS
    }


def verdict(comparisons: dict[str, Comparison], units: np.ndarray) -> str:
    """Say in Markdown how HistoCLIP stands against the RIVALS among the rows compared, flattering or not.

    A row is ahead or behind where the 95 % interval of the difference leaves out 0 and p is below 0.05. These p are
    each of one comparison; the last line says which rows still differ by p corrected over all rows compared.

    Parameters
    ----------
    comparisons : dict of str to Comparison
        As `against_every_row` returns.
    units : ndarray of shape (B,)
        What the tests swapped, as `results.bootstrap_units` returns: with few of them no corrected p can be small.
    """
    lines = []
    for name, label in RIVALS.items():
        if name in comparisons:
            macc, mean_ap = comparisons[name].macc, comparisons[name].map
            lines.append(
                f"- HistoCLIP with patch keys **{finding(macc)}** {label} in mAcc ({_in_words(macc)}), and "
                f"**{finding(mean_ap)}** it in mAP ({_in_words(mean_ap)})."
            )
    if lines:
        lines.append(_corrected(comparisons, units))
    return "\n".join(lines)


def _corrected(comparisons: dict[str, Comparison], units: np.ndarray) -> str:
    found = []
    for metric, key in METRICS.items():
        p = holm(np.array([getattr(comparison, key).p for comparison in comparisons.values()]))
        labels = [ROW_LABELS[name] for name, adjusted in zip(comparisons, p, strict=True) if adjusted < ALPHA]
        found.append(f"in {metric} {'; '.join(labels) or 'no row'}")
    number = "the one row" if len(comparisons) == 1 else f"all {len(comparisons)} rows"
    text = (
        f"- Each p above is of its comparison alone. With Holm's correction over {number} compared, p stays below "
        f"{ALPHA} against: {', and '.join(found)}."
    )
    if (smallest := smallest_p(units)) * len(comparisons) >= ALPHA:
        text += f" It could not: with {len(np.unique(units))} groups no p falls below {smallest:.4f} before correction."
    return text


def _in_words(gap: Difference) -> str:
    if np.isnan(gap.value):
        return "not defined: no class is present"
    return f"{gap.value:+.4f}, 95 % interval {gap.low:+.4f} to {gap.high:+.4f}, p = {gap.p:.4f}"


def finding(gap: Difference) -> str:
    """Say what a difference of two rows lets one say; interval and test must agree."""
    if gap.p < ALPHA and gap.low > 0:
        return "is ahead of"
    if gap.p < ALPHA and gap.high < 0:
        return "is behind"
    return "cannot be told from"


def differences_table(comparisons: dict[str, Comparison]) -> pd.DataFrame:
    """Return HistoCLIP with patch keys minus each other row as text, with 95 % interval; p is Holm's over the lines."""
    table = pd.DataFrame(index=[ROW_LABELS[name] for name in comparisons])
    for metric, key in METRICS.items():
        gaps = [getattr(comparison, key) for comparison in comparisons.values()]
        table[metric] = [_text("{:+.4f} ({:+.3f} to {:+.3f})", gap.value, gap.low, gap.high) for gap in gaps]
        table[f"p, {metric}"] = [_text("{:.4f}", p) for p in holm(np.array([gap.p for gap in gaps]))]
    return table


def _text(template: str, *values: float) -> str:
    return "—" if np.isnan(values).any() else template.format(*values)


def all_pairs(
    rows: dict[str, Predictions], patches: PatchDataset, val: np.ndarray, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare every row with every other in mAcc.

    Parameters
    ----------
    rows, patches, val
        As for `against_every_row`.
    seed : int
        Of the permutations; see `uncertainty.mean_gap_p`.

    Returns
    -------
    differences, p : DataFrame
        Square, the rows in the order of ROW_LABELS under their readable names: mAcc of the row minus mAcc of the
        column, and the p of its permutation test with Holm's correction over all pairs. NaN on the diagonal.
    """
    names = [name for name in ROW_LABELS if name in rows]
    correct = [(patches.labels[val] == rows[name].decisions).mean(axis=1) for name in names]
    differences, p = np.full((2, len(names), len(names)), np.nan)
    pairs = list(combinations(range(len(names)), 2))
    if pairs:
        first, second = np.array(pairs).T
        gaps = np.stack([correct[i] - correct[j] for i, j in pairs], axis=1)
        differences[first, second], differences[second, first] = gaps.mean(axis=0), -gaps.mean(axis=0)
        p[first, second] = p[second, first] = holm(mean_gap_p(gaps, bootstrap_units(patches, val), seed))
    labels = [ROW_LABELS[name] for name in names]
    return pd.DataFrame(differences, labels, labels), pd.DataFrame(p, labels, labels)
