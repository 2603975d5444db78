"""What the benchmarks share: patches in any number, times, peak memory and tables."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from histoclip_lib.data.base import PatchDataset, PatchSource
from histoclip_lib.data.registry import load_dataset


@dataclass(frozen=True)
class Repeated:
    """A source in which the patches of another come again and again, each time as new ones."""

    source: PatchSource
    period: int

    def image(self, index: int) -> np.ndarray:
        """Return patch `index` modulo the period."""
        return self.source.image(index % self.period)

    def mask(self, index: int) -> None:
        """Return no mask."""

    def digest(self, index: int) -> str:
        """Return a digest that tells one repetition from another."""
        return f"{index // self.period} {self.source.digest(index % self.period)}"


def many_patches(count: int, period: int = 600) -> PatchDataset:
    """Return `count` patches of synthetic H&E, which repeat after `period`."""
    painted = load_dataset("synthetic", n_patches=period)
    labels = np.resize(painted.labels, (count, len(painted.classes)))
    files = [f"{row:07d}.png" for row in range(count)]
    return PatchDataset("benchmark", painted.classes, files, labels, Repeated(painted.source, len(painted)))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class PeakMemory:
    """Peak of the memory of this process and its workers within a `with` block, in MiB, sampled 50 times a second.

    Pages of memory-mapped files do not count: the system takes them back whenever it needs them.
    """

    def __enter__(self) -> PeakMemory:
        """Start to sample."""
        self.peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        this = psutil.Process()
        stopped = False
        while not stopped:
            stopped = self._stop.wait(0.02)
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    memory = process.memory_info()
                    total += memory.rss - memory.shared
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total / 2**20)


def machine() -> str:
    """Return the processor or graphics card, and how many threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = platform.processor() or platform.machine()
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print a line for each row and a column for each of their keys."""
    keys = list(next(iter(rows.values())))
    width = max(len(name) for name in (title, *rows)) + 2
    print(machine())
    print(f"{title:<{width}}" + "".join(f"{key:>{max(10, len(key) + 2)}}" for key in keys))
    for name, row in rows.items():
        print(f"{name:<{width}}" + "".join(f"{row[key]:>{max(10, len(key) + 2)}.4g}" for key in keys))


def write_json(path: Path | None, rows: dict[str, dict[str, float]]) -> None:
    """Write the table to a file, where one was asked for."""
    if path:
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1), encoding="utf-8")
