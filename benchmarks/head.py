"""A training step of our decoder layer against torch.nn.TransformerDecoderLayer, same weights, same tokens.

Run `python benchmarks/head.py`; `--json FILE` writes the table. The two take turns; medians of several rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from histoclip_lib.cmm import CMMLayer

SIZES = {"demo": (256, 49, 384, 4), "ViT-B/16": (256, 196, 512, 5), "global key": (256, 1, 384, 4)}
HEADS, HIDDEN, DROPOUT = 8, 256, 0.1


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Return how long one call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(batch: int, length: int, width: int, n_classes: int, rounds: int, device: torch.device) -> dict:
    """Time forward and backward of both layers in turn."""
    torch.manual_seed(0)
    ours = CMMLayer(width, HEADS, HIDDEN, DROPOUT).to(device)
    reference = nn.TransformerDecoderLayer(width, HEADS, HIDDEN, DROPOUT, "gelu", batch_first=True, norm_first=True)
    reference.load_state_dict(ours.state_dict())
    reference.to(device)
    queries, tokens = torch.randn(1, n_classes, width, device=device), torch.randn(batch, length, width, device=device)
    steps = {
        "ours": lambda: ours(queries, tokens)[0].mean().backward(),
        "torch": lambda: reference(queries.expand(batch, -1, -1), tokens).mean().backward(),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            taken = seconds(step, device)
            if round_number:  # the first round warms up
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"ratio": medians["torch"] / medians["ours"], **{f"{name}_ms": 1e3 * t for name, t in medians.items()}}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = {name: compare(*size, arguments.rounds, torch.device(arguments.device)) for name, size in SIZES.items()}
    print(f"{'size (B, L, d, N)':<32}{'torch / ours':>14}{'ours, ms':>12}{'torch, ms':>12}")
    for name, row in rows.items():
        label = f"{name} {SIZES[name]}"
        print(f"{label:<32}{row['ratio']:>14.1f}{row['ours_ms']:>12.1f}{row['torch_ms']:>12.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
