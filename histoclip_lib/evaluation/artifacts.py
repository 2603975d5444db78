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
from histoclip_lib.common.registry import METHODS
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.methods import in_table_order
from histoclip_lib.evaluation.uncertainty import bootstrap_units, evaluate, interval_note, proper_scores

METRICS = {
    "mAcc": "mAcc",
    "mAP": "mAP",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "auroc": "AUROC",
    "exact_match": "exact match",
}
PROPER = {"cross_entropy": "cross-entropy", "brier": "Brier score"}  # lower is better; of probabilities only
REQUIRED = ("name", "dataset", "backbone", "split")  # of metrics.json
PREDICTION_COLUMNS = ["method", "file", "group", "class", "label", "score", "predicted"]
AGAIN = "Run it again with --force."
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def save_split(path: Path, patches: PatchDataset, folds: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write `split.csv`: the file, group, part and fold of every patch.

    The part is `train` or `val`, empty for an unused patch, and in a cross-validation `cv`; the fold, from 1, is that
    which holds the patch out.
    """
    part, fold = (np.full(len(patches), "", dtype=object) for _ in range(2))
    for number, (train, val) in enumerate(folds, 1):
        part[train], part[val], fold[val] = "train", "val", number
    if len(folds) > 1:
        part[fold != ""] = "cv"
    groups = patches.groups if patches.groups is not None else ""
    write_csv(path, pd.DataFrame({"file": patches.files, "group": groups, "split": part, "fold": fold}))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, such as the training history."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


# predictions.parquet, zero_shot.parquet


@dataclass(frozen=True, eq=False)
class ValidationPredictions:
    """What every method of a run predicts for the same B patches and N classes.

    Attributes
    ----------
    files : ndarray of shape (B,), str
        Sorted.
    classes : list of str
        In the order of the data set.
    labels : ndarray of shape (B, N)
        uint8, or float32 with NaN where some are not known.
    groups : ndarray of shape (B,), str, or None
        Patient or source image, where known.
    methods : dict of str to Predictions
        In the order of the table.
    """

    files: np.ndarray
    classes: list[str]
    labels: np.ndarray
    groups: np.ndarray | None
    methods: dict[str, Predictions]

    @property
    def units(self) -> np.ndarray:
        """What the bootstrap draws, shape (B,): the group of each patch, or the patch itself."""
        return bootstrap_units(self, np.arange(len(self.files)))

    @property
    def note(self) -> str:
        """What intervals resample, in words."""
        return interval_note(self, np.arange(len(self.files)))

    def take(self, index: np.ndarray, columns: np.ndarray | None = None) -> ValidationPredictions:
        """Return the predictions of the patches at `index` (n,), with the classes at `columns`; by default all."""
        columns = np.arange(len(self.classes)) if columns is None else columns
        cells = np.ix_(index, columns)
        methods = {
            name: Predictions(found.scores[cells], found.decisions[cells]) for name, found in self.methods.items()
        }
        groups = None if self.groups is None else self.groups[index]
        return ValidationPredictions(
            self.files[index], [self.classes[k] for k in columns], self.labels[cells], groups, methods
        )


def save_predictions(path: Path, methods: dict[str, Predictions], patches: PatchDataset, index: np.ndarray) -> None:
    """Write predictions in long form, one line for each method, patch and class.

    Columns: `method`, `file`, `group`, `class`, `label`, `score` (float32), `predicted`. The predictions are for the
    patches `index` (n,), in that order.
    """
    n_classes, files = len(patches.classes), np.asarray(patches.files, dtype=object)[index]
    groups = patches.groups[index] if patches.groups is not None else np.full(len(index), "")
    frames = [
        pd.DataFrame(
            {
                "method": name,
                "file": np.repeat(files, n_classes),
                "group": np.repeat(groups, n_classes),
                "class": np.tile(patches.classes, len(index)),
                "label": patches.labels[index].ravel(),
                "score": predictions.scores.astype(np.float32).ravel(),
                "predicted": predictions.decisions.ravel(),
            }
        )
        for name, predictions in methods.items()
    ]
    frames = frames or [pd.DataFrame({name: [] for name in PREDICTION_COLUMNS})]  # no method applies
    table = pd.concat(frames, ignore_index=True).astype({c: "category" for c in ("method", "file", "group", "class")})
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_predictions(path: Path) -> ValidationPredictions:
    """Read a file that `save_predictions` wrote.

    Raises
    ------
    HistoCLIPError
        If it cannot be read, lacks a column, does not hold each method, patch and class once, or gives a patch two
        labels of one class or two groups.
    """
    try:
        table = pd.read_parquet(path, columns=PREDICTION_COLUMNS)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
        raise HistoCLIPError(f"{path} cannot be read: {error}. {AGAIN}") from error
    (method, methods), (file, files), (label, classes), (group, groups) = (
        _numbered(table[column]) for column in ("method", "file", "class", "group")
    )
    shape = (len(methods), len(files), len(classes))
    order = np.lexsort((label, file, method))
    in_full = np.unravel_index(np.arange(np.prod(shape)), shape)
    if (
        not len(table)
        or len(table) != np.prod(shape)
        or any((found[order] != wanted).any() for found, wanted in zip((method, file, label), in_full, strict=True))
    ):
        raise HistoCLIPError(f"{path} does not hold each method, patch and class once. {AGAIN}")
    labels, scores, decisions = (table[c].to_numpy()[order].reshape(shape) for c in ("label", "score", "predicted"))
    group = group[order].reshape(shape)
    same = (labels == labels[:1]) | (np.isnan(labels) & np.isnan(labels[:1]))
    if not same.all() or (group != group[:1, :, :1]).any():
        raise HistoCLIPError(f"{path} gives a patch two labels of one class, or two groups. {AGAIN}")
    by_patch = groups[group[0, :, 0]]
    found = {name: Predictions(scores[k].astype(float), decisions[k].astype(bool)) for k, name in enumerate(methods)}
    known = by_patch if (by_patch != "").any() else None
    everything = ValidationPredictions(
        files, list(classes), labels[0].astype(np.float32 if np.isnan(labels[0]).any() else np.uint8), known, found
    )
    return everything.take(np.argsort(files))


def _numbered(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each entry's name, and the names in the order in which they come."""
    kinds = column.astype("category")
    numbers, there = pd.factorize(kinds.cat.codes.to_numpy())
    return numbers, kinds.cat.categories.astype(str).to_numpy(dtype=object)[there]


def load_predictions(path: Path, patches: PatchDataset, index: np.ndarray) -> dict[str, Predictions]:
    """Read the predictions for the patches `index` of a data set, by method.

    Raises
    ------
    HistoCLIPError
        If the file cannot be read or was written for other patches or classes.
    """
    if not path.is_file():
        raise HistoCLIPError(f"{path} was not found. Run the notebooks of this run in their order.")
    found = read_predictions(path)
    files = np.asarray(patches.files, dtype=object)[index]
    places = np.minimum(np.searchsorted(found.files, files), len(found.files) - 1)
    if set(found.classes) != set(patches.classes) or (found.files[places] != files).any():
        raise HistoCLIPError(f"{path} was written for other patches or classes. {AGAIN}")
    return found.take(places, np.array([found.classes.index(name) for name in patches.classes])).methods


# metrics.json


@dataclass(frozen=True)
class Score:
    """A metric and its bootstrap interval, each from 0 to 1; `interval` is None where none was computed."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class RunMetrics:
    """What a run measured, and what it was made with.

    Attributes
    ----------
    path : Path
        The run's folder.
    name, dataset, backbone, split : str
        As in `metrics.json`.
    pretrained : str
        Name of the weights; may be empty.
    methods : dict of str to dict of str to Score
        By method, then by metric of METRICS; a metric that is not defined is absent.
    n_train, n_val : int or None
        Patches to fit on, in a cross-validation those of the first fold, and patches to score.
    folds : int
        Of the cross-validation; 1 for a single split.
    seed : int
        Of the run.
    """

    path: Path
    name: str
    dataset: str
    backbone: str
    split: str
    pretrained: str
    methods: dict[str, dict[str, Score]]
    n_train: int | None = None
    n_val: int | None = None
    folds: int = 1
    seed: int = 0

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        return self.path.name

    @property
    def scores(self) -> dict[str, Score]:
        """The mAcc of each method."""
        return {name: scores["mAcc"] for name, scores in self.methods.items()}

    @property
    def mean_ap(self) -> dict[str, Score]:
        """The mAP of each method for which it is defined."""
        return {name: scores["mAP"] for name, scores in self.methods.items() if "mAP" in scores}

    @property
    def is_clip(self) -> bool:
        """Whether the encoder is a CLIP; one that nothing registers here is taken for one."""
        from histoclip_lib.clip.registry import encoder_entry

        return encoder_entry(self.backbone, self.pretrained).is_clip

    @property
    def lead(self) -> float | None:
        """By how much HistoCLIP on patch tokens is above the linear probe in mAcc; None where one is missing."""
        probe, histoclip = self.scores.get("linear_probe"), self.scores.get("histoclip_patch")
        return None if probe is None or histoclip is None else histoclip.value - probe.value

    @property
    def thumbnail(self) -> str | None:
        """The run's picture as a data address."""
        path = self.path / "thumbnail.png"
        data = path.read_bytes() if path.is_file() else b""
        encoded = base64.b64encode(data).decode("ascii")
        return f"data:image/png;base64,{encoded}" if data.startswith(PNG_SIGNATURE) else None

    @property
    def is_current(self) -> bool:
        """False where the run was started again with other inputs and has not come as far as its evaluation."""
        path = self.path / "run.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            return "04_results" in record.get("steps", ["04_results"])  # without steps it was made by hand
        except (OSError, ValueError, AttributeError, TypeError):
            return False


@dataclass(frozen=True)
class BrokenRun:
    """A run whose `metrics.json` cannot be used, and why."""

    name: str
    reason: str


def evaluate_methods(
    methods: dict[str, Predictions], patches: PatchDataset, val: np.ndarray, resamples: int, seed: int, folds: int = 1
) -> dict[str, dict]:
    """Return the `methods` of `metrics.json` for predictions of the validation set, in the order of the table.

    Raises
    ------
    HistoCLIPError
        If nothing registers one of the methods.
    """
    units, labels, found = bootstrap_units(patches, val), patches.labels[val], {}
    for name in in_table_order(methods):
        found[name] = evaluate(labels, methods[name], patches.classes, units, resamples, seed, folds)
        scores = methods[name].scores
        if METHODS[name].probabilities and scores.min() >= 0 and scores.max() <= 1:  # a plugin's may not be
            found[name] |= proper_scores(labels, scores, units, resamples, seed, folds)
    return found


def write_metrics(path: Path, patches: PatchDataset, methods: dict[str, dict], **about: object) -> None:
    """Write `metrics.json`; `about` holds its leading entries: `name`, `dataset`, `backbone` and so on."""
    prevalence = {name: float(p) for name, p in zip(patches.classes, patches.prevalence, strict=True)}
    metrics = {**about, "classes": list(patches.classes), "prevalence": prevalence, "methods": methods}
    write_text(path, json.dumps(metrics, indent=1, allow_nan=False))


def find_runs(reports_dir: Path) -> list[RunMetrics | BrokenRun]:
    """Return the runs below a folder, by name of their folders; those that cannot be read as BrokenRun."""
    runs: list[RunMetrics | BrokenRun] = []
    for path in sorted(reports_dir.glob("*/metrics.json")):
        try:
            runs.append(read_metrics(path))
        except HistoCLIPError as error:
            runs.append(BrokenRun(path.parent.name, hide_folder(str(error), path.parent)))
    return runs


def hide_folder(text: str, folder: Path) -> str:
    """Return a message without the path of a folder: a page to share names no folder of its maker."""
    return text.replace(f"{folder}{os.sep}", "")


def read_metrics(path: Path) -> RunMetrics:
    """Read a run's `metrics.json`.

    Names, mAcc and mAP must be sound; other metrics and details that are garbled are left out.

    Raises
    ------
    HistoCLIPError
        If the file cannot be read as JSON, or lacks or garbles what is needed; all of it is listed.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HistoCLIPError(f"{path} cannot be read: {error}. {AGAIN}") from error
    if not isinstance(metrics, dict):
        raise HistoCLIPError(f"{path} holds a {type(metrics).__name__}, not an object. {AGAIN}")
    problems = [
        f"{key}: {metrics.get(key)!r} is not a name"
        for key in REQUIRED
        if not (isinstance(metrics.get(key), str) and metrics[key])
    ]
    methods = metrics.get("methods")
    if isinstance(methods, dict):
        problems += [f"methods, {name}: {fault}" for name, values in methods.items() for fault in _faults(values)]
    else:
        problems.append(f"methods: {methods!r} is not an object")
    if problems:
        raise HistoCLIPError(f"{path} cannot be used. {AGAIN}\n{bullet_list(sorted(problems))}")
    return RunMetrics(
        path=path.parent,
        **{key: metrics[key] for key in REQUIRED},
        pretrained=str(metrics.get("pretrained") or ""),
        methods={name: _scores(values) for name, values in methods.items()},
        n_train=_count(metrics.get("n_train")),
        n_val=_count(metrics.get("n_val")),
        folds=max(_count(metrics.get("folds")) or 1, 1),
        seed=_count(metrics.get("seed")) or 0,
    )


def _faults(values: object) -> list[str]:
    """Return what is wrong with the mAcc and mAP of a method; mAP is null where no class is present."""
    if not isinstance(values, dict):
        return [f"{values!r} is not an object"]
    faults = []
    for metric in ("mAcc", "mAP"):
        value, interval = values.get(metric), values.get(f"{metric}_ci")
        if not (_is_fraction(value) or (value is None and metric == "mAP")):
            faults.append(f"{metric} {value!r} is not a number from 0 to 1")
        if not (interval is None or _is_interval(interval)):
            faults.append(f"{metric}_ci {interval!r} is not a pair of numbers from 0 to 1")
    return faults


def _scores(values: dict) -> dict[str, Score]:
    found = {}
    for metric in (metric for metric in METRICS if _is_fraction(values.get(metric))):
        interval = values.get(f"{metric}_ci")
        found[metric] = Score(float(values[metric]), tuple(map(float, interval)) if _is_interval(interval) else None)
    return found


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_interval(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_fraction, value))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
