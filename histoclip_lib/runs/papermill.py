"""Execute one notebook through papermill: which cell it is in, what it says meanwhile, and how it failed."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from histoclip_lib.common.errors import HistoCLIPError, silenced
from histoclip_lib.runs.record import PLACES

try:
    import resource
except ImportError:  # Windows
    resource = None

# What papermill logs of a failure is said by the error; unasked it would be printed in the midst of the display.
logging.getLogger("papermill").addHandler(logging.NullHandler())

LONGEST_SOCKET = 90  # characters of its path: systems allow some 100
STEP_CONFIG = "HistoCLIP.step"  # in the configuration of the notebook's process: it is executed by a run
QUIET_KERNEL = ["--log-level=50"]  # it would tell of the interrupt that ends it, in the midst of the display
NO_COST = (*PLACES, "seed")  # parameters on which the time of a notebook does not depend
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
LESS_MEMORY = "Lower batch_size, encode_batch_size or views, or set studies: false."
# For a kernel to end by itself, in two halves. One that has used joblib's processes does not: it waits for the process
# that tidies up after them, which waits for the kernel to end.
SHUTDOWN_SECONDS = 2.0
START_TIMEOUT = 300  # seconds that a process may take to start, on a slow disk
LONGEST_REASON = 500  # characters of another library's message


@dataclass(frozen=True)
class Cell:
    """A code cell: its number from 1 as in `In [number]`, how many there are, and the heading above it or nothing."""

    number: int
    total: int
    heading: str

    def __str__(self) -> str:
        """Say it in a few words."""
        return f"cell {self.number} of {self.total}" + (f", {self.heading}" if self.heading else "")


def execute(
    notebook: Path,
    folder: Path,
    values: dict[str, object],
    workplace: Path,
    at_cell: Callable[[Cell], None] = lambda cell: None,
    at_line: Callable[[str], None] = lambda line: None,
    step: str = "",
) -> None:
    """Execute a notebook in a process of its own and write it to `folder`.

    Parameters
    ----------
    notebook : Path
        The `.ipynb` file.
    folder : Path
        Where the executed one goes; nothing is there under its name unless it ran to its end.
    values : dict of str to object
        Of its parameters.
    workplace : Path
        The folder in which its process runs.
    at_cell : callable
        Called as each code cell starts.
    at_line : callable
        Called with the latest line of the notebook's error stream, such as a progress bar.
    step : str
        The name under which it is written; by default its own. The notebook's process finds it in its configuration.

    Raises
    ------
    HistoCLIPError
        If a cell raises or the process dies; the notebook as far as it came is kept as `<notebook>.failed.ipynb`.
    """
    step = step or notebook.stem
    running, failed = folder / f".{step}.running.ipynb", folder / f"{step}.failed.ipynb"
    cells = _CellCounter(notebook, at_cell)
    memory_before = _peak_memory()
    try:
        with _kernel_config() as config, silenced("tornado.general"):  # where a kernel dies, the error says so
            papermill.execute_notebook(
                *(_without_fields(path) for path in (notebook, running)),
                values,
                kernel_name="python3",
                progress_bar=False,
                start_timeout=START_TIMEOUT,
                stderr_file=_LatestLine(at_line),
                config=config,
                extra_arguments=[*QUIET_KERNEL, f"--{STEP_CONFIG}={step}"],
                resources={"metadata": {"path": str(workplace)}},  # papermill's own cwd would move this whole process
                on_cell_start=cells.start,
            )
    except PapermillExecutionError as error:
        running.replace(failed)
        raise HistoCLIPError(f"{step}{_reason(error, cells)}The notebook as far as it came: {failed}") from error
    except DeadKernelError as error:
        running.replace(failed)
        peak = _peak_memory()
        memory = f" It held {peak / 2**30:.1f} GiB at its peak." if peak > memory_before else ""
        raise HistoCLIPError(
            f"{step}{cells.where}: the notebook's process was killed, most likely because memory ran out.{memory}\n"
            f"{LESS_MEMORY} The notebook as far as it came: {failed}"
        ) from error
    except BaseException:
        running.unlink(missing_ok=True)
        raise
    running.replace(folder / f"{step}.ipynb")
    failed.unlink(missing_ok=True)


@contextmanager
def _kernel_config() -> Iterator[Config]:
    """Yield the configuration of a kernel: it is reached through a private folder, not ports open to all users."""
    with tempfile.TemporaryDirectory(prefix="histoclip-", ignore_cleanup_errors=True) as folder:
        path = f"{folder}/kernel"
        private = os.name == "posix" and len(path) < LONGEST_SOCKET
        sockets = {"transport": "ipc", "ip": path} if private else {}
        yield Config({"KernelManager": sockets | {"shutdown_wait_time": SHUTDOWN_SECONDS}})


def executed_values(executed: Path) -> dict[str, object]:
    """Return the parameters with which a notebook was executed; none if it was not, or cannot be read."""
    parameters = _about(executed).get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def last_seconds(executed: Path, values: dict[str, object]) -> float | None:
    """Return how long a notebook took when it was executed, or None where the parameters of its cost were others.

    Parameters
    ----------
    executed : Path
        As `execute` wrote it; it need not exist.
    values : dict of str to object
        Its parameters now. The run's name, the reports folder and the seed may differ.
    """

    def cost(parameters: dict) -> dict:
        return {name: value for name, value in parameters.items() if name not in NO_COST}

    about = _about(executed)
    seconds, given = about.get("duration"), about.get("parameters")
    is_known = isinstance(seconds, int | float) and isinstance(given, dict) and cost(given) == cost(values)
    return float(seconds) if is_known else None


def _about(executed: Path) -> dict:
    """Return what papermill wrote into a notebook's metadata."""
    try:
        about = json.loads(executed.read_text(encoding="utf-8"))["metadata"]["papermill"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return about if isinstance(about, dict) else {}


class _CellCounter:
    """Counts the code cells as they start, and remembers the last heading that was passed."""

    def __init__(self, notebook: Path, at_cell: Callable[[Cell], None]) -> None:
        cells = nbformat.read(notebook, as_version=4).cells
        # papermill adds a cell with the run's parameters
        self.total = 1 + sum(cell.cell_type == "code" for cell in cells)
        self.number, self.heading, self.at_cell = 0, "", at_cell

    def start(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Take note of the next cell; nbclient calls this before it executes one."""
        if cell.cell_type == "code":
            self.number += 1
            self.at_cell(self.cell)
        elif headings := re.findall(r"^#{1,6}\s+(.*\S)", cell.source, flags=re.MULTILINE):
            self.heading = headings[-1]

    @property
    def cell(self) -> Cell:
        return Cell(self.number, self.total, self.heading)

    @property
    def where(self) -> str:
        return f", {self.cell}" if self.number else ""


class _LatestLine:
    """A text stream of which only the latest line matters; tqdm separates its lines by carriage returns."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell, self.rest = tell, ""

    def write(self, text: str) -> None:
        lines = re.split(r"[\r\n]", self.rest + text)
        self.rest = lines[-1]
        if line := next((line.strip() for line in reversed(lines) if line.strip()), ""):
            self.tell(line)

    def flush(self) -> None:
        """Do nothing: no line is held back."""


def _reason(error: PapermillExecutionError, cells: _CellCounter) -> str:
    """Say what a cell raised: HistoCLIP's own errors whole, of others the first line and where they came from."""
    if error.ename == HistoCLIPError.__name__:
        return f": {error.evalue}\n"
    first = next((line.strip() for line in str(error.evalue).splitlines() if line.strip()), "")
    short = first if len(first) <= LONGEST_REASON else f"{first[:LONGEST_REASON]} ..."
    return f"{cells.where}: {error.ename}: {short}\n" + (f"{LESS_MEMORY} " if error.ename in OUT_OF_MEMORY else "")


def _peak_memory() -> int:
    """Return the peak memory in bytes of the largest process that this one started and that has ended; 0 if unknown."""
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def _without_fields(path: Path) -> str:
    """Return a path in which papermill, which fills in `{fields}`, finds none."""
    return str(path).replace("{", "{{").replace("}", "}}")
