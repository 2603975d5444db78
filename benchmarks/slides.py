"""A slide of 20,000 x 20,000 pixels: tiles per second against the bare encoder, and memory against the number of tiles.

    python benchmarks/slides.py                          # ten minutes on two cores, 200 MB of disk
    python benchmarks/slides.py --side 8000 --rounds 1 --sizes 400 4000 --json slides.json

The slide is synthetic H&E in JPEG tiles with two smaller levels, at the micrometres per pixel of the training patches.
"bare encoder" is the same encoder in the same batches on tensors that are ready. The contenders take turns; medians.
Peak memory is that of the process above what it was with the model loaded. The growth is measured with a model that
costs nothing, each number of tiles in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
import torch
from common import PeakMemory, many_patches, print_table, seconds, write_json
from PIL import Image

from histoclip_lib.clip.encoder import CLIP, load_clip
from histoclip_lib.slides.prediction import predict_slide
from histoclip_lib.slides.reading import open_slide
from histoclip_lib.slides.tiling import tiles

TILE, BATCH, MPP, PATCH, FEW = 256, 32, 0.5, 224, 100
REDUCTIONS = (4, 16)
ROUND_TILES = 2048  # that the contenders of a round encode


@dataclass(frozen=True)
class Said:
    """What a model says of a batch."""

    probabilities: np.ndarray
    ood: np.ndarray
    attention: np.ndarray


@dataclass
class Encoder:
    """The encoder without a head: the rest of a model costs little beside it. Without an encoder, nothing."""

    clip: CLIP | None
    patch_px: int
    classes: list[str] = field(default_factory=lambda: ["a", "b", "c", "d"])
    thresholds: np.ndarray = field(default_factory=lambda: np.full(4, 0.5))
    mpp: float = MPP
    pixels: int = PATCH
    ood_threshold: float = 1e9
    identity: str = "benchmark"

    def predict_tensor(self, images: torch.Tensor, views: int = 1) -> Said:
        """Return four features as probabilities, and an attention of zeros."""
        features = self.clip.encode_images(images)[0][:, :4] if self.clip else torch.zeros(len(images), 4)
        probabilities = torch.sigmoid(features).cpu().numpy()
        return Said(probabilities, probabilities[:, 0], np.zeros((len(images), 4, 7, 7), np.float16))


def write_slide(path: Path, side: int) -> Path:
    """Write a pyramidal TIFF; each of its tiles is a painted patch."""
    source = many_patches(200)
    painted = [Image.fromarray(source.image(index)).resize((TILE, TILE)) for index in range(200)]
    scale = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    options = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 80}}
    count = -(-side // TILE)

    def patch(row: int, column: int) -> Image.Image:
        return painted[(row * 37 + column * 11) % len(painted)]

    def full() -> Iterator[np.ndarray]:
        for row in range(count):
            for column in range(count):
                yield np.asarray(patch(row, column))

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            full(), shape=(side, side, 3), dtype=np.uint8, subifds=len(REDUCTIONS), subfiletype=0, **scale, **options
        )
        for reduction in REDUCTIONS:
            small = [np.asarray(each.reduce(reduction)) for each in painted]
            rows = [
                np.concatenate([small[(row * 37 + column * 11) % len(small)] for column in range(count)], axis=1)
                for row in range(count)
            ]
            level = np.concatenate(rows)[: side // reduction, : side // reduction]
            writer.write(level, subfiletype=1, **options)
    return path


def throughput(path: Path, rounds: int, device: str) -> dict[str, float]:
    """Return tiles per second of both contenders, and the memory and time of the whole slide."""
    clip = load_clip(device=device)
    model = Encoder(clip, PATCH)
    with open_slide(path) as slide:
        chosen = tiles(slide, PATCH * MPP).head(ROUND_TILES)
        ready = torch.from_numpy(
            np.stack([slide.read_field(x, y, PATCH, PATCH) for x, y in chosen[["x", "y"]].to_numpy().tolist()])
        )
    ready = ready.permute(0, 3, 1, 2).contiguous()
    clip.encode_images(ready[:BATCH])  # exports the tower, warms up

    def bare() -> None:
        for batch in ready.split(BATCH):
            clip.encode_images(batch)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as out:
            predict_slide(model, path, out, coordinates=chosen, batch_size=BATCH)

    times: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        times["bare"].append(seconds(bare, clip.device))
        times["ours"].append(seconds(ours, clip.device))
    median = {name: statistics.median(values) for name, values in times.items()}
    with PeakMemory() as before:
        pass
    with tempfile.TemporaryDirectory() as out, PeakMemory() as memory:
        result = predict_slide(model, path, out, batch_size=BATCH)
    return {
        "ours / bare": median["bare"] / median["ours"],
        "ours, tiles/s": len(chosen) / median["ours"],
        "bare, tiles/s": len(chosen) / median["bare"],
        "tiles": result.n_tiles,
        "whole slide, s": result.seconds,
        "MiB above the model": memory.peak - before.peak,
    }


def growth(path: Path, count: int) -> dict[str, float]:
    """Return time and memory of a number of tiles with a model that costs nothing."""
    model = Encoder(None, FEW)
    with open_slide(path) as slide:
        everything = tiles(slide, FEW * MPP)
    with tempfile.TemporaryDirectory() as out:  # what is imported on first use must not count
        predict_slide(model, path, out, coordinates=everything.head(BATCH), batch_size=BATCH)
    with PeakMemory() as before:
        pass
    with tempfile.TemporaryDirectory() as out, PeakMemory() as memory:
        result = predict_slide(model, path, out, coordinates=everything.head(count), batch_size=BATCH)
    return {
        "tiles": result.n_tiles,
        "s": result.seconds,
        "tiles/s": result.n_tiles / result.seconds,
        "MiB above the start": memory.peak - before.peak,
        "MiB": memory.peak,
    }


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000, help="pixels")
    parser.add_argument("--sizes", type=int, nargs="+", default=[400, 4_000, 40_000], help="tiles of the growth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--lazyslide", metavar="PYTHON", help="of an environment with LazySlide")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.only:
        path, count = arguments.only
        what = throughput(Path(path), arguments.rounds, arguments.device) if count == "0" else growth(path, int(count))
        print(json.dumps(what))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = write_slide(Path(folder) / "slide.tif", arguments.side)
        for count in (0, *arguments.sizes):
            # In a process of its own: what others left in memory must not count.
            command = [sys.executable, __file__, "--only", str(path), str(count), "--rounds", str(arguments.rounds)]
            command += ["--device", arguments.device]
            rows[str(count)] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        if arguments.lazyslide:
            command = [arguments.lazyslide, str(Path(__file__).with_name("lazyslide_tiles.py")), str(path)]
            printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
            rates = json.loads(printed.splitlines()[-1])
            rows["0"]["LazySlide, tiles/s"] = max(rates.values())
            rows["0"]["ours / LazySlide"] = rows["0"]["ours, tiles/s"] / max(rates.values())
    encoder = {f"{arguments.side} x {arguments.side}": rows.pop("0")}
    print_table("slide", encoder)
    print_table("growth", rows)
    write_json(arguments.json, encoder | rows)


if __name__ == "__main__":
    main()
