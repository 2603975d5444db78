"""Methods compared across data sets: a random-effects mean of differences, and ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Pooled:
    """A mean over data sets: value, 95 % interval, p, the variance between them (tau squared), and their number."""

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
    narrower than the one without their factor.

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
    variances = np.maximum(variances, 1e-12)
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
