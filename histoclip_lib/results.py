"""From predictions to tables: `predictions.parquet`, `metrics.json`, the table of rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from histoclip_lib.datasets.base import PatchDataset
from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.files import replacing, write_text
from histoclip_lib.metrics import Predictions, mean_accuracy
from histoclip_lib.run_summaries import PAPER, BrokenRun, RunSummary, table_one
from histoclip_lib.uncertainty import evaluate, smallest_p

pd.set_option("display.max_colwidth", None, "display.max_columns", None)  # tables on pages are shown whole

ROW_LABELS = {
    "all_negative": "All negative",
    "all_positive": "All positive",
    "majority": "Majority of train",
    "tissue_prior": "Tissue prior of train",
    "baseline": "Zero-shot: Baseline",
    "one_vs_rest": "Zero-shot: One-vs-Rest",
    "power_set": "Zero-shot: Power-set",
    "top_k": "Zero-shot: Top-k",
    "linear_probe": "Linear probe",
    "knn": "k-nearest neighbours",
    "mlp": "Two-layer MLP",
    "histoclip_text_free": "HistoCLIP, random queries",
    "histoclip_global": "HistoCLIP, global key",
    "histoclip_patch": "HistoCLIP, patch keys",
}
MIN_GROUPS = 5
# In simulations 95 % intervals of mAcc and mAP held the truth in 86 and 76 of 100 data sets with 5 groups, in 90 and 88
# with 20, in 95 with 60.
ENOUGH_GROUPS = 40
PAPER_ROWS = ("baseline", "one_vs_rest", "power_set", "top_k", "histoclip")


def strategy_name(row: str) -> str:
    """Return the readable name of a zero-shot row where nothing but zero-shot rows is shown: "One-vs-Rest"."""
    return ROW_LABELS[row].removeprefix("Zero-shot: ")


def bootstrap_units(patches: PatchDataset, rows: np.ndarray) -> np.ndarray:
    """Return what the bootstrap draws: the group of each patch, or the patch itself.

    Patches are drawn where groups are not known, and where there are fewer than MIN_GROUPS of them: an interval from so
    few would be narrow by chance, from a single one it would have no width.
    """
    if patches.groups is None or len(np.unique(patches.groups[rows])) < MIN_GROUPS:
        return rows
    return patches.groups[rows]


def interval_note(patches: PatchDataset, val: np.ndarray) -> str:
    """Say in Markdown what the intervals resample, and what the permutation tests swap."""
    n_groups = 0 if patches.groups is None else len(np.unique(patches.groups[val]))
    if n_groups < MIN_GROUPS:
        reason = (
            f"the validation part has only {n_groups} group{'s' * (n_groups > 1)}"
            if n_groups
            else "groups are not known"
        )
        return (
            f"Intervals come from a bootstrap over patches, since {reason}: take them as too narrow. The permutation "
            "tests swap patches too: take their p as too small."
        )
    note = (
        f"Intervals come from a bootstrap over the {n_groups} groups of the validation part. The permutation tests "
        "swap the outputs of two rows for whole groups."
    )
    if n_groups < ENOUGH_GROUPS:
        note += " With so few, intervals are somewhat too narrow."
    if smallest := smallest_p(patches.groups[val]):
        note += f" No p can fall below {smallest:.2g}."
    return note


def save_split(path: Path, patches: PatchDataset, train: np.ndarray, val: np.ndarray) -> None:
    """Write `split.csv`: the file, group and part (train, val, or empty for unused) of every patch."""
    part = np.full(len(patches), "", dtype=object)
    part[train], part[val] = "train", "val"
    groups = patches.groups if patches.groups is not None else ""
    with replacing(path) as temporary:
        pd.DataFrame({"file": patches.files, "group": groups, "split": part}).to_csv(temporary, index=False)


def save_predictions(path: Path, rows: dict[str, Predictions], patches: PatchDataset, index: np.ndarray) -> None:
    """Write predictions in long form, one line for each row of the table, patch and class.

    Columns: `row`, `file`, `group`, `class`, `label`, `score` (float32), `predicted`.

    Parameters
    ----------
    path : Path
        A `.parquet` file.
    rows : dict of str to Predictions
        For the patches `index`, in that order.
    patches : PatchDataset
        The data set.
    index : ndarray of int
        Positions in it.
    """
    n_classes, files = len(patches.classes), np.asarray(patches.files, dtype=object)[index]
    groups = patches.groups[index] if patches.groups is not None else np.full(len(index), "")
    frames = [
        pd.DataFrame(
            {
                "row": name,
                "file": np.repeat(files, n_classes),
                "group": np.repeat(groups, n_classes),
                "class": np.tile(patches.classes, len(index)),
                "label": patches.labels[index].ravel(),
                "score": predictions.scores.astype(np.float32).ravel(),
                "predicted": predictions.decisions.ravel(),
            }
        )
        for name, predictions in rows.items()
    ]
    table = pd.concat(frames, ignore_index=True).astype({c: "category" for c in ("row", "file", "group", "class")})
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def load_predictions(path: Path, patches: PatchDataset, index: np.ndarray) -> dict[str, Predictions]:
    """Read the predictions of some patches from a file that `save_predictions` wrote.

    Raises
    ------
    HistoCLIPError
        If the file is absent or was written for other patches or classes.
    """
    if not path.is_file():
        raise HistoCLIPError(f"{path} was not found. Run the notebook 02_zero_shot of this run first.")
    table = pd.read_parquet(path)
    files = np.asarray(patches.files, dtype=object)[index]
    rows = {}
    for name in table["row"].unique():
        part = table[table["row"] == name]
        try:
            scores = part.pivot(index="file", columns="class", values="score").loc[files, patches.classes]
            decisions = part.pivot(index="file", columns="class", values="predicted").loc[files, patches.classes]
        except KeyError as error:
            raise HistoCLIPError(f"{path} was written for other patches or classes. Run 02_zero_shot again.") from error
        rows[str(name)] = Predictions(scores.to_numpy(dtype=np.float64), decisions.to_numpy(dtype=bool))
    return rows


def evaluate_rows(
    rows: dict[str, Predictions], patches: PatchDataset, val: np.ndarray, resamples: int, seed: int
) -> dict[str, dict]:
    """Return the `rows` of `metrics.json` for predictions of the validation part, in the order of ROW_LABELS."""
    units = bootstrap_units(patches, val)
    return {
        name: evaluate(patches.labels[val], rows[name], patches.classes, units, resamples, seed)
        for name in ROW_LABELS
        if name in rows
    }


def write_metrics(path: Path, patches: PatchDataset, rows: dict[str, dict], **about: object) -> None:
    """Write `metrics.json`; `about` holds its leading entries: `name`, `dataset`, `backbone` and so on."""
    prevalence = {name: float(p) for name, p in zip(patches.classes, patches.prevalence, strict=True)}
    metrics = {**about, "classes": list(patches.classes), "prevalence": prevalence, "rows": rows}
    write_text(path, json.dumps(metrics, indent=1, allow_nan=False))


def rows_table(rows: dict[str, dict], dataset: str) -> pd.DataFrame:
    """Return the table of all rows as text, beside the paper's mAcc where the data set is one of its three."""
    paper = dict(zip(PAPER_ROWS, PAPER[dataset][1], strict=True)) if dataset in PAPER else {}
    lines = {}
    for name, row in rows.items():
        line = {"mAcc": f"{row['mAcc']:.4f}", "mAcc, 95 %": _range_text(row["mAcc_ci"])}
        if paper:
            value = paper.get("histoclip" if name in ("histoclip_global", "histoclip_patch") else name)
            line["paper's mAcc"] = "" if value is None else f"{value:.4f}"
        line |= {"mAP": _number_text(row["mAP"]), "mAP, 95 %": _range_text(row["mAP_ci"])}
        for key in ("macro_f1", "micro_f1", "auroc", "exact_match"):
            label = {"macro_f1": "macro F1", "micro_f1": "micro F1", "auroc": "AUROC", "exact_match": "exact match"}
            line[label[key]] = _number_text(row[key])
        lines[ROW_LABELS[name]] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def seeds_table(scored: dict[str, dict[int, dict]]) -> pd.DataFrame:
    """Return how mAcc and mAP of rows vary with the seed of the training, as text.

    Parameters
    ----------
    scored : dict of str to dict of int to dict
        Row of the table, then seed, then what `uncertainty.evaluate` returned.

    Returns
    -------
    DataFrame
        A line for each row: the number of seeds; mean and standard deviation (of the sample, n - 1), lowest and highest
        value of each metric. A dash where a metric is not defined, or one seed has no deviation.
    """
    lines = {}
    for name in (name for name in ROW_LABELS if name in scored):
        line = {"seeds": len(scored[name])}
        for key in ("mAcc", "mAP"):
            values = [row[key] for row in scored[name].values() if row[key] is not None]
            line[f"{key}, mean"] = f"{np.mean(values):.4f}" if values else "—"
            line[f"{key}, s.d."] = f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else "—"
            line[f"{key}, range"] = f"{min(values):.4f} – {max(values):.4f}" if values else "—"
        lines[ROW_LABELS[name]] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def _number_text(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _range_text(interval: list[float] | tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} – {interval[1]:.3f}"


def per_class_table(rows: dict[str, dict], metric: str) -> pd.DataFrame:
    """Return one metric for each row of the table and each class, as numbers."""
    values = {ROW_LABELS[name]: {c: v[metric] for c, v in row["per_class"].items()} for name, row in rows.items()}
    return pd.DataFrame.from_dict(values, orient="index").astype(float)


def whole_set_table(rows: dict[str, Predictions], patches: PatchDataset, val: np.ndarray) -> pd.DataFrame:
    """Return mAcc of zero-shot rows on the validation part and on all patches, and how often they predict each class.

    Parameters
    ----------
    rows : dict of str to Predictions
        For all patches of the data set.
    patches : PatchDataset
        The data set.
    val : ndarray of int
        Its validation part.
    """
    lines = {}
    for name, predictions in rows.items():
        decisions = predictions.decisions
        lines[strategy_name(name)] = {
            "mAcc, validation": f"{mean_accuracy(patches.labels[val], decisions[val]):.4f}",
            "mAcc, all patches": f"{mean_accuracy(patches.labels, decisions):.4f}",
            **{c: f"{decisions[:, k].mean():.2f}" for k, c in enumerate(patches.classes)},
            "labels per patch": f"{decisions.sum(axis=1).mean():.2f}",
        }
    truth = {c: f"{p:.2f}" for c, p in zip(patches.classes, patches.prevalence, strict=True)}
    lines["Truth"] = {
        "mAcc, validation": "",
        "mAcc, all patches": "",
        **truth,
        "labels per patch": f"{patches.labels.sum(axis=1).mean():.2f}",
    }
    return pd.DataFrame.from_dict(lines, orient="index")


def dataset_table(patches: PatchDataset, train: np.ndarray, val: np.ndarray) -> pd.DataFrame:
    """Return the size of each part, its labels per patch, its groups, and how many groups stand on both sides."""
    lines = {}
    for part, rows in {"train": train, "validation": val}.items():
        line = {"patches": len(rows), "labels per patch": f"{patches.labels[rows].sum(axis=1).mean():.2f}"}
        line |= {
            f"with {name}": int(n) for name, n in zip(patches.classes, patches.labels[rows].sum(axis=0), strict=True)
        }
        line["without any label"] = int((patches.labels[rows].sum(axis=1) == 0).sum())
        if patches.groups is not None:
            line["groups"] = len(np.unique(patches.groups[rows]))
            line["of these on both sides"] = len(np.intersect1d(patches.groups[train], patches.groups[val]))
        lines[part] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def save_history(path: Path, history: pd.DataFrame) -> None:
    """Write the training history as CSV."""
    with replacing(path) as temporary:
        history.to_csv(temporary, index=False)


def last_and_best(history: pd.DataFrame) -> pd.DataFrame:
    """Return the validation mAcc of each head at the last epoch, and at the epoch where it was highest."""
    lines = {}
    for head, rows in history.groupby("head", sort=False):
        scored = rows.dropna(subset=["val_mAcc"])
        best = scored.loc[scored["val_mAcc"].idxmax()]
        lines[head] = {
            "mAcc, last epoch": f"{scored['val_mAcc'].iloc[-1]:.4f}",
            "mAcc, best epoch (oracle)": f"{best['val_mAcc']:.4f}",
            "best epoch": int(best["epoch"]),
            "train loss, last epoch": f"{rows['loss'].iloc[-1]:.4f}",
            "validation loss, last epoch": f"{scored['val_loss'].iloc[-1]:.4f}",
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def table_one_frame(runs: list[RunSummary | BrokenRun]) -> pd.DataFrame:
    """Return Table I over all runs: mAcc with its interval, and the paper's values under each of its data sets."""
    table = table_one([run for run in runs if isinstance(run, RunSummary)])
    names, lines = [], []  # two folders may hold runs of one name
    for group in table.groups:
        for run in group.runs:
            scores = {label: run.scores.get(row) for row, label in table.columns.items()}
            names += [f"{group.dataset}: {run.name}", "95 % interval"]
            lines.append({label: f"{score.value:.4f}" if score else "" for label, score in scores.items()})
            lines.append({label: _range_text(score and score.interval) for label, score in scores.items()})
        if group.paper:
            by_row = dict(zip(PAPER_ROWS, group.paper, strict=True))
            by_row |= {"histoclip_global": by_row["histoclip"], "histoclip_patch": by_row["histoclip"]}
            names.append(f"{group.dataset}: the paper")
            lines.append({label: f"{by_row[row]:.4f}" if row in by_row else "" for row, label in table.columns.items()})
    return pd.DataFrame(lines, index=names)


def runs_frame(runs: list[RunSummary | BrokenRun]) -> pd.DataFrame:
    """Return what each run used, or why it could not be read."""
    lines = [
        {"data set": run.dataset, "backbone": run.backbone, "weights": run.pretrained, "split": run.split}
        if isinstance(run, RunSummary)
        else {"data set": f"cannot be read: {run.reason}"}
        for run in runs
    ]
    return pd.DataFrame(lines, index=[run.name for run in runs]).fillna("")
