"""Time and peak memory of every part that sees all patches, from a thousand patches to a hundred thousand.

    python benchmarks/scaling.py                          # a quarter of an hour and 4 GiB of disk
    python benchmarks/scaling.py --sizes 1000 10000 --json scaling.json

Tokens of the offline default, one view; the training epoch streams them from the memory map, as it does where they do
not fit the device. Peak memory is that of the process and its workers without pages of mapped files. "slope" is the
exponent of time against patches between the two largest sizes: 1 is a straight line.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import PeakMemory, many_patches, print_table, seconds, write_json
from torch.nn import functional

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.evaluation.uncertainty import evaluate
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models.training import TrainingOptions, new_head, train_head
from histoclip_lib.prompting.strategies import StrategyContext, score_zero_shot
from histoclip_lib.prompting.vocabulary import TextEncoder, load_vocabulary

BATCH, RESAMPLES, PER_GROUP = 256, 1000, 25


def measure(count: int, device: str, cache: Path) -> dict[str, tuple[float, float]]:
    """Return seconds and MiB of each part for `count` patches."""
    clip, patches = load_clip(device=device), many_patches(count)
    clip.encode_images(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))  # exports the tower
    found: dict[str, tuple[float, float]] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        result = []
        with PeakMemory() as memory:
            taken = seconds(lambda: result.append(work()), clip.device)
        found[name] = (taken, memory.peak)
        return result[0]

    features = timed("encode", lambda: encode_dataset(clip, patches, 1, 32, cache=cache, progress=False))
    everything, none = np.arange(count), np.arange(0)
    shuffled = np.random.default_rng(0).permutation(count)

    def read_all() -> None:
        for start in range(0, count, BATCH):
            features.tokens.take(shuffled[start : start + BATCH])

    timed("cache read, random order", read_all)
    vocabulary = load_vocabulary("synthetic", patches.classes)
    zero_shot = timed(
        "zero-shot methods",
        lambda: score_zero_shot(
            features.pooled.take(everything), TextEncoder(clip), vocabulary, StrategyContext(patches.prevalence)
        ),
    )
    reader = FeatureReader(features.tokens, clip.device, resident_limit=0)
    classes = functional.normalize(torch.randn(len(patches.classes), features.tokens.shape[-1]), dim=-1)
    head = new_head(classes, {}, features.tokens, everything, seed=0)
    options = TrainingOptions(epochs=1, warmup_epochs=0, batch_size=BATCH)
    timed(
        "training epoch, patch tokens",
        lambda: train_head(head, reader, patches.labels, everything, none, options, progress=False),
    )
    groups = everything // PER_GROUP
    predictions = from_probabilities(zero_shot["baseline"].scores)
    timed(
        f"bootstrap, {RESAMPLES} samples of groups",
        lambda: evaluate(patches.labels, predictions, patches.classes, groups, RESAMPLES, seed=0),
    )
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.only:
        with tempfile.TemporaryDirectory() as cache:
            print(json.dumps(measure(arguments.only, arguments.device, Path(cache))))
        return
    measured = {}
    for size in arguments.sizes:
        # In a process of its own: what other sizes left in memory must not count.
        command = [sys.executable, __file__, "--only", str(size), "--device", arguments.device]
        measured[size] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        print(size, {name: [round(value, 2) for value in values] for name, values in measured[size].items()})
    *_, smaller, largest = arguments.sizes
    rows = {
        part: {
            **{f"s, {size}": measured[size][part][0] for size in arguments.sizes},
            "slope": math.log(measured[largest][part][0] / measured[smaller][part][0]) / math.log(largest / smaller),
            **{f"MiB, {size}": measured[size][part][1] for size in arguments.sizes},
            "memory ratio": measured[largest][part][1] / measured[smaller][part][1],
        }
        for part in measured[largest]
    }
    print_table("part", rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
