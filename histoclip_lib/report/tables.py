"""Tables of a run as text: all methods, seeds, classes, parts, and the paper's numbers beside ours."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from histoclip_lib.common.html import as_typed
from histoclip_lib.common.predictions import Predictions, mean_accuracy
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.artifacts import BrokenRun, RunSummary, table_one
from histoclip_lib.evaluation.methods import OFFLINE_BACKBONE, PAPER, PAPER_ROWS, ROW_LABELS, strategy_name

pd.set_option("display.max_colwidth", None, "display.max_columns", None)  # tables on pages are shown whole


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


def paper_table(rows: dict[str, dict], dataset: str) -> pd.DataFrame | None:
    """Return our mAcc beside the paper's, with what is known of a row's difference, as text.

    Parameters
    ----------
    rows : dict of str to dict
        As in `metrics.json`; those that the paper has are shown.
    dataset : str
        As in the parameter file.

    Returns
    -------
    DataFrame or None
        None where the data set is none of the paper's three.
    """
    if dataset not in PAPER:
        return None
    paper = dict(zip(PAPER_ROWS, PAPER[dataset][1], strict=True))
    paper |= {"histoclip_global": paper["histoclip"], "histoclip_patch": paper["histoclip"]}
    lines = {}
    for name in ROW_LABELS:
        if name in rows and name in paper:
            low, high = rows[name]["mAcc_ci"]
            lines[ROW_LABELS[name]] = {
                "mAcc": f"{rows[name]['mAcc']:.4f}",
                "95 % interval": f"{low:.3f} – {high:.3f}",
                "the paper": f"{paper[name]:.4f}",
                "difference": f"{rows[name]['mAcc'] - paper[name]:+.4f}",
                "what is known": _known(name, rows, dataset),
            }
    return pd.DataFrame.from_dict(lines, orient="index")


def _known(name: str, rows: dict[str, dict], dataset: str) -> str:
    if name == "baseline":
        scores = [f"{rows['all_positive']['mAcc']:.4f} here"] if "all_positive" in rows else []
        scores += ["0.4107 on the whole of PanNuke"] if dataset == "pannuke" else []
        said = f" Marking every label scores {' and '.join(scores)}." if scores else ""
        return f"With OpenAI's CLIP every cosine is positive, so this rule marks every label.{said}"
    if name.startswith("histoclip"):
        heights = {"majority": "the majority of train", "tissue_prior": "the tissue alone"}
        simpler = [f"{label} scores {rows[row]['mAcc']:.3f}" for row, label in heights.items() if row in rows]
        return f"mAcc rewards the common answer: {', '.join(simpler)}." if simpler else ""
    return ""


def paper_note(dataset: str, backbone: str, split: str) -> str:
    """Say in Markdown why no row need agree with the paper; empty where the data set is none of its three.

    Parameters
    ----------
    dataset, backbone, split : str
        As in the parameter file.
    """
    if dataset not in PAPER:
        return ""
    both = "The paper names ViT-B/16 in section II.A and ViT-L/14 in section III"
    if backbone == OFFLINE_BACKBONE:
        lines = [f"{as_typed(backbone)} is not CLIP, so its numbers and the paper's say nothing of each other."]
    elif re.match(r"vit-?l-?14", backbone, re.IGNORECASE):
        lines = [f"{both}; this is the latter."]
    else:
        lines = [f"{both}; this is {as_typed(backbone)}."]
    lines.append(
        {
            "random": "The paper splits 8:2, by what unit it does not say. This split draws patches, other ones.",
            "grouped": "The paper splits 8:2, by what unit it does not say. This split keeps groups apart.",
            "given": "The paper splits 8:2; this is the split that came with the data.",
        }[split]
    )
    lines.append(
        "The paper gives no batch size, no regularisation and no augmentation, and a single HistoCLIP, which stands "
        "beside both of ours."
    )
    return "\n".join(f"- {line}" for line in lines)
