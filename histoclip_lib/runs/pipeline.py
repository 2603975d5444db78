"""One parameter file, one folder of reports: the notebooks are executed in order and made into pages."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from histoclip_lib.common.cache import cache_dir, sweep_cache
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import alone_in, sweep, write_text
from histoclip_lib.report.executed import stamp
from histoclip_lib.report.navigation import TABLE_PAGE
from histoclip_lib.report.overview import write_index, write_site
from histoclip_lib.report.run_pages import write_run_pages
from histoclip_lib.runs.papermill import execute, last_seconds
from histoclip_lib.runs.parameters import Parameter

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = ("01_data", "02_zero_shot", "03_train", "04_evaluate", "05_attention")
PRODUCTS = {
    "01_data": ("split.csv",),
    "02_zero_shot": ("zero_shot.parquet",),
    "03_train": ("cmm_global.safetensors", "cmm_patch.safetensors", "history.csv", "studies.parquet"),
    "04_evaluate": ("metrics.json", "predictions.parquet", "model_card.md"),
    "05_attention": ("thumbnail.png",),
}
OVERVIEW_PATIENCE = 600.0  # seconds to wait for another process that writes the overview
PACKAGES = ("histoclip", "torch", "open_clip_torch", "timm", "scikit-learn", "numpy", "papermill")


def find_notebooks(workplace: Path | None = None) -> Path:
    """Return the folder of the notebooks: that in `workplace`, by default the current folder, or beside the library.

    Raises
    ------
    HistoCLIPError
        If there is neither.
    """
    here = (workplace or Path.cwd()) / "notebooks"
    for folder in (here, REPOSITORY / "notebooks"):
        if all((folder / f"{step}.ipynb").is_file() for step in (*STEPS, TABLE_PAGE)):
            return folder
    raise HistoCLIPError(
        f"The notebooks {STEPS[0]} ... {TABLE_PAGE} are neither in {here} nor in "
        f"{REPOSITORY / 'notebooks'}. Run histoclip in a clone of its repository."
    )


@dataclass(frozen=True)
class StepEvent:
    """What happens to a notebook.

    Attributes
    ----------
    step : str
        Its name.
    state : str
        `skipped`, `started`, `cell` (the next one starts), `line` (of its error stream), `finished` or `failed`.
    seconds : float or None
        `started`: how long it took last time, None where that is not known; `finished` and `failed`: how long it took.
    text : str
        `cell`: which one; `line`: what it says.
    """

    step: str
    state: str
    seconds: float | None = None
    text: str = ""


def run_steps(
    params: dict[str, object],
    schema: dict[str, dict[str, Parameter]],
    reports: Path,
    force: bool = False,
    report: Callable[[StepEvent], None] = lambda event: None,
    until: str | None = None,
    workplace: Path | None = None,
) -> Path:
    """Execute the notebooks of one run, each in a process of its own, and write their pages.

    A step whose notebook, parameters, library, data, local weights and earlier steps are those of last time, and whose
    products are there, is skipped.

    Parameters
    ----------
    params : dict of str to object
        As `params.read_params` returns.
    schema : dict
        As `params.read_schema` returns.
    reports : Path
        The run's folder is `reports/<name>`.
    force : bool
        Whether to execute finished steps again.
    report : callable
        Called with each `StepEvent`.
    until : str, optional
        The last step to execute; by default all are.
    workplace : Path, optional
        The folder from which relative paths are taken; by default the current one.

    Returns
    -------
    Path
        The run's folder.

    Raises
    ------
    HistoCLIPError
        If a notebook fails; the message is the cell's own error, and the notebook as far as it came is kept beside
        the others as `<step>.failed.ipynb`. If another process executes the run.
    """
    workplace = workplace or Path.cwd()
    notebooks, folder = find_notebooks(workplace), reports / str(params["name"])
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "steps.json"
    if not (reports / "index.html").is_file():
        write_index(reports)  # the run's pages link it
    with alone_in(folder):
        for left in (folder, reports):
            sweep(left)
        sweep_cache(cache_dir())
        keys = _step_keys(params, schema, notebooks, workplace)
        kept = [] if force else _finished(folder, keys)
        for step in STEPS if until is None else STEPS[: STEPS.index(until) + 1]:
            if step in kept:
                report(StepEvent(step, "skipped"))
                continue
            done = {earlier: keys[earlier] for earlier in STEPS if earlier < step}
            write_text(record, json.dumps(done, indent=1))
            values = {name: params[name] for name in schema[step]} | {"reports_dir": str(reports)}
            _run_step(notebooks / f"{step}.ipynb", folder, values, report, workplace)
            write_text(record, json.dumps(done | {step: keys[step]}, indent=1))
            write_run_pages(folder)
        write_run_pages(folder)  # also where nothing was executed: templates may have changed, or a page be gone
    return folder


def finished_steps(params: dict[str, object], schema: dict[str, dict[str, Parameter]], reports: Path) -> list[str]:
    """Return the steps of a run that need not be executed again; `run_steps` has the parameters and the rule."""
    return _finished(reports / str(params["name"]), _step_keys(params, schema, find_notebooks(), Path.cwd()))


def _finished(folder: Path, keys: dict[str, str]) -> list[str]:
    done, finished = _read_record(folder / "steps.json"), []
    for step, key in keys.items():
        products = [folder / product for product in (*PRODUCTS[step], f"{step}.ipynb")]
        if done.get(step) != key or not all(product.is_file() for product in products):
            break
        finished.append(step)
    return finished


def _step_keys(
    params: dict[str, object], schema: dict[str, dict[str, Parameter]], notebooks: Path, workplace: Path
) -> dict[str, str]:
    """Return a digest for each step of all that its outcome depends on, which is also all that the earlier ones do."""
    inputs = hashlib.sha256((_library_digest() + _data_digest(params, workplace)).encode())
    keys = {}
    for step in STEPS:
        values = {name: params[name] for name in schema[step]}
        inputs.update((notebooks / f"{step}.ipynb").read_bytes())
        inputs.update(json.dumps(values, sort_keys=True).encode())
        keys[step] = inputs.hexdigest()
    return keys


def write_overview(reports: Path, report: Callable[[StepEvent], None] = lambda event: None) -> Path:
    """Gather all runs below a folder: execute 06_table and write all pages that are stale; return the overview."""
    with alone_in(reports, OVERVIEW_PATIENCE):
        _run_step(find_notebooks() / f"{TABLE_PAGE}.ipynb", reports, {"reports_dir": str(reports)}, report, Path.cwd())
        return write_site(reports)


def _run_step(
    notebook: Path, folder: Path, values: dict[str, object], report: Callable[[StepEvent], None], workplace: Path
) -> None:
    step, started = notebook.stem, time.time()

    def tell(state: str, text: object) -> None:
        report(StepEvent(step, state, text=str(text)))

    report(StepEvent(step, "started", last_seconds(folder / f"{step}.ipynb", values)))
    try:
        execute(notebook, folder, values, workplace, partial(tell, "cell"), partial(tell, "line"))
    except Exception:
        report(StepEvent(step, "failed", time.time() - started))
        raise
    seconds = time.time() - started
    title = str(values.get("name", "HistoCLIP: all runs"))
    stamp(folder / f"{step}.ipynb", title, provenance(seconds))
    report(StepEvent(step, "finished", seconds))


def provenance(seconds: float) -> dict[str, str]:
    """Return where a page comes from: versions, commit, device and time."""
    import torch  # here alone: the command line starts without it

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "seconds": f"{seconds:.0f}",
        "device": device,
        "commit": _commit(),
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _commit() -> str:
    """Return the commit of the repository that holds the library, marked when files differ from it."""
    try:
        described = subprocess.run(  # noqa: S603
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return described.stdout.strip()


def _library_digest() -> str:
    digest = hashlib.sha256(sys.version.encode())
    digest.update(repr([version(package) for package in PACKAGES]).encode())
    for path in sorted(Path(__file__).parents[1].rglob("*")):
        if path.is_file() and path.suffix not in (".pyc", ".j2", ".css", ".js"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _data_digest(params: dict[str, object], workplace: Path) -> str:
    """Digest the names, sizes and times of the files that parameters name: data, prompts and local weights."""
    digest = hashlib.sha256()
    named = [params.get(key) for key in ("data_dir", "prompts_file", "pretrained", "backbone")]
    for root in [workplace / str(name).removeprefix("local-dir:") for name in named if name]:
        for path in sorted([root, *root.rglob("*")]):
            if path.is_file():
                facts, name = path.stat(), os.path.relpath(path, workplace)
                digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _read_record(path: Path) -> dict[str, str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
