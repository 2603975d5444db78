"""The paper's protocol, 800 epochs: encoding in every epoch, as written, against encoding once.

    python benchmarks/pipeline.py                 # BCSS-WSSS size on the offline default; four minutes on two cores
    python benchmarks/pipeline.py --patches 480 --json pipeline.json

As written: every epoch sends every training patch through open_clip's transform and the frozen encoder, and its tokens
through torch.nn.TransformerDecoder. Part of one epoch is timed. Ours: all patches are encoded once, and some epochs are
timed on the cached tokens. Both are then extrapolated to 800 epochs of all patches; nothing else is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import PeakMemory, many_patches, print_table, seconds, write_json
from encode import Transformed, build
from head import DROPOUT, HEADS, HIDDEN, TorchHead
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader

from histoclip_lib.clip.encoder import CLIP
from histoclip_lib.clip.towers import image_features
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models.training import TrainingOptions, new_head, train_head

EPOCHS, BATCH, WORKERS = 800, 256, 2
PASS = 32  # images in one pass of the encoder, for both


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="lite0-minilm", help="or an open_clip name, with random weights")
    parser.add_argument("--patches", type=int, default=18_738)
    parser.add_argument("--as-written", type=int, default=2048, help="patches of the epoch with encoding to time")
    parser.add_argument("--epochs", type=int, default=10, help="epochs on cached tokens to time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    clip, plain = build(arguments.backbone, arguments.device), build(arguments.backbone, arguments.device)
    plain.model.to(memory_format=torch.contiguous_format)
    patches = many_patches(arguments.patches)
    index, none = np.arange(len(patches)), np.arange(0)
    clip.encode_images(clip.resize(Image.fromarray(patches.image(0)))[None])  # exports the tower
    with tempfile.TemporaryDirectory() as cache, PeakMemory() as ours:
        encode = seconds(
            lambda: encode_dataset(clip, patches, 1, PASS, WORKERS, Path(cache), progress=False), clip.device
        )
        features = encode_dataset(clip, patches, 1, PASS, WORKERS, Path(cache), progress=False)
        reader = FeatureReader(features.tokens, clip.device)
        width = features.tokens.shape[-1]
        classes = functional.normalize(torch.randn(len(patches.classes), width), dim=-1)
        head = new_head(classes, {"heads": HEADS, "hidden": HIDDEN, "dropout": DROPOUT}, features.tokens, index, seed=0)
        options = TrainingOptions(epochs=arguments.epochs, warmup_epochs=0, batch_size=BATCH)
        train = seconds(
            lambda: train_head(head, reader, patches.labels, index, none, options, amp_dtype=clip.amp_dtype),
            clip.device,
        )
    few = many_patches(min(arguments.as_written, len(patches)))
    with PeakMemory() as theirs:
        written = seconds(lambda: epoch_as_written(plain, TorchHead(head).to(clip.device), few), clip.device)
    whole = {
        "as written": EPOCHS * written * len(patches) / len(few),
        "ours": encode + EPOCHS * train / arguments.epochs,
    }
    print_table(
        f"{len(patches)} patches, {EPOCHS} epochs, extrapolated",
        lines := {
            name: {
                "hours": taken / 3600,
                "as written / this": whole["as written"] / taken,
                "peak MiB": memory.peak,
                "encoding, s": encode if name == "ours" else float("nan"),
                "epoch, s": (train / arguments.epochs if name == "ours" else written * len(patches) / len(few)),
            }
            for (name, taken), memory in zip(whole.items(), (theirs, ours), strict=True)
        },
    )
    write_json(arguments.json, lines)


def epoch_as_written(clip: CLIP, head: TorchHead, patches: PatchDataset) -> None:
    """Encode and train on every patch once."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
    labels = torch.from_numpy(patches.labels.astype(np.float32)).to(clip.device)
    pinned = clip.device.type == "cuda"
    loader = DataLoader(Transformed(patches, clip.preprocess), BATCH, num_workers=WORKERS, pin_memory=pinned)
    for number, images in enumerate(loader):
        with torch.no_grad(), clip.autocast():
            parts = images.to(clip.device, non_blocking=True).split(PASS)
            tokens = torch.cat([image_features(clip.model.visual, part)[1].float() for part in parts])
        with clip.autocast():
            logits = head(tokens)
        truth = labels[number * BATCH : number * BATCH + len(images)]
        loss = functional.binary_cross_entropy_with_logits(logits.float(), truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
