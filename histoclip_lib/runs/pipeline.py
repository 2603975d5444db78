"""One parameter file, one folder of reports: the notebooks are executed in order and made into pages."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from histoclip_lib.clip.availability import check_encoder
from histoclip_lib.common.cache import cache_dir, sweep_cache
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import alone_in, sweep
from histoclip_lib.common.registry import plugin_digest
from histoclip_lib.report.executed import stamp
from histoclip_lib.report.notebooks import OTHERS, run_notebooks
from histoclip_lib.report.run_pages import write_run_pages
from histoclip_lib.runs.papermill import execute, last_seconds
from histoclip_lib.runs.parameters import Schema, read_schema
from histoclip_lib.runs.record import LIBRARY, product_digests, read_entry, source_digest, step_entries, update_record

PACKAGES = ("histoclip", "torch", "open_clip_torch", "timm", "scikit-learn", "numpy", "papermill")
SLIDES = "slides"  # names files on which the notebook depends that declares it
DATA_PARAMETERS = ("data_dir", "prompts_file", "pretrained", "backbone")  # may name files on which a step depends


def find_notebooks(workplace: Path | None = None) -> Path:
    """Return the folder of the notebooks: that in `workplace`, by default the current folder, or the library's own.

    Raises
    ------
    HistoCLIPError
        If there is neither.
    """
    here = (workplace or Path.cwd()) / "notebooks"
    needed = [*(name for name, notebook in run_notebooks().items() if notebook.path is None), *OTHERS]
    looked_in = (here, LIBRARY.parent / "notebooks", LIBRARY / "project" / "notebooks")
    for folder in looked_in:
        if all((folder / f"{name}.ipynb").is_file() for name in needed):
            return folder
    raise HistoCLIPError(
        f"The notebooks {needed[0]} ... {needed[-1]} were not found in {here}. Write them there with `histoclip init "
        "DIR`, and run histoclip in that folder."
    )


def notebook_paths(workplace: Path | None = None) -> dict[str, Path]:
    """Return the path of each notebook of a run, by its name, in the order of execution."""
    folder = find_notebooks(workplace)
    return {name: notebook.path or folder / f"{name}.ipynb" for name, notebook in run_notebooks().items()}


def load_schema(workplace: Path | None = None) -> Schema:
    """Return the parameters that each notebook of a run declares; see `parameters.read_schema`."""
    return read_schema(list(notebook_paths(workplace).values()))


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
    schema: Schema,
    reports: Path,
    force: bool = False,
    report: Callable[[StepEvent], None] = lambda event: None,
    until: str | None = None,
    workplace: Path | None = None,
) -> Path:
    """Execute the notebooks of one run, each in a process of its own, and write their pages.

    A step is skipped where nothing that it depends on has changed: its notebook, the parameters that it and earlier
    notebooks declare, the modules of the library that it imported, plugins, package versions, the data, local weights,
    and the products of earlier steps; and where its own products are as it left them.

    Parameters
    ----------
    params : dict of str to object
        As `parameters.read_params` returns.
    schema : dict
        As `parameters.read_schema` returns.
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
    folder = reports / str(params["name"])
    if {"backbone", "pretrained", "heads"} <= params.keys():
        check_encoder(params)
    folder.mkdir(parents=True, exist_ok=True)
    steps = _Steps(folder, params, schema, notebook_paths(workplace), workplace)
    with alone_in(folder):
        for left in (folder, reports):
            sweep(left)
        sweep_cache(cache_dir())
        if force:
            update_record(folder, steps={})
        update_record(folder, parameters={name: params[name] for name in params if name != "reports_dir"})
        names = list(schema)
        for step in names if until is None else names[: names.index(until) + 1]:
            if steps.is_current(step):
                steps.keep(step)
                report(StepEvent(step, "skipped"))
                continue
            steps.forget(step)
            values = {name: params[name] for name in schema[step]} | {"reports_dir": str(reports)}
            seconds = execute_notebook(steps.paths[step], folder, step, values, report, workplace)
            steps.remember(step, seconds)
            write_run_pages(folder, step)
        write_run_pages(folder)  # with links to all; also where nothing was executed, since templates may have changed
    return folder


def finished_steps(params: dict[str, object], schema: Schema, reports: Path) -> list[str]:
    """Return the steps of a run that need not be executed again, up to the first that must be."""
    steps, finished = _Steps(reports / str(params["name"]), params, schema, notebook_paths(), Path.cwd()), []
    for step in schema:
        if not steps.is_current(step):
            break
        finished.append(step)
    return finished


class _Steps:
    """What the steps of a run depend on, compared with what its record says."""

    def __init__(
        self, folder: Path, params: dict, schema: dict[str, dict], paths: dict[str, Path], workplace: Path
    ) -> None:
        self.folder, self.params, self.schema, self.paths = folder, params, schema, paths
        packages = repr([sys.version, *(version(package) for package in PACKAGES)])
        self.slides = _files_digest(_slides_of(params, workplace), workplace)
        data = _files_digest(_named(params, workplace, *DATA_PARAMETERS), workplace)
        self.common = f"{packages}{plugin_digest()}{data}"

    def is_current(self, step: str) -> bool:
        """Whether a step is finished, its products are as it left them, and nothing that it depends on has changed."""
        entry = (step_entries(self.folder, "earlier") | step_entries(self.folder)).get(step)
        if entry is None or not (self.folder / f"{step}.ipynb").is_file():
            return False
        same = product_digests(self.folder, run_notebooks()[step].products) == entry.get("products")
        return same and entry.get("inputs") == self._inputs(step, entry.get("modules") or [])

    def forget(self, step: str) -> None:
        """Take a step, which is about to be executed, and all later ones out of those that are finished.

        What is known of the later ones is kept apart: where the step leaves the same products as before, they stand.
        """
        entries = step_entries(self.folder, "earlier") | step_entries(self.folder)
        update_record(
            self.folder,
            steps={name: entry for name, entry in entries.items() if name < step},
            earlier={name: entry for name, entry in entries.items() if name > step},
        )

    def keep(self, step: str) -> None:
        """Count a step that is current as finished again."""
        earlier = step_entries(self.folder, "earlier")
        if step in earlier:
            update_record(self.folder, steps=step_entries(self.folder) | {step: earlier.pop(step)}, earlier=earlier)

    def remember(self, step: str, seconds: float) -> None:
        """Record a finished step."""
        modules = read_entry(self.folder, "modules").get(step, [])
        entry = {
            "inputs": self._inputs(step, modules),
            "modules": modules,
            "products": product_digests(self.folder, run_notebooks()[step].products),
            "seconds": round(seconds, 1),
        }
        update_record(self.folder, steps=step_entries(self.folder) | {step: entry})

    def _inputs(self, step: str, modules: list[str]) -> str:
        entries = step_entries(self.folder)
        declared = {name for earlier in self.schema if earlier <= step for name in self.schema[earlier]}
        about = {
            "common": self.common,
            "parameters": {name: self.params[name] for name in sorted(declared - {"reports_dir"})},
            "source": source_digest(modules),
            "earlier": {name: entry.get("products") for name, entry in entries.items() if name < step},
        }
        if SLIDES in declared:
            about["slides"] = self.slides
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        digest.update(self.paths[step].read_bytes())
        return digest.hexdigest()


def execute_notebook(
    notebook: Path,
    folder: Path,
    step: str,
    values: dict[str, object],
    report: Callable[[StepEvent], None],
    workplace: Path,
    title: str = "",
) -> float:
    """Execute a notebook into `folder` as `<step>.ipynb`, stamp its origin on it, and return the seconds it took."""
    started = time.time()

    def tell(state: str, text: object) -> None:
        report(StepEvent(step, state, text=str(text)))

    report(StepEvent(step, "started", last_seconds(folder / f"{step}.ipynb", values)))
    try:
        execute(notebook, folder, values, workplace, partial(tell, "cell"), partial(tell, "line"), step)
    except Exception:
        report(StepEvent(step, "failed", time.time() - started))
        raise
    seconds = time.time() - started
    stamp(folder / f"{step}.ipynb", title or str(values.get("name", "HistoCLIP: all runs")), provenance(seconds))
    report(StepEvent(step, "finished", seconds))
    return seconds


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
            ["git", "-C", str(LIBRARY.parent), "describe", "--always", "--dirty", "--exclude=*"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return described.stdout.strip()


def _named(params: dict[str, object], workplace: Path, *parameters: str) -> list[Path]:
    """Return the files and folders that parameters name: data, prompts and local weights."""
    named = [str(params[key]).removeprefix("local-dir:") for key in parameters if params.get(key)]
    return [workplace / os.path.expanduser(name) for name in named]


def _slides_of(params: dict[str, object], workplace: Path) -> list[Path]:
    """Return the slides of a run, those in its table too, and the files beside them that may hold their labels."""
    roots = _named(params, workplace, SLIDES)
    for table in [path for path in roots if path.name == "slides.csv"]:
        from histoclip_lib.slides.aggregation import read_slide_table

        with suppress(HistoCLIPError):  # the notebook says what is wrong with it
            roots += read_slide_table(table).paths
    files = [path for path in roots if path.is_file()]
    return roots + [beside for path in files for beside in path.parent.glob(f"{glob.escape(path.stem)}_*")]


def _files_digest(roots: list[Path], workplace: Path) -> str:
    """Digest the names, sizes and times of files, and of those in folders."""
    digest = hashlib.sha256()
    for root in roots:
        for path in sorted([root, *root.rglob("*")]):
            if path.is_file():
                facts, name = path.stat(), os.path.relpath(path, workplace)
                digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()
