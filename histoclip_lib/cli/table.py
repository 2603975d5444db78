"""`histoclip table`: Table I over all runs, as text, CSV or Markdown."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from histoclip_lib.cli.app import Debug, Reports, app
from histoclip_lib.cli.console import aligned, messages, results, say, told, visible
from histoclip_lib.common.files import resolve

if TYPE_CHECKING:
    import pandas as pd

    from histoclip_lib.evaluation.artifacts import RunMetrics

EXAMPLES = """\b
Examples:
  histoclip table
  histoclip table --format csv > table.csv
"""
RUN_WIDTH = 22  # cells of a terminal that a run takes: 0.9125 (0.883 – 0.940)
METHOD_WIDTH, PAPER_WIDTH, GAP = 16, 6, 2


class Format(StrEnum):
    """How a table is written."""

    TEXT = "text"
    CSV = "csv"
    MARKDOWN = "markdown"


@app.command(epilog=EXAMPLES)
def table(
    reports: Reports = Path("reports"),
    format: Annotated[Format, typer.Option(help="Output format.")] = Format.TEXT,
    debug: Debug = False,
) -> None:
    """Print Table I: all runs, and the paper's values.

    mAcc with its 95% interval. Text has a block for each data set, CSV and Markdown a line for each run.
    """
    with told(debug, code=2):
        from histoclip_lib.evaluation.artifacts import BrokenRun, find_runs
        from histoclip_lib.report.tables import table_one_frame

        runs = find_runs(resolve(reports))
        readable = [run for run in runs if not isinstance(run, BrokenRun)]
        if format is Format.TEXT:
            print_table_one(results(), readable)
        elif format is Format.CSV:
            typer.echo(table_one_frame(readable).to_csv(index_label="run"), nl=False)
        else:
            typer.echo(as_markdown(table_one_frame(readable)))
        if not runs:
            say(messages(), f"{visible(reports)} holds no finished run. Start one: histoclip run params/demo.yaml")
        for run in runs:
            if isinstance(run, BrokenRun):
                say(messages(), f"{visible(run.name)} is left out: {visible(run.reason)}")
            elif not run.is_current:
                say(messages(), f"{visible(run.name)} was started again and has not been evaluated since.")


def print_table_one(console: Console, runs: list[RunMetrics]) -> None:
    """Print Table I with a line for each method: a block for each data set with runs, then the paper's others.

    As many runs stand side by side as the console is wide.
    """
    from histoclip_lib.report.tables import score_text, table_one

    table = table_one(runs)
    for group in (group for group in table.groups if group.runs):
        paper = _paper_columns({"paper": group.paper} if group.paper else {})
        room = console.width - METHOD_WIDTH - GAP - (PAPER_WIDTH + GAP) * len(paper)
        n_beside = max(1, room // (RUN_WIDTH + GAP))
        for start in range(0, len(group.runs), n_beside):
            columns = [
                (run.name, {method: score_text(score.value, score.interval) for method, score in run.scores.items()})
                for run in group.runs[start : start + n_beside]
            ]
            _print_block(console, group.dataset, columns + paper, table.columns)
    if others := {group.dataset: group.paper for group in table.groups if group.paper and not group.runs}:
        _print_block(console, "The paper, data sets without a run here", _paper_columns(others), table.columns)


def _paper_columns(paper: dict[str, dict[str, float]]) -> list[tuple[str, dict[str, str]]]:
    return [(name, {method: f"{score:.3f}" for method, score in scores.items()}) for name, scores in paper.items()]


def _print_block(
    console: Console, title: str, columns: list[tuple[str, dict[str, str]]], labels: dict[str, str]
) -> None:
    """Print a title and the methods that any column has, then an empty line."""
    heads = ["mAcc", *(_shortened(visible(name), RUN_WIDTH) for name, _ in columns)]
    lines = [[label, *(texts.get(method, "") for _, texts in columns)] for method, label in labels.items()]
    say(console, visible(title))
    console.print(aligned(heads, [line for line in lines if any(line[1:])], 1))
    say(console, "")


def _shortened(text: str, width: int) -> str:
    """Return text that fits into so many cells of a terminal, without its middle if it is longer."""
    if cell_len(text) <= width:
        return text
    half = (width - 1) // 2
    return f"{set_cell_size(text, half)}…{set_cell_size(text[::-1], half)[::-1]}"


def as_markdown(frame: pd.DataFrame) -> str:
    """Return a table of text in Markdown, in which names from users are inline code."""
    lines = [["run", *frame.columns], ["---"] * (1 + len(frame.columns))]
    lines += [[_cell(str(value)) for value in line] for line in frame.itertuples()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    from histoclip_lib.common.html import as_typed

    if re.fullmatch(r"[^\W_]*([ .,:%()–-]+[^\W_]+)*[ %)]*", text):
        return text
    return as_typed(visible(text)).replace("|", r"\|")
