"""Many processes or machines behind one interface: `concurrent.futures.Executor`, local or of a Dask cluster."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import socket
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown, silenced

PATIENCE = 10.0  # seconds within which a scheduler must answer
RETRIES = 2  # of a task that raised; one whose worker died is moved to another worker besides
AT_ONCE = 2000  # tasks that are handed over and not yet done: a scheduler and a client stay small
INSTALL = "Install the same versions on every machine, scheduler included, and the library from one commit."
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow")  # what decides the bits of features


@contextmanager
def open_executor(jobs: int | None = None, scheduler: str | None = None) -> Iterator[Executor]:
    """Yield an executor: processes of this machine, or the workers of a Dask scheduler.

    Parameters
    ----------
    jobs : int, optional
        Number of worker processes, by default one per core; each has `cores / jobs` threads.
    scheduler : str, optional
        Address of a scheduler, such as `tcp://10.0.0.1:8786`, or the file that `dask scheduler --scheduler-file` wrote.

    Raises
    ------
    HistoCLIPError
        If both are given or `jobs` is below 1; if `distributed` is not installed, the scheduler does not answer, or a
        worker has other versions than this process, each of them named.
    """
    if jobs is not None and scheduler is not None:
        raise HistoCLIPError("--jobs and --scheduler: give one of them. The scheduler's workers are the jobs.")
    if scheduler is not None:
        with _client(scheduler) as client:
            yield client.get_executor(pure=True, retries=RETRIES)
        return
    if jobs is not None and jobs < 1:
        raise HistoCLIPError(f"--jobs {jobs}: use 1 or more.")
    jobs = n_cores() if jobs is None else jobs
    threads = max(1, n_cores() // jobs)
    # spawn: a fork of a process that has used CUDA or threads may hang.
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin_worker, initargs=(threads,)) as pool:
        yield pool


def run_tasks(
    executor: Executor,
    task: Callable,
    arguments: Iterable[tuple],
    report: Callable[[int, object], None] = lambda number, result: None,
) -> list:
    """Run a task once for each tuple of arguments.

    Parameters
    ----------
    executor : Executor
        As `open_executor` returns it.
    task : callable
        A function of a module; it and its arguments are pickled.
    arguments : iterable of tuple
        Arguments of each call, read lazily: never more than AT_ONCE ahead of the results.
    report : callable
        Called in this process with the number of a call and its result, as soon as there is one.

    Returns
    -------
    list
        The results, in the order of `arguments`.

    Raises
    ------
    HistoCLIPError
        If a task fails, its worker dies, or the scheduler is lost; calls that have not begun are cancelled.
    """
    calls, running, results = enumerate(arguments), {}, {}
    try:
        while True:
            for number, values in islice(calls, AT_ONCE - len(running)):
                with named_errors(executor):
                    running[executor.submit(run_task, task, *values)] = number
            if not running:
                return [results[number] for number in sorted(results)]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                with named_errors(executor):
                    results[number] = future.result()
                report(number, results[number])
    finally:
        for future in running:
            future.cancel()


def run_task(task: Callable, *values: object) -> object:
    """Run a task in a worker; what it raises becomes a plain HistoCLIPError.

    Other exceptions may not reach the client: one that cannot be pickled leaves it waiting for ever.

    Raises
    ------
    HistoCLIPError
        With the message alone; the traceback is in the worker's log.
    """
    try:
        return task(*values)
    except HistoCLIPError as error:
        message = str(error)
    except Exception as error:
        message = f"{socket.gethostname()}: {type(error).__name__}: {shown(str(error), 1000)}"
        logging.getLogger(__name__).exception("a task failed")
    raise HistoCLIPError(message)  # out here it carries no other exception along


@cache
def software() -> dict[str, str]:
    """Return the versions that must be the same in all processes, the library by a digest of its source."""
    digest, library = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(library.rglob("*.py")):
        digest.update(f"{path.relative_to(library)}\0".encode() + path.read_bytes())
    versions = {package: version(package) for package in PACKAGES}
    return {"Python": platform.python_version(), "histoclip_lib": digest.hexdigest()[:12], **versions}


def require_software(expected: dict[str, str]) -> None:
    """Check that this process has the versions that another one expects.

    Raises
    ------
    HistoCLIPError
        If any differs; the message names each, and this machine.
    """
    if found := _differences(software(), expected):
        raise HistoCLIPError(f"{socket.gethostname()}: the software differs:\n{bullet_list(found)}\n{INSTALL}")


def n_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _client(scheduler: str) -> Iterator:
    try:
        import distributed
    except ImportError as error:
        raise HistoCLIPError(
            f"--scheduler {scheduler}: Dask is not installed ({error}). Run: pip install 'histoclip[cluster]'"
        ) from error
    file = Path(scheduler) if scheduler.endswith(".json") else None
    if file is not None and not file.is_file():
        raise HistoCLIPError(f"--scheduler {scheduler}: there is no such file. Start: dask scheduler --scheduler-file")
    where = {"scheduler_file": str(file)} if file else {"address": scheduler}
    try:
        client = distributed.Client(**where, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        reason = "Dask's event loop did not start" if isinstance(error, AssertionError) else error
        raise HistoCLIPError(
            f"--scheduler {scheduler}: no scheduler answers there within {PATIENCE:.0f} s ({reason}). Start one with "
            "`dask scheduler`, give the address that it prints, and check that no firewall is in between."
        ) from error
    try:
        _check_workers(client, scheduler)
        yield client
    finally:
        with silenced("distributed.client"):  # that a scheduler is gone has been said
            client.close()


def _check_workers(client: object, scheduler: str) -> None:
    """Compare the versions of the connected workers; one that joins later is checked by its first task."""
    answers, found = client.run(software, on_error="return"), []
    if not answers:
        warnings.warn(f"{scheduler} has no workers yet; the tasks wait for the first one.", stacklevel=2)
    for address, answer in answers.items():
        if isinstance(answer, dict):
            found += [f"{address}: {difference}" for difference in _differences(answer, software())]
        else:
            found.append(f"{address}: {type(answer).__name__}: {answer}")
    if found:
        raise HistoCLIPError(
            f"--scheduler {scheduler}: workers differ from this process:\n{bullet_list(found)}\n{INSTALL}"
        )


def _differences(answer: dict[str, str], expected: dict[str, str]) -> list[str]:
    return [
        f"{name} {answer.get(name, 'is missing')}, {expected[name]} is expected"
        for name in expected
        if answer.get(name) != expected[name]
    ]


@contextmanager
def named_errors(executor: Executor) -> Iterator[None]:
    """Turn the many kinds of errors that executors and tasks raise into one clear HistoCLIPError."""
    try:
        yield
    except HistoCLIPError:
        raise
    except (BrokenExecutor, CancelledError) as error:
        lost = f"({error or type(error).__name__})"
        raise HistoCLIPError(
            f"a worker process ended before its task did {lost}. If it ran out of memory, use fewer "
            "jobs or a smaller encode_batch_size."
            if isinstance(executor, ProcessPoolExecutor)
            else f"the scheduler is gone {lost}. Start it and its workers again."
        ) from error
    except Exception as error:
        raise HistoCLIPError(f"a task failed with {type(error).__name__}: {error}") from error


def _begin_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has died: a pool's workers would wait for tasks for ever."""
    connection.wait([parent_process().sentinel])
    os._exit(1)
