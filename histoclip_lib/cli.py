"""The command line: `histoclip run`, `histoclip check` and `histoclip cache`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from histoclip_lib.cache import cache_dir, cached_features
from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.files import resolve
from histoclip_lib.params import read_params, read_schema
from histoclip_lib.runs import STEPS, StepEvent, find_notebooks, run_steps, write_overview

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Score, train and report HistoCLIP on a data set. Start with: histoclip run params/demo.yaml",
)
MIB = 2**20
console = Console(stderr=True, highlight=False, emoji=False)

ParamFiles = Annotated[list[Path], typer.Argument(help="Parameter files, such as params/demo.yaml.", metavar="PARAMS")]


@app.command()
def run(
    params: ParamFiles,
    reports: Annotated[Path, typer.Option(help="Folder below which each run has its own.")] = Path("reports"),
    force: Annotated[bool, typer.Option("--force", help="Execute finished steps again.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Execute the notebooks of each run and write its pages, then the overview of all runs.

    Every parameter file is checked before the first notebook starts. A step that is finished and whose inputs have
    not changed is skipped, so an interrupted run goes on where it stopped. Exit code 1: a run failed; 2: a parameter
    file cannot be used.
    """
    schema, all_values = _checked(params, debug)
    failed, reports = False, resolve(reports)
    for path, values in zip(params, all_values, strict=True):
        console.print(f"[bold]{escape(str(values['name']))}[/bold]  ({escape(str(path))})")
        try:
            folder = run_steps(values, schema, reports, force, _announce, sys.stderr if console.is_terminal else None)
        except HistoCLIPError as error:
            if debug:
                raise
            _complain(error)
            failed = True
        else:
            _print_headline(folder)
    try:
        index = write_overview(reports, _announce)
    except HistoCLIPError as error:
        if debug:
            raise
        _complain(error)
        raise typer.Exit(1) from error
    console.print("The report is ready. Open it in a browser:")
    typer.echo(index.resolve())
    raise typer.Exit(1 if failed else 0)


@app.command()
def check(
    params: ParamFiles,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Check parameter files and the data that they name, without loading a model or running anything."""
    _, all_values = _checked(params, debug)
    from histoclip_lib.datasets import check_images, load_dataset, split_dataset  # loads scikit-learn

    failed = False
    for path, values in zip(params, all_values, strict=True):
        names = ("dataset", "data_dir", "split", "n_patches", "mask_coverage", "min_nuclei")
        try:
            patches = load_dataset(*(values[name] for name in names))
            train, val = split_dataset(patches, values["split"], values["seed"], values["val_fraction"])
            check_images(patches, console.is_terminal)
        except HistoCLIPError as error:
            if debug:
                raise
            _complain(error)
            failed = True
            continue
        classes = ", ".join(f"{c} {p:.2f}" for c, p in zip(patches.classes, patches.prevalence, strict=True))
        typer.echo(f"{path}: {len(patches)} patches ({len(train)} train, {len(val)} validation); {classes}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def cache(
    prune: Annotated[
        float | None, typer.Option(help="Remove features that were not used for so many days; 0 removes all.", min=0)
    ] = None,
) -> None:
    """List the cached features, how large they are and when they were last used; remove old ones with --prune."""
    folder = cache_dir()
    entries = cached_features(folder)
    table = Table("backbone", "weights", "data set", "views", "patches", "MiB", "last used", title=escape(str(folder)))
    for entry in entries:
        old = prune is not None and entry.idle >= prune
        if old:
            entry.remove()
        used = "removed" if old else f"{entry.idle:.0f} days ago" if entry.idle >= 1 else "today"
        texts = (entry.backbone, entry.pretrained, entry.dataset, entry.views, entry.patches, f"{entry.size / MIB:.0f}")
        table.add_row(*(escape(str(text)) for text in texts), used)
    if entries:
        Console(highlight=False, emoji=False).print(table)
    else:
        typer.echo(f"{folder} holds no features.")


def _checked(params: list[Path], debug: bool) -> tuple[dict, list[dict[str, object]]]:
    """Return the schema and the values of each parameter file, or exit with code 2."""
    try:
        notebooks = find_notebooks()
        schema = read_schema([notebooks / f"{step}.ipynb" for step in STEPS])
        values = [read_params(path, schema) for path in params]
        names = [value["name"] for value in values]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise HistoCLIPError(f"name: {', '.join(twice)} stands in several parameter files; runs need own folders.")
    except HistoCLIPError as error:
        if debug:
            raise
        _complain(error)
        raise typer.Exit(2) from error
    return schema, values


def _announce(event: StepEvent) -> None:
    text = {
        "skipped": "[dim]{step}  unchanged, skipped[/dim]",
        "started": "{step}  ...",
        "finished": "{step}  [green]done[/green] in {seconds:.0f} s",
        "failed": "{step}  [red]failed[/red] after {seconds:.0f} s",
    }[event.state]
    console.print("  " + text.format(step=event.step, seconds=event.seconds))


def _complain(error: HistoCLIPError) -> None:
    console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)


def _print_headline(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    table = Table("row", "mAcc", "95 % interval", "mAP", title=escape(f"{metrics['name']}: {metrics['n_val']} patches"))
    for name, row in metrics["rows"].items():
        low, high = row["mAcc_ci"]
        average = "" if row["mAP"] is None else f"{row['mAP']:.3f}"
        table.add_row(name, f"{row['mAcc']:.3f}", f"{low:.3f} to {high:.3f}", average)
    console.print(table)


def main() -> None:
    """Start the command line."""
    app()
