"""Read the results of runs and arrange them as the paper's Table I."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path

from histoclip_lib.errors import HistoCLIPError, bullet_list

OFFLINE_BACKBONE = "lite0-minilm"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLUMNS = {
    "majority": "Majority",
    "baseline": "Baseline",
    "one_vs_rest": "One-vs-Rest",
    "power_set": "Power-set",
    "top_k": "Top-k",
    "linear_probe": "Linear probe",
    "histoclip_global": "HistoCLIP global",
    "histoclip_patch": "HistoCLIP patch",
}
# Table I of the paper: Baseline, One-vs-Rest, Power-set, Top-K, HistoCLIP. It names one HistoCLIP only.
PAPER = {
    "bcss_wsss": ("BCSS-WSSS", (0.4266, 0.3757, 0.4713, 0.4358, 0.9121)),
    "luad_histoseg": ("LUAD-HistoSeg", (0.4485, 0.2932, 0.4422, 0.4738, 0.9507)),
    "pannuke": ("PanNuke", (0.4107, 0.4371, 0.5263, 0.4862, 0.8824)),
}


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
