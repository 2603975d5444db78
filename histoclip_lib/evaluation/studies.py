"""What the studies of a run say, as tables: designs, numbers of patches, seeds, and predictions out of fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.leakage import SplitScores
from histoclip_lib.evaluation.metrics import point_metrics
from histoclip_lib.evaluation.uncertainty import bootstrap_units, compare, evaluate
from histoclip_lib.models.baselines import trivial_rows
from histoclip_lib.models.studies import Finished

AS_REPORTED = "as reported"
HEAD_STUDY = Path(__file__).with_name("head_study.json")


def head_study() -> pd.DataFrame:
    """Return the table by which the head's defaults were chosen, as `benchmarks/head_study.py` wrote it.

    Returns
    -------
    DataFrame
        One line for each choice made otherwise, and columns `data set, metric`; cross-validated inside training parts.
    """
    lines = pd.read_json(HEAD_STUDY)
    columns = [f"{data}, {metric}" for data in lines["data"].unique() for metric in ("mAcc", "mAP", "cross-entropy")]
    wide = lines.pivot(index="choice", columns="data", values=["mAcc", "mAP", "cross-entropy"])
    wide.columns = [f"{data}, {metric}" for metric, data in wide.columns]
    return wide.loc[lines["choice"].unique(), columns].map("{:.3f}".format).rename_axis(None)


def of_purpose(finished: list[Finished], purpose: str) -> list[Finished]:
    """Return the studies of one purpose, in their order."""
    return [study for study in finished if study.purpose == purpose]


def out_of_fold(finished: list[Finished], n_patches: int, train: np.ndarray) -> np.ndarray | None:
    """Return what the heads of the cross-validation say of the training patches that they have not seen.

    Parameters
    ----------
    finished : list of Finished
        With the studies of the purpose `fold`.
    n_patches : int
        Number of patches in the data set.
    train : ndarray of int, shape (T,)
        The training part.

    Returns
    -------
    ndarray of shape (T, N), or None
        Probabilities; None where a training part of one group left nothing to hold out.
    """
    folds = of_purpose(finished, "fold")
    if not folds:
        return None
    probabilities = np.full((n_patches, folds[0].predictions.scores.shape[1]), np.nan)
    for study in folds:
        probabilities[study.test] = study.predictions.scores
    return probabilities[train]


def two_splits(
    finished: list[Finished],
    rows: dict[str, Predictions],
    patches: PatchDataset,
    split: str,
    val: np.ndarray,
) -> tuple[SplitScores, SplitScores] | None:
    """Return the same models under a split by patch and under one by group, or None where there is but one.

    Parameters
    ----------
    finished : list of Finished
        With the studies of the purpose `split`.
    rows : dict of str to Predictions
        The rows as reported, for the patches `val`.
    patches : PatchDataset
        The data set.
    split : str
        How the validation part was made; anything but `random` counts as by group.
    val : ndarray of int
        The validation part.
    """
    others = of_purpose(finished, "split")
    if not others:
        return None
    test = others[0].test
    rest = np.setdiff1d(np.arange(len(patches)), test)
    majority = {"majority": trivial_rows(patches.labels[rest], len(test))["majority"]}
    here = {name: rows[name] for name in ("majority", *(study.row for study in others))}
    there = majority | {study.row: study.predictions for study in others}
    this, other = (
        SplitScores(patches.labels[part], bootstrap_units(patches, part), predictions)
        for part, predictions in ((val, here), (test, there))
    )
    return (this, other) if split == "random" else (other, this)


def rows_of(finished: list[Finished]) -> dict[str, Predictions]:
    """Return the rows of the table that are studies: the two-layer MLP and the head without text."""
    return {study.row: study.predictions for study in of_purpose(finished, "row")}


def seed_rows(
    finished: list[Finished], rows: dict[str, Predictions], patches: PatchDataset, val: np.ndarray, seed: int
) -> dict[str, dict[int, dict]]:
    """Evaluate every row that was trained with more than one seed.

    Parameters
    ----------
    finished : list of Finished
        Studies of the run.
    rows : dict of str to Predictions
        The rows as reported, trained with `seed`, for the patches `val`.
    patches : PatchDataset
        The data set.
    val : ndarray of int
        Its validation part.
    seed : int
        Of the rows as reported.

    Returns
    -------
    dict of str to dict of int to dict
        By row, then by seed, as `metrics.point_metrics` returns.
    """
    found: dict[str, dict[int, dict]] = {}
    for study in of_purpose(finished, "seed"):
        by_seed = found.setdefault(study.row, {seed: _points(patches, val, rows[study.row])})
        by_seed[int(study.name.removeprefix("seed "))] = _points(patches, val, study.predictions)
    return found


def _points(patches: PatchDataset, val: np.ndarray, predictions: Predictions) -> dict:
    return point_metrics(patches.labels[val], predictions, patches.classes)


def design_rows(
    finished: list[Finished],
    rows: dict[str, Predictions],
    patches: PatchDataset,
    val: np.ndarray,
    resamples: int,
    seed: int,
) -> tuple[dict[str, dict], pd.DataFrame]:
    """Compare HistoCLIP as reported with the same head under one other choice.

    Parameters
    ----------
    finished, rows, patches, val
        As for `seed_rows`.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    scored : dict of str to dict
        Each design, and `as reported`, evaluated; as `figures.forest_plot` draws them.
    table : DataFrame
        mAcc and mAP as text, and their differences from the head as reported with 95 % intervals.
    """
    units, labels, ours = bootstrap_units(patches, val), patches.labels[val], rows["histoclip_patch"]
    others = {"one key, the global embedding": rows["histoclip_global"]}
    others |= {study.name: study.predictions for study in of_purpose(finished, "design")}
    if "histoclip_text_free" in rows:
        others["random queries, no text"] = rows["histoclip_text_free"]
    scored = {
        name: evaluate(labels, predictions, patches.classes, units, resamples, seed)
        for name, predictions in {AS_REPORTED: ours, **others}.items()
    }
    lines = {}
    for name, row in scored.items():
        line = {"mAcc": f"{row['mAcc']:.4f}", "mAP": "—" if row["mAP"] is None else f"{row['mAP']:.4f}"}
        if name != AS_REPORTED:
            found = compare(labels, others[name], ours, units, resamples, seed)
            for metric, gap in (("mAcc", found.macc), ("mAP", found.map)):
                line[f"{metric}, change"] = f"{gap.value:+.4f} ({gap.low:+.3f} to {gap.high:+.3f})"
        lines[name] = line
    return scored, pd.DataFrame.from_dict(lines, orient="index").fillna("")


def size_frame(
    finished: list[Finished], rows: dict[str, Predictions], n_train: int, patches: PatchDataset, val: np.ndarray
) -> pd.DataFrame:
    """Return how mAcc and mAP grow with the number of training patches.

    Parameters
    ----------
    finished, rows, patches, val
        As for `seed_rows`.
    n_train : int
        Number of training patches behind `rows`.

    Returns
    -------
    DataFrame
        One line for each model: `row`, `n_train`, `mAcc` and `mAP`.
    """
    sizes = of_purpose(finished, "size")
    models = [(study.row, study.n_train, study.predictions) for study in sizes]
    models += [(row, n_train, rows[row]) for row in dict.fromkeys(study.row for study in sizes)]
    lines = []
    for row, size, predictions in models:
        points = _points(patches, val, predictions)
        lines.append({"row": row, "n_train": size, "mAcc": points["mAcc"], "mAP": points["mAP"]})
    return pd.DataFrame(lines, columns=["row", "n_train", "mAcc", "mAP"])
