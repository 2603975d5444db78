"""`histoclip check`: parameter files and their data, and what a run would take."""

from __future__ import annotations

import io
import warnings
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

import typer

from histoclip_lib.cli.app import Debug, ParamFiles, Reports, Schema, app, read_checked
from histoclip_lib.cli.console import is_plain, messages, say, stoppable, told, visible
from histoclip_lib.common.cache import cache_dir
from histoclip_lib.common.files import resolve

EXAMPLES = """\b
Example:
  histoclip check params/pannuke.yaml && histoclip run params/pannuke.yaml
"""


@app.command(epilog=EXAMPLES)
def check(params: ParamFiles, reports: Reports = Path("reports"), debug: Debug = False) -> None:
    """Check parameter files and data; estimate the cost of a run.

    Every image is opened. No model is loaded, and no notebook is executed.
    """
    failed = False
    with stoppable():
        schema, runs = read_checked(params, debug)
        for path, values in runs:
            try:
                with told(debug):
                    _check_run(path, values, schema, resolve(reports))
            except typer.Exit:
                failed = True
    raise typer.Exit(1 if failed else 0)


def _check_run(path: Path, values: dict[str, object], schema: Schema, reports: Path) -> None:
    import numpy as np

    from histoclip_lib.clip.availability import forecast
    from histoclip_lib.data.checks import check_images, too_few
    from histoclip_lib.data.registry import load_dataset_from
    from histoclip_lib.data.splits import make_folds
    from histoclip_lib.runs.pipeline import finished_steps

    quiet = is_plain(messages())
    with redirect_stderr(io.StringIO()) if quiet else nullcontext():  # bars are for terminals
        patches = load_dataset_from(values)
    parts = ("protocol", "split", "seed", "val_fraction", "folds")
    folds = make_folds(patches, *(values[name] for name in parts))
    notes = (*patches.notes, *check_images(patches, not quiet))
    classes = ", ".join(f"{c} {p:.2f}" for c, p in zip(patches.classes, patches.prevalence, strict=True))
    sizes = f"{len(patches)} patches in {len(folds)} folds"
    if len(folds) == 1:
        sizes = f"{len(patches)} patches ({len(folds[0][0])} train, {len(folds[0][1])} validation)"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lines = forecast(values, len(patches), cache_dir(), reports / str(values["name"]))
    finished = finished_steps(values, schema, reports)
    lines.append(f"finished  {', '.join(finished) or 'nothing'}")
    lines.append(f"to do     {', '.join(step for step in schema if step not in finished) or 'nothing'}")
    typer.echo(visible(f"{path}: {sizes}; {classes}"))
    for line in lines:
        typer.echo(f"  {visible(line)}")
    scored = np.concatenate([val for _, val in folds])
    for note in (*notes, *filter(None, [too_few(patches, scored)]), *(warning.message for warning in caught)):
        say(messages(), f"  note: {visible(note)}")
