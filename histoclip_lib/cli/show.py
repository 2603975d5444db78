"""The results of runs as text: one run, and Table I over all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from histoclip_lib.cli.console import aligned, say, visible
from histoclip_lib.common.html import as_typed
from histoclip_lib.evaluation.artifacts import RunMetrics, Score, read_metrics
from histoclip_lib.evaluation.methods import label_of, methods
from histoclip_lib.report.tables import table_one
from histoclip_lib.runs.papermill import executed_values
from histoclip_lib.runs.parameters import Parameter
from histoclip_lib.runs.pipeline import STEPS, finished_steps

PLACES = ("name", "reports_dir")  # parameters that say where a run lies, not what it does


def run_names(reports: Path) -> list[str]:
    """Return the names of the runs below a folder, finished or not, in alphabetical order."""
    return sorted({path.parent.name for kind in ("metrics", "steps") for path in reports.glob(f"*/{kind}.json")})


def parameters_of(folder: Path) -> dict[str, object]:
    """Return the parameters that a run's notebooks were executed with; those that were not add none."""
    return {name: value for step in STEPS for name, value in executed_values(folder / f"{step}.ipynb").items()}


def details(folder: Path, schema: dict[str, dict[str, Parameter]]) -> list[str]:
    """Say in lines of text what a run was made with, whether it is current, and where its pages and files are.

    Parameters
    ----------
    folder : Path
        The run's.
    schema : dict
        As `params.read_schema` returns.
    """
    values = parameters_of(folder)
    defaults = {name: parameter.default for declared in schema.values() for name, parameter in declared.items()}
    changed = [
        f"{name}: {value}"
        for name, value in sorted(values.items())
        if name not in PLACES and value != defaults.get(name)
    ]
    pages = sorted(folder.glob("*.html"), key=lambda page: (page.stem != "index", page.name))
    files = sorted(path.name for path in folder.iterdir() if path.suffix != ".html" and not path.name.startswith("."))
    return [
        f"parameters that differ from the defaults: {', '.join(changed) or 'none'}",
        _state(folder, values, defaults, schema),
        "pages",
        *(f"  {page.resolve()}" for page in pages),
        f"files in {folder.resolve()}",
        f"  {', '.join(files)}",
    ]


def _state(folder: Path, values: dict, defaults: dict, schema: dict[str, dict[str, Parameter]]) -> str:
    if values.keys() != defaults.keys():
        return "not current: some steps were never finished, or the notebooks read other parameters now"
    given = values | {"name": folder.name, "reports_dir": defaults["reports_dir"]}  # as a parameter file leaves it
    finished = finished_steps(given, schema, folder.parent)
    again = [step for step in STEPS if step not in finished]
    if not again:
        return "current: a run with these parameters would execute nothing again"
    return f"not current: inputs or the library have changed, so a run would execute {', '.join(again)}"


FIRST_ROWS = ("histoclip_patch", "histoclip_global", "linear_probe", "mlp", "knn")
RUN_WIDTH = 22  # cells of a terminal that a run takes in Table I: 0.9125 (0.883 – 0.940)
ROW_WIDTH, PAPER_WIDTH, GAP = 16, 6, 2


def print_headline(console: Console, folder: Path) -> None:
    """Print the rows of a run, the most important first, and what must be said beside them.

    Parameters
    ----------
    console : Console
        Where to.
    folder : Path
        The run's.

    Raises
    ------
    HistoCLIPError
        If its `metrics.json` cannot be used.
    """
    path = folder / "metrics.json"
    summary, metrics = read_metrics(path), json.loads(path.read_text(encoding="utf-8"))
    say(console, f"{visible(summary.name)}: {metrics.get('n_val', '?')} validation patches")
    console.print(aligned(["", "row", "mAcc", "95 % interval", "mAP"], headline_lines(metrics["methods"]), 2))
    for note in headline_notes(summary):
        say(console, note)


def headline_lines(rows: dict[str, dict]) -> list[list[str]]:
    """Return mark, label, mAcc, its interval and mAP of each row of `metrics.json`; `*` marks the highest mAcc."""
    order = dict.fromkeys([*FIRST_ROWS, *reversed(methods()), *rows])
    scored = {name: rows[name] for name in order if isinstance(rows.get(name), dict) and _is_number(rows[name], "mAcc")}
    best = max((round(row["mAcc"], 6) for row in scored.values()), default=None)
    return [
        [
            "*" if round(row["mAcc"], 6) == best else "",
            label_of(name),
            f"{row['mAcc']:.3f}",
            " to ".join(f"{end:.3f}" for end in row.get("mAcc_ci") or ()),
            f"{row['mAP']:.3f}" if _is_number(row, "mAP") else "",
        ]
        for name, row in scored.items()
    ]


def headline_notes(summary: RunMetrics) -> list[str]:
    """Return what must be said beside the rows: the mark, a probe that is not beaten, a backbone that is not CLIP."""
    notes = ["* the highest mAcc"]
    if summary.probe_is_ahead:
        probe, head = (summary.scores[row].value for row in ("linear_probe", "histoclip_patch"))
        notes.append(f"HistoCLIP with patch keys does not beat the linear probe: {head:.3f} and {probe:.3f}.")
    if not summary.is_clip:
        notes.append(f"{summary.backbone} is not CLIP: these numbers say nothing of the paper's.")
    return notes


def _is_number(row: dict, key: str) -> bool:
    return isinstance(row.get(key), int | float)


def print_table_one(console: Console, runs: list[RunMetrics]) -> None:
    """Print Table I with a line for each row: a block for each data set with runs, then the paper's other data sets.

    As many runs stand side by side as the console is wide.
    """
    table = table_one(runs)
    for group in (group for group in table.groups if group.runs):
        paper = {"paper": group.paper} if group.paper else {}
        room = console.width - ROW_WIDTH - GAP - (PAPER_WIDTH + GAP) * len(paper)
        n_beside = max(1, room // (RUN_WIDTH + GAP))
        for start in range(0, len(group.runs), n_beside):
            beside = group.runs[start : start + n_beside]
            columns = [(run.name, {row: _score_text(score) for row, score in run.scores.items()}) for run in beside]
            _print_block(console, group.dataset, [*columns, *_paper_columns(paper)], table.columns)
    others = {group.dataset: group.paper for group in table.groups if group.paper and not group.runs}
    if others:
        _print_block(console, "The paper, data sets without a run here", _paper_columns(others), table.columns)


def _score_text(score: Score) -> str:
    interval = f" ({score.interval[0]:.3f} – {score.interval[1]:.3f})" if score.interval else ""
    return f"{score.value:.4f}{interval}"


def _paper_columns(paper: dict[str, dict[str, float]]) -> list[tuple[str, dict[str, str]]]:
    columns = []
    for name, scores in paper.items():
        columns.append((name, {method: f"{score:.4f}" for method, score in scores.items()}))
    return columns


def _print_block(
    console: Console, title: str, columns: list[tuple[str, dict[str, str]]], labels: dict[str, str]
) -> None:
    """Print a title and the rows that any column has, then an empty line."""
    heads = ["mAcc", *(_shortened(visible(name), RUN_WIDTH) for name, _ in columns)]
    there = [row for row in labels if any(row in texts for _, texts in columns)]
    say(console, visible(title))
    console.print(aligned(heads, [[labels[row], *(texts.get(row, "") for _, texts in columns)] for row in there], 1))
    say(console, "")


def _shortened(text: str, width: int) -> str:
    """Return text that fits into so many cells of a terminal, without its middle if it is longer."""
    if cell_len(text) <= width:
        return text
    half = (width - 1) // 2
    return f"{set_cell_size(text, half)}…{set_cell_size(text[::-1], half)[::-1]}"


def as_markdown(frame: pd.DataFrame) -> str:
    """Return a table of text as a table in Markdown, in which names from users are inline code."""
    lines = [["run", *frame.columns], ["---"] * (1 + len(frame.columns))]
    lines += [[_cell(str(value)) for value in line] for line in frame.itertuples()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    if re.fullmatch(r"[^\W_]*([ .,:%()–-]+[^\W_]+)*[ %)]*", text):
        return text
    return as_typed(visible(text)).replace("|", r"\|")
