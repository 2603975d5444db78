"""Results of the studies of a run: designs, numbers of patches, seeds, and out-of-fold predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoclip_lib.common.predictions import Predictions, cross_entropy, join_folds
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.comparisons import all_corrected
from histoclip_lib.evaluation.leakage import SplitScores
from histoclip_lib.evaluation.metrics import point_metrics
from histoclip_lib.evaluation.text import number_text, p_text, signed_text
from histoclip_lib.evaluation.uncertainty import bootstrap_units, compare, evaluate

if TYPE_CHECKING:
    from histoclip_lib.models.studies import Finished

AS_REPORTED = "as reported"
HEAD_STUDY = Path(__file__).with_name("head_study.json")


def head_study() -> pd.DataFrame:
    """Return the table by which the head's defaults were chosen, as `benchmarks/head_study.py` wrote it.

    Returns
    -------
    DataFrame
        One line for each choice made otherwise, and columns `data set, metric`; cross-validated inside training sets.
    """
    lines = pd.read_json(HEAD_STUDY)
    columns = [f"{data}, {metric}" for data in lines["data"].unique() for metric in ("mAcc", "mAP", "cross-entropy")]
    wide = lines.pivot(index="choice", columns="data", values=["mAcc", "mAP", "cross-entropy"])
    wide.columns = [f"{data}, {metric}" for metric, data in wide.columns]
    return wide.loc[lines["choice"].unique(), columns].map("{:.3f}".format).rename_axis(None)


def study_note() -> str:
    """Say in a sentence in which measures of that table the linear probe is better on CoNSeP, its only real data."""
    lines = pd.read_json(HEAD_STUDY)
    real = lines[lines["data"] == "CoNSeP"].set_index("choice")[["mAcc", "mAP", "cross-entropy"]]
    gaps = (real.loc["linear probe"] - real.loc["as chosen"]) * [1, 1, -1]
    better = list(gaps.index[gaps > 0])
    listed = "all three measures" if len(better) == 3 else ", ".join(better) or "none of the measures"
    return (
        f"On CoNSeP, the only real data here, the linear probe scores better in {listed} (mAcc by {gaps['mAcc']:+.3f}; "
        "differences below about 0.01 are within chance)."
    )


def of_purpose(finished: list[Finished], purpose: str) -> list[Finished]:
    """Return the studies of one purpose, in their order."""
    return [study for study in finished if study.purpose == purpose]


def out_of_fold(
    finished: list[Finished], folds: list[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return probabilities inside the training set of fold k, by heads that saw neither these patches nor fold k.

    Returns
    -------
    (index, probabilities) or None
        Patches (n,) of the training set, and their probabilities (n, N): all of it for a single split, the two
        neighbouring folds in a cross-validation. None where a training set of one group left nothing to hold out.
    """
    _, val = folds[k]
    index, probabilities = [], []
    for study in of_purpose(finished, "fold"):
        if len(folds) == 1 or np.isin(val, study.test).all():
            inside = ~np.isin(study.test, val)
            index.append(study.test[inside])
            probabilities.append(study.predictions.scores[inside])
    return (np.concatenate(index), np.concatenate(probabilities)) if index else None


def two_splits(
    finished: list[Finished],
    methods: dict[str, Predictions],
    patches: PatchDataset,
    split: str,
    val: np.ndarray,
    folds: int = 1,
) -> tuple[SplitScores, SplitScores] | None:
    """Return the same models under a split by patch and under one by group, or None where there is only one split.

    Parameters
    ----------
    finished, methods, patches, val
        As for `seed_metrics`.
    split : str
        How the validation set was made; anything but `random` counts as by group.
    folds : int
        Of the cross-validation that `methods` come from; the other split is a single one.
    """
    from histoclip_lib.models.baselines import uninformative

    others = of_purpose(finished, "split")
    if not others:
        return None
    test = others[0].test
    rest = np.setdiff1d(np.arange(len(patches)), test)
    there = {"majority": uninformative(patches.labels[rest], len(test))["majority"]}
    there |= {study.method: study.predictions for study in others}
    here = {name: methods[name] for name in there}
    this, other = (
        SplitScores(patches.labels[part], bootstrap_units(patches, part), predictions, n_folds)
        for part, predictions, n_folds in ((val, here, folds), (test, there, 1))
    )
    return (this, other) if split == "random" else (other, this)


def methods_of(finished: list[Finished]) -> dict[str, Predictions]:
    """Return the methods that are fitted as studies, all folds joined: the two-layer MLP and the head without text."""
    by_method: dict[str, list[Finished]] = {}
    for study in of_purpose(finished, "method"):
        by_method.setdefault(study.method, []).append(study)
    return {
        method: join_folds([study.test for study in studies], [study.predictions for study in studies])
        for method, studies in by_method.items()
    }


def seed_metrics(
    finished: list[Finished], methods: dict[str, Predictions], patches: PatchDataset, val: np.ndarray, seed: int
) -> dict[str, dict[int, dict]]:
    """Evaluate every method that was trained with more than one seed: by method, then by seed.

    Parameters
    ----------
    finished : list of Finished
        Studies of the run.
    methods : dict of str to Predictions
        As reported, trained with `seed`, for the patches `val`.
    patches : PatchDataset
        The data set.
    val : ndarray of int
        Its validation set.
    seed : int
        Of the methods as reported.
    """
    found: dict[str, dict[int, dict]] = {}
    for study in of_purpose(finished, "seed"):
        by_seed = found.setdefault(study.method, {seed: _points(patches, val, methods[study.method])})
        by_seed[int(study.name.removeprefix("seed "))] = _points(patches, val, study.predictions)
    return found


def fold_metrics(
    methods: dict[str, Predictions],
    patches: PatchDataset,
    folds: list[tuple[np.ndarray, np.ndarray]],
    val: np.ndarray,
) -> dict[str, dict[int, dict]]:
    """Evaluate every method in each fold of a cross-validation: by method, then by the fold's number.

    `methods` are predictions for the patches `val` of all folds.
    """
    return {
        name: {
            number: _points(patches, held_out, found.take(np.searchsorted(val, held_out)))
            for number, (_, held_out) in enumerate(folds, 1)
        }
        for name, found in methods.items()
    }


def _points(patches: PatchDataset, val: np.ndarray, predictions: Predictions) -> dict:
    return point_metrics(patches.labels[val], predictions, patches.classes)


def design_metrics(
    finished: list[Finished],
    methods: dict[str, Predictions],
    patches: PatchDataset,
    val: np.ndarray,
    resamples: int,
    seed: int,
    folds: int = 1,
) -> tuple[dict[str, dict], pd.DataFrame]:
    """Compare HistoCLIP as reported with the same head under one other choice.

    Parameters
    ----------
    finished, methods, patches, val
        As for `seed_metrics`.
    resamples, seed, folds : int
        See `uncertainty.compare`.

    Returns
    -------
    scored : dict of str to dict
        Each design, and `as reported`, evaluated; as `figures.forest_plot` draws them.
    table : DataFrame
        mAcc, mAP and cross-entropy as text, and the differences in the first two from the head as reported with 95%
        intervals and p, corrected by Holm's method over the lines.
    """
    units, labels, ours = bootstrap_units(patches, val), patches.labels[val], methods["histoclip_patch"]
    others = {"one key, the global embedding": methods["histoclip_global"]}
    others |= {study.name: study.predictions for study in of_purpose(finished, "design")}
    if "histoclip_text_free" in methods:
        others["random queries, no text"] = methods["histoclip_text_free"]
    scored = {
        name: evaluate(labels, predictions, patches.classes, units, resamples, seed, folds)
        for name, predictions in {AS_REPORTED: ours, **others}.items()
    }
    compared = {name: compare(labels, own, ours, units, resamples, seed, folds) for name, own in others.items()}
    gaps, lines = all_corrected(compared), {}
    for name, values in scored.items():
        line = {metric: number_text(values[metric]) for metric in ("mAcc", "mAP")}
        if name != AS_REPORTED:
            for metric, gap in (("mAcc", gaps[name].macc), ("mAP", gaps[name].map)):
                line |= {f"{metric}, change": signed_text(gap), f"p, {metric}": p_text(gap.p)}
        shown = ours if name == AS_REPORTED else others[name]
        lines[name] = line | {"cross-entropy": number_text(cross_entropy(labels, shown.scores))}
    return scored, pd.DataFrame.from_dict(lines, orient="index").fillna("")


def size_frame(
    finished: list[Finished], methods: dict[str, Predictions], n_train: int, patches: PatchDataset, val: np.ndarray
) -> pd.DataFrame:
    """Return mAcc and mAP for growing numbers of training patches, a line for each model.

    The columns are `method`, `n_train`, `mAcc` and `mAP`; the last models are `methods`, fitted on `n_train` patches.
    Other arguments as for `seed_metrics`.
    """
    sizes = of_purpose(finished, "size")
    models = [(study.method, study.n_train, study.predictions) for study in sizes]
    models += [(method, n_train, methods[method]) for method in dict.fromkeys(study.method for study in sizes)]
    return _frame("n_train", models, patches, val)


def hidden_frame(
    finished: list[Finished], methods: dict[str, Predictions], patches: PatchDataset, val: np.ndarray
) -> pd.DataFrame:
    """Return mAcc and mAP by the share of training labels that were hidden, with `methods`, where none was, first.

    The columns are `method`, `hidden`, `mAcc` and `mAP`. Other arguments as for `seed_metrics`.
    """
    studies = of_purpose(finished, "hidden")
    models = [(method, 0.0, methods[method]) for method in dict.fromkeys(study.method for study in studies)]
    models += [(study.method, float(study.name.split("%")[0]) / 100, study.predictions) for study in studies]
    return _frame("hidden", models, patches, val)


def _frame(column: str, models: list[tuple], patches: PatchDataset, val: np.ndarray) -> pd.DataFrame:
    """Return mAcc and mAP of models, given as the method, the value of a column, and the predictions."""
    points = [(method, value, _points(patches, val, predictions)) for method, value, predictions in models]
    lines = [(method, value, own["mAcc"], own["mAP"]) for method, value, own in points]
    return pd.DataFrame(lines, columns=["method", column, "mAcc", "mAP"])
