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
from importlib.metadata import version
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from histoclip_lib import pages
from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.files import write_text
from histoclip_lib.params import Parameter

# Sockets in a private folder instead of ports that any user of the machine can reach.
KERNEL_CONFIG = Config({"KernelManager": {"transport": "ipc"}} if os.name == "posix" else {})
REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = ("01_data", "02_zero_shot", "03_train", "04_evaluate", "05_attention")
PRODUCTS = {
    "01_data": ("split.csv",),
    "02_zero_shot": ("zero_shot.parquet",),
    "03_train": ("cmm_global.safetensors", "cmm_patch.safetensors", "history.csv", "studies.parquet"),
    "04_evaluate": ("metrics.json", "predictions.parquet", "model_card.md"),
    "05_attention": ("thumbnail.png",),
}
PACKAGES = ("histoclip", "torch", "open_clip_torch", "timm", "scikit-learn", "numpy", "papermill")


def find_notebooks() -> Path:
    """Return the folder of the notebooks: `./notebooks`, else the one beside the library.

    Raises
    ------
    HistoCLIPError
        If there is neither.
    """
    for folder in (Path.cwd() / "notebooks", REPOSITORY / "notebooks"):
        if all((folder / f"{step}.ipynb").is_file() for step in (*STEPS, pages.TABLE_PAGE)):
            return folder
    raise HistoCLIPError(
        f"The notebooks {STEPS[0]} ... {pages.TABLE_PAGE} are neither in {Path.cwd() / 'notebooks'} nor in "
        f"{REPOSITORY / 'notebooks'}. Run histoclip in a clone of its repository."
    )


@dataclass(frozen=True)
class StepEvent:
    """What happens to a notebook: `state` is `skipped`, `started`, `finished` or `failed`."""

    step: str
    state: str
    seconds: float = 0.0


def run_steps(
    params: dict[str, object],
    schema: dict[str, dict[str, Parameter]],
    reports: Path,
    force: bool = False,
    report: Callable[[StepEvent], None] = lambda event: None,
    stream: object = None,
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
    stream : text file, optional
        Where the notebooks' progress goes.

    Returns
    -------
    Path
        The run's folder.

    Raises
    ------
    HistoCLIPError
        If a notebook fails; the message is the cell's own error, and the notebook as far as it came is kept beside
        the others as `<step>.failed.ipynb`.
    """
    notebooks = find_notebooks()
    folder = reports / str(params["name"])
    folder.mkdir(parents=True, exist_ok=True)
    record_path = folder / "steps.json"
    done = _read_record(record_path)
    inputs = hashlib.sha256((_library_digest() + _data_digest(params)).encode())
    for step in STEPS:
        values = {name: params[name] for name in schema[step]}
        inputs.update((notebooks / f"{step}.ipynb").read_bytes())
        inputs.update(json.dumps(values, sort_keys=True).encode())
        key = inputs.hexdigest()
        products = [folder / product for product in (*PRODUCTS[step], f"{step}.ipynb", f"{step}.html")]
        if not force and done.get(step) == key and all(product.is_file() for product in products):
            report(StepEvent(step, "skipped"))
            continue
        done = {earlier: value for earlier, value in done.items() if earlier < step}
        write_text(record_path, json.dumps(done, indent=1))
        _run_step(notebooks / f"{step}.ipynb", folder, values | {"reports_dir": str(reports)}, report, stream)
        done[step] = key
        write_text(record_path, json.dumps(done, indent=1))
    return folder


def write_overview(reports: Path, report: Callable[[StepEvent], None] = lambda event: None) -> Path:
    """Gather all runs below a folder: execute 06_table, write its page and `index.html`; return the latter."""
    _run_step(find_notebooks() / f"{pages.TABLE_PAGE}.ipynb", reports, {"reports_dir": str(reports)}, report, None)
    return pages.write_index(reports)


def _run_step(
    notebook: Path, folder: Path, values: dict[str, object], report: Callable[[StepEvent], None], stream: object
) -> None:
    step, started = notebook.stem, time.time()
    report(StepEvent(step, "started"))
    running, failed = folder / f".{step}.running.ipynb", folder / f"{step}.failed.ipynb"
    try:
        papermill.execute_notebook(
            str(notebook),
            str(running),
            values,
            kernel_name="python3",
            progress_bar=False,
            stderr_file=stream,
            config=KERNEL_CONFIG,
        )
    except PapermillExecutionError as error:
        running.replace(failed)
        report(StepEvent(step, "failed", time.time() - started))
        reason = error.evalue if error.ename == HistoCLIPError.__name__ else f"{error.ename}: {error.evalue}"
        raise HistoCLIPError(f"{step}: {reason}\nThe notebook as far as it came: {failed}") from error
    except RuntimeError as error:  # the kernel died
        running.replace(failed)
        report(StepEvent(step, "failed", time.time() - started))
        raise HistoCLIPError(
            f"{step}: the notebook's process ended ({error}). If it ran out of memory, lower batch_size or views.\n"
            f"The notebook as far as it came: {failed}"
        ) from error
    seconds = time.time() - started
    running.replace(folder / f"{step}.ipynb")
    failed.unlink(missing_ok=True)
    navigation = pages.overview_navigation(step) if step == pages.TABLE_PAGE else pages.run_navigation(step)
    title = str(values.get("name", "HistoCLIP: all runs"))
    pages.export_page(folder / f"{step}.ipynb", folder / f"{step}.html", title, navigation, provenance(seconds))
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
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.is_file() and path.suffix not in (".pyc", ".j2", ".css", ".js"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _data_digest(params: dict[str, object]) -> str:
    """Digest the names, sizes and times of the files that parameters name: data, prompts and local weights."""
    digest = hashlib.sha256()
    named = [params.get(key) for key in ("data_dir", "prompts_file", "pretrained", "backbone")]
    for root in [Path(str(name).removeprefix("local-dir:")) for name in named if name]:
        for path in sorted([root, *root.rglob("*")]):
            if path.is_file():
                facts = path.stat()
                digest.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _read_record(path: Path) -> dict[str, str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
