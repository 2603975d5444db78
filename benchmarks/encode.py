"""Encoding patches once: ours against the plain open_clip loop, and against the bare forward pass.

    python benchmarks/encode.py                      # all three backbones; ten minutes on two cores
    python benchmarks/encode.py --backbones default  # the offline default alone
    python benchmarks/encode.py --json encode.json

The plain loop is what zero-shot scripts do: open_clip's transform in a DataLoader, `encode_image` on each batch. The
bare forward has its images ready as tensors and makes pooled features and tokens as ours does: the limit. "limit with
decoding" is the bare forward and the decoding of the images divided without loss among the cores. ViTs have random
weights, which cost what trained ones do. The contenders take turns; medians of several rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from common import many_patches, print_table, seconds, write_json
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from histoclip_lib.clip.encoder import CLIP, load_clip
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.features.reader import view_of

# Name for open_clip, patches, views.
BACKBONES = {
    "default": ("lite0-minilm", 1024, 1),
    "default, 8 views": ("lite0-minilm", 256, 8),
    "ViT-B/16": ("ViT-B-16", 128, 1),
    "ViT-L/14": ("ViT-L-14", 32, 1),
}
BATCH = 32
WORKERS = 2


class Transformed(Dataset):
    """Patches through open_clip's transform, as CLIP_benchmark and others load them."""

    def __init__(self, patches: PatchDataset, transform: Callable) -> None:
        self.patches, self.transform = patches, transform

    def __len__(self) -> int:  # noqa: D105
        return len(self.patches)

    def __getitem__(self, index: int) -> torch.Tensor:  # noqa: D105
        return self.transform(Image.fromarray(self.patches.image(index)))


def build(name: str, device: str) -> CLIP:
    """Return the offline default, or a ViT with random weights."""
    if name == "lite0-minilm":
        return load_clip(name, device=device)
    model = open_clip.create_model(name)
    config = open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    clip = replace(load_clip(device=device), preprocess_cfg=config, backbone=f"{name}, random weights")
    model.to(clip.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return replace(clip, model=model, tokenizer=open_clip.get_tokenizer(name))


@torch.inference_mode()
def plain_loop(clip: CLIP, model: torch.nn.Module, patches: PatchDataset) -> None:
    """Encode as a zero-shot script does."""
    loader = DataLoader(
        Transformed(patches, clip.preprocess), BATCH, num_workers=WORKERS, pin_memory=clip.device.type == "cuda"
    )
    for images in loader:
        with clip.autocast():
            model.encode_image(images.to(clip.device)).float().cpu()


def compare(name: str, count: int, views: int, rounds: int, device: str) -> dict[str, float]:
    """Time the contenders in turn; speeds are in views per second."""
    clip = build(name, device)
    plain_model = build(name, device).model.to(memory_format=torch.contiguous_format)
    patches = many_patches(count)
    images = torch.stack([clip.resize(Image.fromarray(patches.image(row))) for row in range(count)])

    def ours() -> None:
        with tempfile.TemporaryDirectory() as cache:
            encode_dataset(clip, patches, views, BATCH, WORKERS, Path(cache), progress=False)

    def plain() -> None:
        for _ in range(views):
            plain_loop(clip, plain_model, patches)

    def bare() -> None:
        for batch in images.split(BATCH):
            for view in range(views):
                clip.encode_images(view_of(batch, view))

    def decode() -> None:
        for row in range(count):
            clip.resize(Image.fromarray(patches.image(row)))

    contenders = {"ours": ours, "plain loop": plain, "bare forward": bare, "decoding": decode}
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    clip.encode_images(images[:BATCH])  # exports the tower, warms up
    for _ in range(rounds):
        for contender, work in contenders.items():
            times[contender].append(seconds(work, clip.device))
    median = {contender: statistics.median(values) for contender, values in times.items()}
    limit = median["bare forward"] + (median["decoding"] / os.cpu_count() if clip.device.type == "cpu" else 0)
    passes = count * views
    return {
        "ours / plain loop": median["plain loop"] / median["ours"],
        "ours / bare forward": median["bare forward"] / median["ours"],
        "ours / limit with decoding": limit / median["ours"],
        **{f"{name}, /s": passes / median[name] for name in ("ours", "plain loop", "bare forward")},
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = {name: compare(*BACKBONES[name], arguments.rounds, arguments.device) for name in arguments.backbones}
    print_table("backbone", rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
