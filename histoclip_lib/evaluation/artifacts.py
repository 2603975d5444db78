"""The files of a run: the one place that writes and reads them."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.common.files import replacing, write_text
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.methods import COLUMNS, OFFLINE_BACKBONE, PAPER, ROW_LABELS
from histoclip_lib.evaluation.uncertainty import bootstrap_units, evaluate, interval_note


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


def save_history(path: Path, history: pd.DataFrame) -> None:
    """Write the training history as CSV."""
    with replacing(path) as temporary:
        history.to_csv(temporary, index=False)


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Score:
    """A metric and its bootstrap interval, each from 0 to 1; `interval` is None where none was computed."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class RunSummary:
    """What the overview shows of one run.

    Attributes
    ----------
    name, dataset, backbone, split : str
        As in `metrics.json`.
    pretrained : str
        Name of the weights; may be empty.
    scores, mean_ap : dict of str to Score
        mAcc and mAP by row name, such as `linear_probe`; a row that the run lacks is absent.
    folder : str
        Name of the run's folder.
    thumbnail : str or None
        The run's picture as a data address.
    is_current : bool
        False where the run was started again with other inputs and has not come as far as its evaluation.
    """

    name: str
    dataset: str
    backbone: str
    split: str
    pretrained: str
    scores: dict[str, Score]
    mean_ap: dict[str, Score]
    folder: str
    thumbnail: str | None
    is_current: bool = True

    @property
    def is_offline_default(self) -> bool:
        """Whether the backbone is the offline default, which is not CLIP."""
        return self.backbone == OFFLINE_BACKBONE

    @property
    def probe_is_ahead(self) -> bool:
        """Whether the linear probe scores at least as high as HistoCLIP on patch tokens."""
        return self.lead is not None and self.lead <= 0

    @property
    def lead(self) -> float | None:
        """By how much HistoCLIP on patch tokens is above the linear probe in mAcc; None where one is missing."""
        probe, histoclip = self.scores.get("linear_probe"), self.scores.get("histoclip_patch")
        return None if probe is None or histoclip is None else histoclip.value - probe.value


@dataclass(frozen=True)
class BrokenRun:
    """A run whose `metrics.json` cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class TableGroup:
    """The rows of one data set: its runs, then the numbers of the paper, or None where it has none."""

    dataset: str
    runs: list[RunSummary]
    paper: tuple[float, ...] | None


@dataclass(frozen=True)
class Table:
    """Table I: column headings by row name of `metrics.json`, and one group of rows for each data set."""

    columns: dict[str, str]
    groups: list[TableGroup]


def find_runs(reports_dir: Path) -> list[RunSummary | BrokenRun]:
    """Return the runs below a folder, by name of their folders; those that cannot be read as BrokenRun."""
    runs: list[RunSummary | BrokenRun] = []
    for path in sorted(reports_dir.glob("*/metrics.json")):
        try:
            runs.append(read_metrics(path))
        except HistoCLIPError as error:
            runs.append(BrokenRun(path.parent.name, hide_folder(str(error), path.parent)))
    return runs


def hide_folder(text: str, folder: Path) -> str:
    """Return a message without the path of a folder: a page to share names no folder of its maker."""
    return text.replace(f"{folder}{os.sep}", "")


def read_metrics(path: Path) -> RunSummary:
    """Read a run's `metrics.json` and see which pages lie beside it.

    Raises
    ------
    HistoCLIPError
        If the file cannot be read as JSON, or lacks or garbles what the overview needs; all of it is listed.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HistoCLIPError(f"{path} cannot be read: {error}. Run it again with --force.") from error
    if not isinstance(metrics, dict):
        raise HistoCLIPError(f"{path} holds a {type(metrics).__name__}, not an object. Run it again with --force.")
    problems = [
        f"{key}: {metrics.get(key)!r} is not a name"
        for key in ("name", "dataset", "backbone", "split")
        if not (isinstance(metrics.get(key), str) and metrics[key])
    ]
    rows = metrics.get("rows")
    scores, mean_ap = {}, {}
    if isinstance(rows, dict):
        for row in COLUMNS.keys() & rows.keys():
            try:
                scores[row] = _score(rows[row], "mAcc")
                if rows[row].get("mAP") is not None:  # not defined where no class is present
                    mean_ap[row] = _score(rows[row], "mAP")
            except HistoCLIPError as error:
                problems.append(f"rows, {row}: {error}")
    else:
        problems.append(f"rows: {rows!r} is not an object")
    if problems:
        raise HistoCLIPError(f"{path} cannot be used. Run it again with --force.\n{bullet_list(sorted(problems))}")
    folder = path.parent
    return RunSummary(
        name=metrics["name"],
        dataset=metrics["dataset"],
        backbone=metrics["backbone"],
        split=metrics["split"],
        pretrained=str(metrics.get("pretrained") or ""),
        scores=scores,
        mean_ap=mean_ap,
        folder=folder.name,
        thumbnail=_thumbnail(folder / "thumbnail.png"),
        is_current=_is_current(folder / "steps.json"),
    )


def _score(row: object, metric: str) -> Score:
    if not isinstance(row, dict) or not is_fraction(row.get(metric)):
        found = row.get(metric) if isinstance(row, dict) else row
        raise HistoCLIPError(f"{metric} {found!r} is not a number from 0 to 1")
    interval = row.get(f"{metric}_ci")
    if interval is None:
        return Score(float(row[metric]), None)
    if not (isinstance(interval, list) and len(interval) == 2 and all(map(is_fraction, interval))):
        raise HistoCLIPError(f"{metric}_ci {interval!r} is not a pair of numbers from 0 to 1")
    return Score(float(row[metric]), (float(interval[0]), float(interval[1])))


def is_fraction(value: object) -> bool:
    """Say whether a value of a JSON file is a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_current(record: Path) -> bool:
    """Say whether the evaluation is among the finished steps; a folder without a record is taken as it is."""
    try:
        return not record.is_file() or "04_evaluate" in json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _thumbnail(path: Path) -> str | None:
    if not path.is_file():
        return None
    data = path.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}" if data.startswith(PNG_SIGNATURE) else None


def table_one(runs: list[RunSummary]) -> Table:
    """Arrange runs by data set, the paper's three first, each group closed by the paper's numbers."""
    others = sorted({run.dataset for run in runs} - PAPER.keys())
    groups = []
    for dataset in [*PAPER, *others]:
        label, paper = PAPER.get(dataset, (dataset, None))
        groups.append(TableGroup(label, [run for run in runs if run.dataset == dataset], paper))
    return Table(COLUMNS, groups)


METRICS = {
    "mAcc": "mAcc",
    "mAP": "mAP",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "auroc": "AUROC",
    "exact_match": "exact match",
}
CLASS_METRICS = {"accuracy": "accuracy", "ap": "average precision", "f1": "F1"}


@dataclass(frozen=True)
class RunResults:
    """What a run measured.

    Attributes
    ----------
    summary : RunSummary
        Its name, data set and so on.
    n_train, n_val : int or None
        Patches of the two parts.
    prevalence : dict of str to (float or None)
        By class, in the order of the data set: the share of all patches that show it.
    rows : dict of str to dict of str to Score
        By row, then by metric of METRICS.
    by_class : dict of str to dict of str to dict of str to Score
        By row, then by class, then by metric of CLASS_METRICS.
    """

    summary: RunSummary
    n_train: int | None
    n_val: int | None
    prevalence: dict[str, float | None]
    rows: dict[str, dict[str, Score]]
    by_class: dict[str, dict[str, dict[str, Score]]]


def read_results(path: Path) -> RunResults:
    """Read a run's `metrics.json`.

    Raises
    ------
    HistoCLIPError
        Where `run_summaries.read_metrics` does.
    """
    summary = read_metrics(path)
    metrics = json.loads(path.read_text(encoding="utf-8"))
    listed = metrics.get("classes")
    classes = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    prevalence = _mapping(metrics.get("prevalence"))
    rows = {name: _mapping(row) for name, row in metrics["rows"].items()}
    scored = {name: _scores(row, METRICS) for name, row in rows.items()}
    scored = {name: row for name, row in scored.items() if "mAcc" in row}
    by_class = {}
    for name in scored:
        values = _mapping(rows[name].get("per_class"))
        by_class[name] = {c: _scores(_mapping(values.get(c)), CLASS_METRICS) for c in classes}
    return RunResults(
        summary,
        _count(metrics.get("n_train")),
        _count(metrics.get("n_val")),
        {c: float(prevalence[c]) if is_fraction(prevalence.get(c)) else None for c in classes},
        scored,
        by_class,
    )


def _scores(values: dict, metrics: dict[str, str]) -> dict[str, Score]:
    found = {}
    for metric in metrics:
        interval = values.get(f"{metric}_ci")
        is_pair = isinstance(interval, list) and len(interval) == 2 and all(map(is_fraction, interval))
        if is_fraction(values.get(metric)):
            found[metric] = Score(float(values[metric]), tuple(map(float, interval)) if is_pair else None)
    return found


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


PREDICTION_COLUMNS = ["row", "file", "group", "class", "label", "score", "predicted"]


@dataclass(frozen=True, eq=False)
class ValidationPredictions:
    """What every row of a run's table says about its validation patches.

    Attributes
    ----------
    files : ndarray of shape (B,), str
        The patches, sorted.
    classes : list of str
        N names, in the order of the data set.
    labels : ndarray of shape (B, N), uint8
        0 or 1.
    groups : ndarray of shape (B,), str, or None
        Patient or source image, where known.
    rows : dict of str to Predictions
        By row of the table, in its order.
    """

    files: np.ndarray
    classes: list[str]
    labels: np.ndarray
    groups: np.ndarray | None
    rows: dict[str, Predictions]

    @property
    def units(self) -> np.ndarray:
        """What the bootstrap draws, shape (B,): the group of each patch, or the patch itself."""
        return bootstrap_units(self, np.arange(len(self.files)))

    @property
    def note(self) -> str:
        """What intervals resample, in words."""
        return interval_note(self, np.arange(len(self.files)))

    def take(self, places: np.ndarray) -> ValidationPredictions:
        """Return the predictions of the patches at `places`."""
        groups = None if self.groups is None else self.groups[places]
        rows = {name: Predictions(row.scores[places], row.decisions[places]) for name, row in self.rows.items()}
        return ValidationPredictions(self.files[places], self.classes, self.labels[places], groups, rows)


def read_predictions(path: Path) -> ValidationPredictions:
    """Read a file that `results.save_predictions` wrote.

    Raises
    ------
    HistoCLIPError
        If it cannot be read, lacks a column, does not hold each row, patch and class once, or gives a patch two labels
        of one class or two groups.
    """
    try:
        table = pd.read_parquet(path, columns=PREDICTION_COLUMNS)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
        raise HistoCLIPError(f"{path} cannot be read: {error}. Run 04_evaluate again.") from error
    (row, rows), (file, files), (label, classes), (group, groups) = (
        _numbered(table[column]) for column in ("row", "file", "class", "group")
    )
    shape = (len(rows), len(files), len(classes))
    order = np.lexsort((label, file, row))
    in_full = np.unravel_index(np.arange(np.prod(shape)), shape)
    if (
        not len(table)
        or len(table) != np.prod(shape)
        or any((found[order] != wanted).any() for found, wanted in zip((row, file, label), in_full, strict=True))
    ):
        raise HistoCLIPError(f"{path} does not hold each row, patch and class once. Run 04_evaluate again.")
    labels, scores, decisions = (table[c].to_numpy()[order].reshape(shape) for c in ("label", "score", "predicted"))
    group = group[order].reshape(shape)
    if (labels != labels[:1]).any() or (group != group[:1, :, :1]).any():
        raise HistoCLIPError(f"{path} gives a patch two labels of one class, or two groups. Run 04_evaluate again.")
    by_patch = groups[group[0, :, 0]]
    by_name = np.argsort(files)
    found = {name: Predictions(scores[k].astype(float), decisions[k].astype(bool)) for k, name in enumerate(rows)}
    known = by_patch if (by_patch != "").any() else None
    return ValidationPredictions(files, list(classes), labels[0].astype(np.uint8), known, found).take(by_name)


def _numbered(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each entry's name, and the names in the order in which they come."""
    kinds = column.astype("category")
    numbers, there = pd.factorize(kinds.cat.codes.to_numpy())
    return numbers, kinds.cat.categories.astype(str).to_numpy(dtype=object)[there]
