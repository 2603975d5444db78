"""`histoclip show`: one run as text, its results, parameters, state, pages and files."""

from __future__ import annotations

import difflib
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from histoclip_lib.cli.app import Debug, Reports, Schema, app
from histoclip_lib.cli.console import aligned, results, say, told, visible
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import resolve

if TYPE_CHECKING:
    from histoclip_lib.evaluation.artifacts import RunMetrics

EXAMPLES = """\b
Examples:
  histoclip show demo
  histoclip show demo --open
"""
FIRST_METHODS = ("histoclip_patch", "histoclip_global", "linear_probe", "mlp", "knn")


@app.command(epilog=EXAMPLES)
def show(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run.")],
    reports: Reports = Path("reports"),
    open_page: Annotated[bool, typer.Option("--open", help="Open its page of results in a browser.")] = False,
    debug: Debug = False,
) -> None:
    """Print one run: results, parameters, pages and files.

    Also whether it is up to date, or running it again would execute anything.
    """
    with told(debug, code=2):
        from histoclip_lib.report.notebooks import front_page
        from histoclip_lib.runs.pipeline import load_schema

        folder, names = resolve(reports) / name, run_names(resolve(reports))
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=3)
            hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
            raise HistoCLIPError(
                f"{name}: there is no such run in {reports}.\n{hint}Runs: {', '.join(names) or 'none'}."
            )
        if (folder / "metrics.json").is_file():
            print_headline(results(), folder)
        else:
            typer.echo(f"{visible(name)}: not evaluated yet")
        for line in details(folder, load_schema()):
            typer.echo(visible(line))
        if open_page:
            if (page := front_page(folder)) is None:
                raise HistoCLIPError(f"{name}: there is no page yet. Run it with `histoclip run`.")
            webbrowser.open(page.resolve().as_uri())


def run_names(reports: Path) -> list[str]:
    """Return the names of the runs below a folder, finished or not, in alphabetical order."""
    return sorted({path.parent.name for kind in ("metrics", "run") for path in reports.glob(f"*/{kind}.json")})


def details(folder: Path, schema: Schema) -> list[str]:
    """Say in lines of text what a run was made with, whether it is up to date, and where its pages and files are.

    `schema` holds the parameters of each notebook, as `pipeline.load_schema` returns them.
    """
    from histoclip_lib.report.notebooks import front_page
    from histoclip_lib.runs.record import PLACES, read_entry

    values = read_entry(folder, "parameters")
    defaults = {name: parameter.default for declared in schema.values() for name, parameter in declared.items()}
    changed = [
        f"{name}: {value}"
        for name, value in sorted(values.items())
        if name not in PLACES and value != defaults.get(name)
    ]
    front = front_page(folder)
    pages = sorted(folder.glob("*.html"), key=lambda page: (page != front, page.name))
    files = sorted(path.name for path in folder.iterdir() if path.suffix != ".html" and not path.name.startswith("."))
    return [
        f"parameters that differ from the defaults: {', '.join(changed) or 'none'}",
        _state(folder, values, schema),
        "pages",
        *(f"  {page.resolve()}" for page in pages),
        f"files in {folder.resolve()}",
        f"  {', '.join(files)}",
    ]


def _state(folder: Path, values: dict[str, object], schema: Schema) -> str:
    from histoclip_lib.runs.pipeline import finished_steps
    from histoclip_lib.runs.record import PLACES

    if values.keys() | set(PLACES) != {name for declared in schema.values() for name in declared}:
        return "not up to date: it was never started as a whole, or the notebooks declare other parameters now"
    finished = finished_steps(values | {"name": folder.name}, schema, folder.parent)
    if again := [step for step in schema if step not in finished]:
        return f"not up to date: a run would execute {', '.join(again)}"
    return "up to date: a run with these parameters would execute nothing"


def print_headline(console: Console, folder: Path) -> None:
    """Print the methods of a run, the most important first, and what must be said beside them.

    Raises
    ------
    HistoCLIPError
        If the `metrics.json` in its folder cannot be used.
    """
    from histoclip_lib.evaluation.artifacts import read_metrics

    found = read_metrics(folder / "metrics.json")
    size = "?" if found.n_val is None else found.n_val
    say(console, f"{visible(found.name)}: {size} held-out patches")
    console.print(aligned(["", "method", "mAcc", "95% interval", "mAP"], headline_lines(found), 2))
    for note in headline_notes(found):
        say(console, note)


def headline_lines(found: RunMetrics) -> list[list[str]]:
    """Return mark, label, mAcc, its interval and mAP of each method; `*` marks the highest mAcc."""
    from histoclip_lib.evaluation.methods import label_of, methods

    order = dict.fromkeys([*FIRST_METHODS, *reversed(methods()), *found.scores])
    best = max((round(score.value, 6) for score in found.scores.values()), default=None)
    return [
        [
            "*" if round(score.value, 6) == best else "",
            label_of(name),
            f"{score.value:.3f}",
            " to ".join(f"{end:.3f}" for end in score.interval or ()),
            f"{found.mean_ap[name].value:.3f}" if name in found.mean_ap else "",
        ]
        for name in order
        if (score := found.scores.get(name))
    ]


def headline_notes(found: RunMetrics) -> list[str]:
    """Return what must be said beside the methods: the mark, a better probe, an encoder that is not CLIP."""
    from histoclip_lib.evaluation.text import not_clip_text

    notes = ["* the highest mAcc"]
    if found.lead is not None and found.lead <= 0:
        head, probe = (found.scores[name].value for name in ("histoclip_patch", "linear_probe"))
        notes.append(f"HistoCLIP with patch tokens is not above the linear probe: {head:.3f} against {probe:.3f}.")
    if not found.is_clip:
        notes.append(not_clip_text(visible(found.backbone)))
    return notes
