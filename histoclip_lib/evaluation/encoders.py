"""Several encoders under one method, on the patches that all of their runs validate on: ranks, tests, agreement."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import combinations

import numpy as np
import pandas as pd

from histoclip_lib.common import arrays
from histoclip_lib.common.arrays import nan_mean
from histoclip_lib.common.predictions import Predictions, mean_accuracy
from histoclip_lib.evaluation.artifacts import ValidationPredictions
from histoclip_lib.evaluation.uncertainty import (
    SHARE,
    accuracy_shares,
    draw_units,
    pairwise_gaps,
    percentile_interval,
    resampled_means,
)

RESAMPLES = 1000
SEED = 0  # of the bootstrap and of the permutations, which all encoders share


@dataclass(frozen=True, eq=False)
class Aligned:
    """Predictions of K encoders for the same B patches and N classes.

    Attributes
    ----------
    runs : dict of str to ValidationPredictions
        By the encoder's name; files, labels and groups are the same in all.
    """

    runs: dict[str, ValidationPredictions]

    @property
    def first(self) -> ValidationPredictions:
        """One of the runs, for what they share."""
        return next(iter(self.runs.values()))

    def of(self, method: str) -> dict[str, Predictions]:
        """Return the predictions of a method by encoder, of those that have it."""
        return {name: run.methods[method] for name, run in self.runs.items() if method in run.methods}


def align_runs(runs: dict[str, ValidationPredictions]) -> Aligned | None:
    """Bring runs to the patches that all of them validate on; None where there are none with the same labels.

    Classes are put into the order of the first run; a run with other classes is left out.
    """
    first = next(iter(runs.values()), None)
    if first is None:
        return None
    kept = {name: run for name, run in runs.items() if set(run.classes) == set(first.classes)}
    files = reduce(np.intersect1d, [run.files for run in kept.values()])
    taken = {
        name: run.take(np.searchsorted(run.files, files), np.array([run.classes.index(c) for c in first.classes]))
        for name, run in kept.items()
    }
    labels = np.stack([run.labels for run in taken.values()])
    places = np.flatnonzero(((labels == labels[0]) | (np.isnan(labels) & np.isnan(labels[0]))).all(axis=(0, 2)))
    return Aligned({name: run.take(places) for name, run in taken.items()}) if len(places) else None


@dataclass(frozen=True, eq=False)
class Ranking:
    """Encoders under one method, the best first.

    Attributes
    ----------
    names : list of str
        The K encoders.
    accuracy : ndarray of shape (K,)
        mAcc on the common patches.
    intervals : ndarray of shape (K, 2)
        Its 95% bootstrap interval.
    differences, p : DataFrame of shape (K, K)
        mAcc of the row minus that of the column; p of the paired permutation test, with Holm's correction over all
        pairs. NaN on the diagonal.
    """

    names: list[str]
    accuracy: np.ndarray
    intervals: np.ndarray
    differences: pd.DataFrame
    p: pd.DataFrame


def rank(aligned: Aligned, method: str, folds: int = 1) -> Ranking:
    """Rank encoders by mAcc of a method, and test every pair on the same patches.

    Parameters
    ----------
    aligned : Aligned
        At least one encoder has the method.
    method : str
        Such as `linear_probe`.
    folds : int
        Of the cross-validation that the predictions come from; 1 for a single split.
    """
    run, of_method = aligned.first, aligned.of(method)
    accuracy = {name: mean_accuracy(run.labels, own.decisions) for name, own in of_method.items()}
    names = sorted(accuracy, key=lambda name: -accuracy[name])
    right = {name: arrays.agreement(run.labels, of_method[name].decisions) for name in names}
    draws = draw_units(run.units, RESAMPLES, SEED)
    shares = np.stack([accuracy_shares(own) for own in right.values()], axis=1)  # (B, K)
    tables = (pd.DataFrame(found, names, names) for found in pairwise_gaps(shares, run.units, SEED, folds))
    intervals = [
        percentile_interval(nan_mean(resampled_means(right[name], draws)), accuracy[name], folds, SHARE)
        for name in names
    ]
    return Ranking(names, np.array([accuracy[name] for name in names]), np.array(intervals), *tables)


def agreement(aligned: Aligned, method: str) -> pd.DataFrame:
    """Return Cohen's kappa of the decisions of every two encoders, shape (K, K), over all labels together.

    It is 1 where they always decide alike, and 0 where they agree as often as by chance, given how often each marks a
    label as present (Cohen 1960). NaN where both decide the same for all labels.
    """
    from sklearn.metrics import cohen_kappa_score

    decisions = {name: own.decisions.ravel() for name, own in aligned.of(method).items()}
    table = pd.DataFrame(np.eye(len(decisions)), list(decisions), list(decisions))
    for one, other in combinations(decisions, 2):
        same = len({*decisions[one].tolist(), *decisions[other].tolist()}) == 1
        table.loc[one, other] = table.loc[other, one] = (
            np.nan if same else cohen_kappa_score(decisions[one], decisions[other])
        )
    return table


def hardest(aligned: Aligned, method: str, count: int) -> list[tuple[int, np.ndarray]]:
    """Return the patches with the most labels that every encoder gets wrong: place, and which labels, bool (N,)."""
    truth = aligned.first.labels
    wrong = np.all([own.decisions != truth for own in aligned.of(method).values()], axis=0) & ~np.isnan(truth)
    order = np.argsort(-wrong.sum(axis=1), kind="stable")[:count]
    return [(int(place), wrong[place]) for place in order if wrong[place].any()]
