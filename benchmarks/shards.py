"""What a shard costs beside its encoding: naming, locking, writing with checksums, checking, and a task's round trip.

    python benchmarks/shards.py               # a minute on two cores
    python benchmarks/shards.py --json shards.json

Nothing is encoded: the arrays are random. The files lie in the system's temporary folder, and what is read has just
been written, so that it comes from memory: the numbers are those of the processor, and a disk or a network comes on
top. Medians of several rounds. The scheduler and its one worker are processes of this machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import print_table, write_json

from histoclip_lib.common.executors import open_executor, run_tasks
from histoclip_lib.data.registry import load_dataset
from histoclip_lib.features.encode import shard_key
from histoclip_lib.features.store import SHARD_SIZE, locked, open_shard, write_shard

SIZES = {"lite0-minilm": (49, 384), "ViT-L/14": (256, 768)}  # tokens and width
ROUNDS, TASKS, THREADS = 7, 500, 2


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: shard_costs(Path(folder), *size) for name, size in SIZES.items()}
    print_table("a shard of 256 patches, one view", rows)
    trips = {"processes": {"ms a task": 1000 * round_trip(jobs=1)}, "Dask": {"ms a task": 1000 * dask_round_trip()}}
    print_table(f"{TASKS} tasks that do nothing", trips)
    write_json(arguments.json, rows | trips)


def shard_costs(folder: Path, length: int, width: int) -> dict[str, float]:
    """Return the milliseconds of each part for a shard with so many tokens of such a width, and rates in MB/s."""
    draw = np.random.default_rng(0)
    pooled = draw.normal(size=(SHARD_SIZE, 1, width)).astype(np.float32)
    tokens = draw.normal(size=(SHARD_SIZE, 1, length, width)).astype(np.float16)
    patches, path = load_dataset("synthetic", n_patches=600), folder / "shard"
    size = (pooled.nbytes + tokens.nbytes) / 1e6
    about = {"backbone": "random", "pretrained": "", "dataset": "none"}

    def lock() -> None:
        with locked(path):
            pass

    def check() -> None:
        open_shard(path, SHARD_SIZE, 1)

    def check_in_threads() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda _: check(), range(2 * THREADS)))

    write = median(lambda: write_shard(path, pooled, tokens, about))
    alone = median(check)
    return {
        "MB": size,
        "name, ms": 1000 * median(lambda: shard_key(patches, 0)),
        "lock, ms": 1000 * median(lock),
        "write, ms": 1000 * write,
        "check, ms": 1000 * alone,
        "write, MB/s": size / write,
        "check, MB/s": size / alone,
        f"check, {THREADS} threads, MB/s": 2 * THREADS * size / median(check_in_threads),
    }


def median(work: Callable[[], object]) -> float:
    """Return the median of some rounds, in seconds."""
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def round_trip(**where: object) -> float:
    """Return the seconds that a task takes which does nothing, its argument as large as that of an encoding task."""
    with open_executor(**where) as executor:
        run_tasks(executor, nothing, [("x" * 1000, number) for number in range(20)])  # until all has been imported
        start = time.perf_counter()
        run_tasks(executor, nothing, [("x" * 1000, number) for number in range(20, 20 + TASKS)])
        return (time.perf_counter() - start) / TASKS


def dask_round_trip() -> float:
    """Return `round_trip` through a scheduler."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        return round_trip(scheduler=cluster.scheduler_address)


def nothing(text: str, number: int) -> int:
    """Do nothing; return the number."""
    return number


if __name__ == "__main__":
    main()
