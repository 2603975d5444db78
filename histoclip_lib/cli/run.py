"""`histoclip run`: the notebooks of each run are executed and made into pages."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from histoclip_lib.cli.app import Debug, ListingCommand, ParamFiles, Reports, Runs, Schema, app, read_checked
from histoclip_lib.cli.console import complain, messages, say, stoppable, told, visible
from histoclip_lib.common.files import resolve

EXAMPLES = """\b
Examples:
  histoclip run params/demo.yaml
  histoclip run params/demo.yaml --draft
  histoclip run params/*.yaml --reports /data/reports
  histoclip run params/grid.yaml --jobs 4
  histoclip run params/*.yaml --scheduler tcp://10.0.0.1:8786
"""
DRAFT = {"resamples": 100, "studies": False, "wordings": 2}
DRAFT_NOTE = (
    "Draft: resamples: 100, studies: false and wordings: 2, except where a parameter file sets them. Intervals are "
    "rough; run again without --draft before you report a number."
)


@app.command(cls=ListingCommand, epilog=EXAMPLES)
def run(
    params: ParamFiles,
    reports: Reports = Path("reports"),
    force: Annotated[bool, typer.Option("--force", help="Execute finished steps again.")] = False,
    draft: Annotated[bool, typer.Option("--draft", help="Few resamples and no studies, for a first look.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Number of worker processes.", min=1, metavar="N")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Work on the Dask cluster of this scheduler.", metavar="ADDRESS")
    ] = None,
    debug: Debug = False,
) -> None:
    """Execute the notebooks of each run, and write its pages.

    Every parameter file is checked before the first notebook starts. A step that is finished and whose inputs have
    not changed is skipped, so an interrupted run resumes where it stopped. If one run fails the others go on. At
    the end the overview of all runs is written, and the paths of the pages are printed, that of the overview last.
    A parameter file with a key `grid` stands for many runs.
    """
    options = {"--reports": reports, "--draft": draft, "--jobs": jobs, "--scheduler": scheduler}
    failed, reports = [], resolve(reports)
    with stoppable(f" Finished steps are kept; to go on:\n{_command(params, options)}"):
        schema, runs = read_checked(params, debug, **(DRAFT if draft else {}))
        if draft:
            say(messages(), DRAFT_NOTE)
        with told(debug):
            from histoclip_lib.cli.progress import shown
            from histoclip_lib.report.notebooks import front_page
            from histoclip_lib.runs.grids import is_grid
            from histoclip_lib.runs.overview import write_overview

            runs = _without_absent_encoders(runs)
        if jobs is None and scheduler is None:
            failed = _run_here(runs, schema, reports, force, debug)
        else:
            with told(debug):
                failed = _run_elsewhere(runs, schema, reports, force, jobs, scheduler)
        folders = [reports / str(values["name"]) for _, values in runs if values["name"] not in failed]
        pages = [page for folder in folders if (page := front_page(folder))]
        if reports.is_dir():
            with told(debug), shown(messages()) as report:
                pages += write_overview(reports, report, [path for path in params if is_grid(path)])
    for page in pages:
        typer.echo(page.resolve())
    if failed and len(runs) > 1:
        complain(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}.")
    raise typer.Exit(1 if failed else 0)


def _without_absent_encoders(runs: Runs) -> Runs:
    """Leave out the runs of grids over encoders whose encoder cannot be had here, and say why."""
    from histoclip_lib.clip.availability import find_encoder
    from histoclip_lib.runs.grids import is_grid

    kept = []
    for path, values in runs:
        alone = len({other.get("backbone") for where, other in runs if where == path}) == 1
        found = None if alone or not is_grid(path) else find_encoder(str(values["backbone"]), str(values["pretrained"]))
        if found is None or not found.reason:
            kept.append((path, values))
        else:
            say(messages(), f"{visible(values['name'])} is left out: {visible(found.reason)}")
    return kept


def _run_here(runs: Runs, schema: Schema, reports: Path, force: bool, debug: bool) -> list[str]:
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
    runs: Runs, schema: Schema, reports: Path, force: bool, jobs: int | None, scheduler: str | None
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


def _command(params: list[Path], options: dict[str, object]) -> str:
    """Return the command that resumes runs, as a shell takes it."""
    words = ["histoclip", "run", *map(str, params)]
    for option, value in options.items():
        if value and value != Path("reports"):
            words += [option] if value is True else [option, str(value)]
    return shlex.join(words)
