"""The command line."""

from __future__ import annotations

import difflib
import io
import shlex
import sys
import warnings
import webbrowser
from contextlib import nullcontext, redirect_stderr
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from histoclip_lib import __version__
from histoclip_lib.cli import main as help_texts
from histoclip_lib.cli.console import aligned, complain, is_plain, messages, results, say, stoppable, told, visible
from histoclip_lib.common.cache import CachedFeatures, cache_dir, cached_features, cached_items, sweep_cache
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import resolve

GENERAL = """Score, train and report HistoCLIP on a data set.

A parameter file names the data, the frozen backbone and how the head is trained. A run executes five notebooks with
it and writes their pages to reports/NAME/; reports/index.html gathers all runs.

\b
  histoclip check params/demo.yaml    is it right, and what would it take?
  histoclip run params/demo.yaml      do it; interrupted, it goes on later
  histoclip table                     all runs beside the paper's Table I
  histoclip show demo                 one run
"""
EXIT_CODES = """\b
Exit codes: 0 all went well; 1 a run or its data failed;
2 a parameter file, name or option cannot be used; 130 interrupted.

Paths and tables go to standard output, progress and errors to standard error. NO_COLOR and COLUMNS are respected.
"""
RUN = """\b
Examples:
  histoclip run params/demo.yaml
  histoclip run params/*.yaml --reports /data/reports
  histoclip run params/demo.yaml --force
  histoclip run params/grid.yaml --jobs 4
  histoclip run params/*.yaml --scheduler tcp://10.0.0.1:8786
"""
CHECK = """\b
Example:
  histoclip check params/pannuke.yaml && histoclip run params/pannuke.yaml
"""
TABLE = """\b
Examples:
  histoclip table
  histoclip table --format csv > table.csv
"""
SHOW = """\b
Examples:
  histoclip show demo
  histoclip show demo --open
"""
CACHE = """\b
Examples:
  histoclip cache
  histoclip cache --prune 30
"""

# What loads notebooks, tables or PyTorch is imported by the command that needs it: help comes at once.

MIB = 2**20

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=help_texts.GENERAL,
    epilog=help_texts.EXIT_CODES,
)

ParamFiles = Annotated[list[Path], typer.Argument(help="Parameter files, such as params/demo.yaml.", metavar="PARAMS")]
Reports = Annotated[Path, typer.Option(help="Folder below which each run has its own.", metavar="DIR")]
Runs = list[tuple[Path, dict[str, object]]]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Format(StrEnum):
    """How a table is written."""

    TEXT = "text"
    CSV = "csv"
    MARKDOWN = "markdown"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"histoclip {__version__}")
        raise typer.Exit


@app.callback()
def histoclip(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(epilog=help_texts.RUN)
def run(
    params: ParamFiles,
    reports: Reports = Path("reports"),
    force: Annotated[bool, typer.Option("--force", help="Execute finished steps again.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Work in so many processes.", min=1, metavar="N")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Work on the Dask cluster of this scheduler.", metavar="ADDRESS")
    ] = None,
    debug: Debug = False,
) -> None:
    """Execute the notebooks of each run, and write its pages.

    Every parameter file is checked before the first notebook starts. A step that is finished and whose inputs have
    not changed is skipped, so an interrupted run goes on where it stopped. If one run fails the others go on. At
    the end the overview of all runs is written, and the paths of the pages are printed, that of the overview last.
    A parameter file with a key `grid` stands for many runs.
    """
    failed, reports = [], resolve(reports)
    with stoppable(f" Finished steps are kept; to go on:\n{_command(params, reports)}"):
        schema, runs = _checked(params, debug)
        with told(debug):
            from histoclip_lib.cli.progress import shown
            from histoclip_lib.runs.grids import is_grid, write_grid_page
            from histoclip_lib.runs.pipeline import write_overview
        console = messages()
        if jobs is None and scheduler is None:
            failed = _run_here(runs, schema, reports, force, debug)
        else:
            with told(debug):
                failed = _run_elsewhere(runs, schema, reports, force, jobs, scheduler)
        folders = [reports / str(values["name"]) for _, values in runs if values["name"] not in failed]
        pages = [page for folder in folders if (page := folder / "index.html").is_file()]
        if reports.is_dir():
            with told(debug), shown(console) as report:
                pages += [write_grid_page(path, schema, reports) for path in params if is_grid(path)]
                pages.append(write_overview(reports, report))
    for page in pages:
        typer.echo(page.resolve())
    if failed and len(runs) > 1:
        complain(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}.")
    raise typer.Exit(1 if failed else 0)


def _run_here(runs: Runs, schema: dict, reports: Path, force: bool, debug: bool) -> list[str]:
    """Execute one run after the other; return the names of those that failed."""
    from histoclip_lib.cli.progress import shown
    from histoclip_lib.cli.show import print_headline
    from histoclip_lib.runs.pipeline import run_steps

    console, failed = messages(), []
    for path, values in runs:
        console.print(visible(values["name"]), style="bold", end="")
        say(console, f"  ({visible(path)})")
        try:
            with told(debug), shown(console) as report:
                print_headline(console, run_steps(values, schema, reports, force, report))
        except typer.Exit:
            failed.append(str(values["name"]))
    return failed


def _run_elsewhere(
    runs: Runs, schema: dict, reports: Path, force: bool, jobs: int | None, scheduler: str | None
) -> list[str]:
    """Execute many runs at once; return the names of those that failed."""
    from histoclip_lib.cli.progress import SideBySide
    from histoclip_lib.common.executors import open_executor
    from histoclip_lib.runs.many import run_all_on

    told_of = SideBySide(messages())
    with open_executor(jobs, scheduler) as executor:
        values = [values for _, values in runs]
        failures = run_all_on(executor, values, schema, reports, force, told_of.step_ended, told_of.shard_done)
    for name, reason in failures.items():
        complain(f"{name}: {reason}")
    return list(failures)


@app.command(epilog=help_texts.CHECK)
def check(params: ParamFiles, reports: Reports = Path("reports"), debug: Debug = False) -> None:
    """Check parameter files and their data; say what a run would take.

    Every image is opened. No model is loaded, and no notebook executed.
    """
    failed = False
    with stoppable():
        schema, runs = _checked(params, debug)
        for path, values in runs:
            try:
                with told(debug):
                    _check_run(path, values, schema, resolve(reports))
            except typer.Exit:
                failed = True
    raise typer.Exit(1 if failed else 0)


def _check_run(path: Path, values: dict, schema: dict, reports: Path) -> None:
    from histoclip_lib.data.checks import check_images
    from histoclip_lib.data.registry import load_dataset_from
    from histoclip_lib.data.splits import split_dataset
    from histoclip_lib.runs.pipeline import STEPS, finished_steps

    quiet = is_plain(messages())
    with redirect_stderr(io.StringIO()) if quiet else nullcontext():  # bars are for terminals
        patches = load_dataset_from(values)
    train, val = split_dataset(patches, values["split"], values["seed"], values["val_fraction"])
    check_images(patches, not quiet)
    classes = ", ".join(f"{c} {p:.2f}" for c, p in zip(patches.classes, patches.prevalence, strict=True))
    sizes = f"{len(patches)} patches ({len(train)} train, {len(val)} validation)"
    from histoclip_lib.clip.availability import forecast  # loads PyTorch, for which wrong data need not wait

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lines = forecast(values, len(patches), cache_dir(), reports / str(values["name"]))
    finished = finished_steps(values, schema, reports)
    lines.append(f"finished  {', '.join(finished) or 'nothing'}")
    lines.append(f"to do     {', '.join(step for step in STEPS if step not in finished) or 'nothing'}")
    typer.echo(visible(f"{path}: {sizes}; {classes}"))
    for line in lines:
        typer.echo(f"  {visible(line)}")
    for warning in caught:
        say(messages(), f"  note: {visible(warning.message)}")


@app.command(epilog=help_texts.TABLE)
def table(
    reports: Reports = Path("reports"),
    format: Annotated[Format, typer.Option(help="How it is written.")] = Format.TEXT,
    debug: Debug = False,
) -> None:
    """Print Table I: all runs, and the paper's values.

    mAcc with its 95 % interval. A block for each data set in text, a line for each run in CSV and Markdown.
    """
    with told(debug, code=2):
        from histoclip_lib.cli.show import as_markdown, print_table_one
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
            say(messages(), f"{reports} holds no finished run; start one with: histoclip run params/demo.yaml")
        for run in runs:
            if isinstance(run, BrokenRun):
                say(messages(), f"{visible(run.name)} is left out: {visible(run.reason)}")
            elif not run.is_current:
                say(messages(), f"{visible(run.name)} was started again and has not been evaluated since.")


@app.command(epilog=help_texts.SHOW)
def show(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run.")],
    reports: Reports = Path("reports"),
    open_page: Annotated[bool, typer.Option("--open", help="Open its page in a browser.")] = False,
    debug: Debug = False,
) -> None:
    """Print one run: headline, parameters, pages and files.

    Also whether it is current: whether running it again would execute anything.
    """
    with told(debug, code=2):
        from histoclip_lib.cli.show import details, print_headline, run_names

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
        for line in details(folder, _schema()):
            typer.echo(visible(line))
        if open_page:
            page = min(folder.glob("*.html"), key=lambda page: (page.stem != "index", page.name != "04_evaluate.html"))
            webbrowser.open(page.resolve().as_uri())


@app.command(epilog=help_texts.CACHE)
def cache(
    prune: Annotated[
        float | None,
        typer.Option(help="Remove features that were not used for so many days; 0 removes all.", min=0, metavar="DAYS"),
    ] = None,
    debug: Debug = False,
) -> None:
    """List what is cached; remove old entries with --prune.

    Features, exported image towers, painted patches and counted nuclei: all of it can be made again. What killed
    processes left there is removed.
    """
    with told(debug):
        lines, folder = [], cache_dir()
        sweep_cache(folder)
        for entry in [*cached_features(folder), *cached_items(folder)]:
            old = prune is not None and entry.idle >= prune
            if old:
                entry.remove()
            used = "removed" if old else f"{entry.idle:.0f} days ago" if entry.idle >= 1 else "today"
            if isinstance(entry, CachedFeatures):
                about = [f"features, {entry.backbone}", entry.pretrained, entry.dataset]
                counts = [str(entry.views), str(entry.patches)]
            else:
                about, counts = [entry.kind, "", entry.name], ["", ""]
            lines.append([*about, used, *counts, f"{entry.size / MIB:.0f}"])
        if not lines:
            typer.echo(f"{visible(folder)} holds nothing.")
            return
        typer.echo(visible(folder))
        results().print(aligned(["what", "weights", "data set", "last used", "views", "patches", "MiB"], lines, 4))


def _schema() -> dict:
    from histoclip_lib.runs.parameters import read_schema
    from histoclip_lib.runs.pipeline import STEPS, find_notebooks

    notebooks = find_notebooks()
    return read_schema([notebooks / f"{step}.ipynb" for step in STEPS])


def _checked(params: list[Path], debug: bool) -> tuple[dict, Runs]:
    """Return the schema, and the file and values of each run, or exit with code 2."""
    with told(debug, code=2):
        from histoclip_lib.runs.grids import read_runs

        schema = _schema()
        return schema, read_runs(params, schema)


def _command(params: list[Path], reports: Path) -> str:
    """Return the command that goes on with runs, as a shell takes it."""
    elsewhere = ["--reports", str(reports)] if reports != Path("reports") else []
    return shlex.join(["histoclip", "run", *map(str, params), *elsewhere])


def main() -> None:
    """Start the command line."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    app(prog_name="histoclip")


if __name__ == "__main__":
    main()
