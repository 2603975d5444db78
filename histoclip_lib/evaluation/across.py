"""Methods compared across data sets: a random-effects mean of differences, and ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from histoclip_lib.evaluation.artifacts import ValidationPredictions
from histoclip_lib.evaluation.comparisons import BETTER, OURS, WORSE, finding
from histoclip_lib.evaluation.methods import label_of
from histoclip_lib.evaluation.text import number_text, p_clause, signed_text
from histoclip_lib.evaluation.uncertainty import (
    LEVEL,
    Difference,
    draw_units,
    percentile_interval,
    resampled_metrics,
    stretch,
    whole_and_drawn,
)


@dataclass(frozen=True)
class Pooled:
    """A mean over data sets: value, 95% interval, p, the variance between them (tau squared), and their number."""

    value: float
    low: float
    high: float
    p: float
    between: float
    n: int


def random_effects(values: np.ndarray, variances: np.ndarray) -> Pooled:
    """Pool the results of K data sets, which may differ by more than their own uncertainty.

    The variance between data sets is DerSimonian and Laird's; the interval and p are Hartung and Knapp's, from a t
    distribution with K - 1 degrees of freedom, which with few data sets is the one that holds its level. It is never
    narrower than the one without their factor. A data set whose estimate has no spread, as where two methods decide
    alike on every patch, would outweigh all others: it counts like the most precise of these.

    Parameters
    ----------
    values, variances : ndarray of shape (K,)
        An estimate for each data set, such as a difference of two methods, and its squared standard error.

    References
    ----------
    DerSimonian and Laird, Meta-analysis in clinical trials, Controlled Clinical Trials 7, 1986; IntHout, Ioannidis and
    Borm, The Hartung-Knapp-Sidik-Jonkman method for random effects meta-analysis, BMC Medical Research Methodology 14,
    2014; Röver, Knapp and Friede, ibid. 15, 2015 (the factor of at least 1).
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} data sets cannot be pooled; at least 2 are needed.")
    spread = variances > 1e-12
    variances = np.where(spread, variances, variances[spread].min() if spread.any() else 1e-12)
    weights = 1 / variances
    fixed = np.average(values, weights=weights)
    excess = (weights * (values - fixed) ** 2).sum() - (n - 1)
    between = max(0.0, excess / (weights.sum() - (weights**2).sum() / weights.sum()))
    weights = 1 / (variances + between)
    mean = np.average(values, weights=weights)
    factor = max(1.0, (weights * (values - mean) ** 2).sum() / (n - 1))
    error = np.sqrt(factor / weights.sum())
    reach = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, n - 1)
    return Pooled(float(mean), float(mean - reach), float(mean + reach), float(p), float(between), n)


@dataclass(frozen=True, eq=False)
class Ranks:
    """Mean ranks (M,) of M methods over K data sets, 1 the best; Friedman's p; the critical difference of two ranks."""

    methods: list[str]
    mean: np.ndarray
    p: float
    critical: float
    n: int


def rank_methods(scores: dict[str, np.ndarray]) -> Ranks:
    """Rank methods on each data set and test whether any differ.

    Parameters
    ----------
    scores : dict of str to ndarray of shape (K,)
        Of each of the M methods on each data set, higher is better; ties share their mean rank.

    Returns
    -------
    Ranks
        By rising mean rank. p is that of Friedman's test, NaN with fewer than 3 methods or 2 data sets. Two methods
        whose mean ranks differ by less than the critical difference are not significantly different (Nemenyi).

    References
    ----------
    Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006.
    """
    table = np.stack(list(scores.values()), axis=1)  # (K, M)
    n, n_methods = table.shape
    mean = stats.rankdata(-table, axis=1).mean(axis=0)
    p = float(stats.friedmanchisquare(*table.T).pvalue) if n_methods > 2 and n > 1 else np.nan
    quantile = stats.studentized_range.ppf(LEVEL, n_methods, np.inf) / np.sqrt(2)
    order = np.argsort(mean, kind="stable")
    critical = float(quantile * np.sqrt(n_methods * (n_methods + 1) / (6 * n)))
    return Ranks([list(scores)[k] for k in order], mean[order], p, critical, n)


def cliques(ranks: Ranks) -> list[tuple[int, int]]:
    """Return the maximal runs of methods, first and last position, whose mean ranks are within the critical one."""
    found = []
    for start, rank in enumerate(ranks.mean):
        end = int(np.searchsorted(ranks.mean, rank + ranks.critical, side="right")) - 1
        if end > start and (not found or end > found[-1][1]):
            found.append((start, end))
    return found


@dataclass(frozen=True, eq=False)
class Across:
    """HistoCLIP with patch tokens minus another method in one metric: on each data set, and pooled."""

    names: list[str]
    gaps: list[Difference]
    pooled: Pooled


def gaps_across(
    runs: dict[str, ValidationPredictions],
    method: str,
    metric: str,
    folds: dict[str, int],
    resamples: int = 500,
    seed: int = 0,
) -> Across:
    """Compare HistoCLIP with patch tokens with another method on several data sets.

    Parameters
    ----------
    runs : dict of str to ValidationPredictions
        One run of each data set, by its name; at least two.
    method : str
        Such as `linear_probe`.
    metric : str
        `mAcc` or `mAP`.
    folds : dict of str to int
        Of the cross-validation of each run; 1 for a single split. They widen its interval and its variance.
    resamples, seed : int
        Of the bootstrap, whose standard deviation is the standard error on a data set.
    """
    gaps, variances = [], []
    for name, run in runs.items():
        draws = whole_and_drawn(draw_units(run.units, resamples, seed))
        ours, other = (resampled_metrics(run.labels, run.methods[m], draws)[metric] for m in (OURS, method))
        value, drawn = float(ours[0] - other[0]), (ours - other)[1:]
        gaps.append(Difference(value, *percentile_interval(drawn, value, folds[name])))
        variances.append(np.nanvar(drawn) * stretch(folds[name]) ** 2)
    pooled = random_effects(np.array([gap.value for gap in gaps]), np.array(variances))
    return Across(list(runs), gaps, pooled)


def across_table(found: dict[str, Across]) -> pd.DataFrame:
    """Return differences on each data set and pooled, as text; `found` by the name of the metric."""
    columns = {}
    for metric, own in found.items():
        gap = Difference(own.pooled.value, own.pooled.low, own.pooled.high)
        columns[metric] = [*map(signed_text, own.gaps), signed_text(gap)]
    names = next(iter(found.values())).names
    return pd.DataFrame(columns, [*names, f"mean over {len(names)} data sets"])


def across_note(found: dict[str, Across], method: str) -> str:
    """Say in Markdown what holds over all data sets."""
    said = []
    for metric, own in found.items():
        pooled = own.pooled
        order = {BETTER: "above", WORSE: "below"}.get(finding(pooled), "not significantly different from")
        said.append(
            f"in {metric} HistoCLIP with patch tokens is {order} it (mean difference {pooled.value:+.3f}, 95% "
            f"{pooled.low:+.3f} to {pooled.high:+.3f}, {p_clause(pooled.p)})"
        )
    n = next(iter(found.values())).pooled.n
    return (
        f"**{label_of(method)}, over {n} data sets: {'; '.join(said)}.** Random effects over data sets (DerSimonian "
        "and Laird), interval and p of Hartung and Knapp: they hold for further data sets like these, if these are a "
        "sample of such."
    )


def ranks_note(ranks: Ranks) -> str:
    """Say in Markdown whether ranks differ."""
    listed = ", ".join(f"{label_of(m)} {number_text(r, 1)}" for m, r in zip(ranks.methods, ranks.mean, strict=True))
    return (
        f"Mean ranks in mAP over {ranks.n} data sets: {listed}. Friedman's {p_clause(ranks.p)}; two methods must be "
        f"{ranks.critical:.1f} ranks apart to be significantly different (Nemenyi)."
    )
