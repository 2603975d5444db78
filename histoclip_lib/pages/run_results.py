"""All numbers of a run's `metrics.json`; what is missing, garbled or not defined is left out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from histoclip_lib.run_summaries import RunSummary, Score, is_fraction, read_metrics

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
