"""What the benchmarks share: their tables."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch


def machine() -> str:
    """Return the processor or graphics card, and how many threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


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
