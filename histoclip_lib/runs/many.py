"""Many runs on many processes or machines: features shard by shard, then each run's notebooks one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path

from histoclip_lib.common.cache import cache_dir
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import named_errors, run_task
from histoclip_lib.common.files import resolve
from histoclip_lib.features.remote import encode_shards_on
from histoclip_lib.runs.parameters import Schema
from histoclip_lib.runs.pipeline import StepEvent, finished_steps, run_steps
from histoclip_lib.runs.record import update_record

ENDINGS = ("skipped", "finished", "failed")


def run_all_on(
    executor: Executor,
    runs: list[dict[str, object]],
    schema: Schema,
    reports: Path,
    force: bool = False,
    report: Callable[[str, StepEvent], None] = lambda name, event: None,
    shard_done: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, str]:
    """Execute the notebooks of many runs at once; what the cache lacks is encoded once the first has checked the data.

    A notebook is a task of its own: the notebooks of one run follow each other, since each reads what earlier ones have
    written, and runs do not wait for each other. The folders of the runs and the feature cache are the only state, so
    a task whose worker dies is simply done again, and a second call does what is left.

    Parameters
    ----------
    executor : Executor
        As `executors.open_executor` gives it. Its workers see the current folder, `reports`, the data and the cache
        under the same paths.
    runs : list of dict
        The parameters of each, as `grids.read_runs` returns them.
    schema : dict
        As `parameters.read_schema` returns.
    reports : Path
        Each run's folder is `reports/<name>`.
    force : bool
        Whether to execute finished steps again.
    report : callable
        Called with a run's name and each `StepEvent` that ends a step.
    shard_done : callable
        Called with a run's name, how many shards of its features are done, and how many there are.

    Returns
    -------
    dict of str to str
        Why each run that failed did so, by its name; the others have gone on.
    """
    workplace, reports, cache = resolve(".").absolute(), reports.absolute(), cache_dir().absolute()
    failed: dict[str, str] = {}

    def execute(steps: tuple[str, ...]) -> None:
        running: dict[Future, tuple[dict[str, object], int]] = {}

        def begin(values: dict[str, object], place: int) -> None:
            with named_errors(executor):
                future = executor.submit(run_task, run_step, values, schema, reports, workplace, cache, steps[place])
                running[future] = (values, place)

        try:
            for values in runs:
                if values["name"] not in failed:
                    begin(values, 0)
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    values, place = running.pop(future)
                    try:
                        with named_errors(executor):
                            report(str(values["name"]), future.result())
                        if place + 1 < len(steps):
                            begin(values, place + 1)
                    except HistoCLIPError as error:
                        failed[str(values["name"])] = str(error)
        finally:
            for future in running:
                future.cancel()

    if force:
        for values in runs:
            if (folder := reports / str(values["name"])).is_dir():
                update_record(folder, steps={})
    steps = tuple(schema)
    execute(steps[:1])
    for values in runs:
        name = str(values["name"])
        if name in failed or finished_steps(values, schema, reports) == list(steps):
            continue
        try:
            encode_shards_on(executor, values, lambda done, total, _, name=name: shard_done(name, done, total))
        except HistoCLIPError as error:
            failed[name] = str(error)
    execute(steps[1:])
    return failed


def run_step(
    values: dict[str, object],
    schema: Schema,
    reports: Path,
    workplace: Path,
    cache: Path,
    step: str,
) -> StepEvent:
    """Execute one notebook of a run, the task that a worker runs; return how it ended.

    It works where the client does: from the same folder, with the same cache.

    Raises
    ------
    HistoCLIPError
        As `runs.run_steps` does.
    """
    os.environ["HISTOCLIP_CACHE"] = str(cache)
    events: list[StepEvent] = []
    run_steps(values, schema, reports, report=events.append, until=step, workplace=workplace)
    return next(event for event in reversed(events) if event.step == step and event.state in ENDINGS)
