"""Scores by subgroup (site, scanner, organ, ...), and whether the largest gap between two is more than chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoclip_lib.common.arrays import agreement, nan_mean
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.evaluation.artifacts import METRICS
from histoclip_lib.evaluation.text import number_text, p_clause, range_text
from histoclip_lib.evaluation.uncertainty import MIN_GROUPS, blocks, evaluate, holm, unit_sums

UNKNOWN = "unknown"
PERMUTATIONS = 9999
FEWEST_UNITS = 2  # a subgroup of fewer units takes no part in the test


@dataclass(frozen=True)
class SubgroupGap:
    """The largest difference in mAcc between two subgroups: the better, the worse, how far apart they are, and p.

    `left_out` counts the classes of which some subgroup has no known label.
    """

    best: str
    worst: str
    value: float
    p: float
    left_out: int = 0


def subgroup_table(
    labels: np.ndarray,
    predictions: Predictions,
    classes: list[str],
    columns: dict[str, np.ndarray],
    units: np.ndarray,
    resamples: int,
    seed: int,
    folds: int = 1,
) -> pd.DataFrame:
    """Return every headline metric of each subgroup as text, with its 95% interval from MIN_GROUPS groups on.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0, 1, or NaN where not known.
    predictions : Predictions
        For the same patches.
    classes : list of str
        N names.
    columns : dict of str to ndarray of shape (B,), str
        The subgroup of each patch, by what divides them; an empty text is unknown.
    units, resamples, seed, folds
        Of the bootstrap, which draws units within the subgroup; see `uncertainty.evaluate`.
    """
    lines = {}
    for column, values in columns.items():
        for value in sorted(set(values)):
            part = values == value
            own = Predictions(predictions.scores[part], predictions.decisions[part])
            found = evaluate(labels[part], own, classes, units[part], resamples, seed, folds)
            line = {"patches": int(part.sum()), "groups": len(np.unique(units[part]))}
            for key, label in METRICS.items():
                shown = found[f"{key}_ci"] and line["groups"] >= MIN_GROUPS
                interval = f" ({range_text(found[f'{key}_ci'])})" if shown else ""
                line[label] = number_text(found[key]) + interval
            lines[column, value or UNKNOWN] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def largest_gap(
    labels: np.ndarray, decisions: np.ndarray, values: np.ndarray, units: np.ndarray, seed: int
) -> SubgroupGap | None:
    """Test the largest difference in mAcc between two subgroups; None where fewer than two can be compared.

    The mean is over the classes with known labels in every subgroup: a class that is hard would otherwise count against
    those alone that know it.

    Units are dealt to the subgroups at random, as many to each as it has, and p is how often the largest difference is
    as large as the one found: that it is the largest of several needs no further correction. Where patches of one unit
    belong to several subgroups, patches are dealt and p is too small.

    Parameters
    ----------
    labels, decisions : ndarray of shape (B, N)
        Truth, NaN where not known, and what a method decides.
    values : ndarray of shape (B,), str
        The subgroup of each patch; those without one, and of subgroups with fewer than FEWEST_UNITS, are left out, as
        are patches without a known label.
    units : ndarray of shape (B,)
        What is exchangeable.
    seed : int
        Of the PERMUTATIONS.
    """
    if pd.Series(values).where(values != "").groupby(units).nunique().max() > 1:
        units = np.arange(len(units))
    right = agreement(labels, decisions)
    used = ~np.isnan(right).all(axis=1)
    names = [v for v in sorted(set(values) - {""}) if len(np.unique(units[used & (values == v)])) >= FEWEST_UNITS]
    common = np.array([~np.isnan(right[values == v]).all(axis=0) for v in names]).all(axis=0)  # (N,)
    if len(names) < 2 or not common.any():
        return None
    used = np.isin(values, names) & ~np.isnan(right[:, common]).all(axis=1)
    right = right[used][:, common]
    _, first, unit = np.unique(units[used], return_index=True, return_inverse=True)
    sums, known = unit_sums(np.nan_to_num(right), unit), unit_sums(~np.isnan(right), unit)  # (U, N)
    group = np.searchsorted(names, values[used][first])  # of each unit

    def accuracies(dealt: np.ndarray) -> np.ndarray:
        """Return mAcc of each subgroup (P, K) where the units are dealt to them (P, U)."""
        own = [(dealt == k).astype(float) for k in range(len(names))]
        with np.errstate(invalid="ignore"):  # a subgroup may be dealt no known label of a class
            return np.stack([nan_mean((part @ sums) / (part @ known)) for part in own], axis=1)

    generator, (found,) = np.random.default_rng(seed), accuracies(group[None])
    n_extreme, value = 0, float(np.ptp(found))
    for block in blocks(PERMUTATIONS, len(group)):
        dealt = generator.permuted(np.tile(group, (block.stop - block.start, 1)), axis=1)
        n_extreme += (np.ptp(accuracies(dealt), axis=1) >= value - 1e-12).sum()
    order, p = np.argsort(-found, kind="stable"), float((1 + n_extreme) / (1 + PERMUTATIONS))
    return SubgroupGap(str(names[order[0]]), str(names[order[-1]]), value, p, int((~common).sum()))


def gap_note(gaps: dict[str, SubgroupGap | None]) -> str:
    """Say in Markdown between which subgroups the difference is largest, and whether it is more than chance.

    p is corrected by Holm's method for the columns.
    """
    tested = [column for column, gap in gaps.items() if gap is not None]
    corrected = dict(zip(tested, holm(np.array([gaps[column].p for column in tested])), strict=True))
    lines = []
    for column, gap in gaps.items():
        if gap is None:
            lines.append(
                f"- {column}: fewer than two subgroups have {FEWEST_UNITS} groups and labels of the same classes, so "
                "none can be compared."
            )
            continue
        said = "more than chance explains" if corrected[column] < 0.05 else "which is not significant"
        lines.append(
            f"- {column}: mAcc is {gap.value:.3f} higher for *{gap.best}* than for *{gap.worst}*, {said} "
            f"({p_clause(corrected[column])} for the largest difference)."
            + f" Classes without labels in some subgroup are left out: {gap.left_out}."
            * (gap.left_out > 0)
        )
    if len(tested) > 1:
        lines += ["", f"p is corrected by Holm's method for {len(tested)} columns."]
    return "\n".join(lines)
