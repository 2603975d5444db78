"""An epoch of our head against torch.nn.TransformerDecoder with a DataLoader, and against the matrix-product limit.

    python benchmarks/head.py                  # demo and BCSS-WSSS size; some minutes on two cores
    python benchmarks/head.py --sizes demo --json head.json

Both train the same head from the same weights on the same float16 tokens in one file, with all tokens of every patch
and without mixing; "as in a run" is ours with its defaults. The limit is what the matrix products of the folded step
would take at the rate of a large one (2048 x 2048) on the same machine; "own products" is what they take alone, at
their own sizes. The contenders take turns; medians of several rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from common import print_table, seconds, write_json
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.features.store import SHARD_SIZE, Shards
from histoclip_lib.models.cmm import CMM
from histoclip_lib.models.training import TrainingOptions, new_head, train_head

# Patches, tokens, width, classes, batch; epochs in a row.
SIZES = {"demo": (480, 49, 384, 4, 64, 10), "BCSS-WSSS": (18_738, 49, 384, 4, 256, 1)}
HEADS, HIDDEN, DROPOUT = 8, 256, 0.3


class TorchHead(nn.Module):
    """The head as PyTorch's own modules make it."""

    def __init__(self, head: CMM) -> None:
        super().__init__()
        width = head.class_embeddings.shape[1]
        layer = nn.TransformerDecoderLayer(width, HEADS, HIDDEN, DROPOUT, "gelu", batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.decoder.layers[0].load_state_dict(head.layers[0].state_dict())
        self.register_buffer("queries", head.queries())
        self.register_buffer("mean", head.token_mean)
        self.register_buffer("scale", head.token_scale)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """From tokens (B, L, d) to logits (B, N)."""
        return self.decoder(self.queries.expand(len(tokens), -1, -1), (tokens - self.mean) / self.scale).mean(dim=-1)


def torch_epochs(
    head: TorchHead, tokens: np.ndarray, labels: np.ndarray, batch: int, epochs: int, device: torch.device
) -> None:
    """Train as a tutorial does."""
    data = TensorDataset(torch.from_numpy(tokens), torch.from_numpy(labels.astype(np.float32)))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
    head.train()
    loader = DataLoader(data, batch, shuffle=True, pin_memory=device.type == "cuda")
    for features, truth in chain.from_iterable(repeat(loader, epochs)):
        logits = head(features.to(device, non_blocking=True).float())
        loss = functional.binary_cross_entropy_with_logits(logits, truth.to(device, non_blocking=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def products(batch: int, length: int, width: int, n_classes: int) -> list[tuple[int, int, int, int]]:
    """Return the matrix products of a step in the folded form: how many at once, and their three sizes."""
    queries, pairs, per_head = HEADS * n_classes, batch * n_classes, width // HEADS
    scores = [(1, batch * length, width, queries), (1, queries, batch * length, width)]  # tokens need no gradient
    averages = [(batch, queries, length, width), (batch, queries, width, length)]
    values = [(HEADS, pairs, width, per_head), (HEADS, pairs, per_head, width), (HEADS, per_head, pairs, width)]
    output = [(1, pairs, width, width)] * 2 + [(1, width, pairs, width)]
    feed_forward = [(1, pairs, width, HIDDEN), (1, pairs, HIDDEN, width), (1, width, pairs, HIDDEN)] * 2
    return scores + averages + values + output + feed_forward


def flops(sizes: list[tuple[int, int, int, int]]) -> int:
    """Return the multiplications and additions of matrix products."""
    return sum(2 * count * m * k * n for count, m, k, n in sizes)


def product_seconds(sizes: list[tuple[int, int, int, int]], device: torch.device) -> float:
    """Return the time of matrix products one by one, each the best of several, in float32."""
    total = 0.0
    for count, m, k, n in sizes:
        one, other = torch.randn(count, m, k, device=device), torch.randn(count, k, n, device=device)
        total += min(seconds(lambda a=one, b=other: a @ b, device) for _ in range(7))
    return total


def compare(size: tuple[int, ...], rounds: int, device: torch.device, folder: Path) -> dict[str, float]:
    """Time an epoch of each contender in turn."""
    patches, length, width, n_classes, batch, epochs = size
    draw = np.random.default_rng(0)
    path = folder / "tokens.npy"
    stored = np.lib.format.open_memmap(path, "w+", np.float16, (patches, 1, length, width))
    for start in range(0, patches, SHARD_SIZE):
        stored[start : start + SHARD_SIZE] = draw.standard_normal(
            (min(SHARD_SIZE, patches - start), 1, length, width), dtype=np.float32
        )
    stored.flush()
    tokens = np.load(path, mmap_mode="r+")
    labels = draw.integers(0, 2, (patches, n_classes)).astype(np.uint8)
    reader = FeatureReader(Shards([tokens[i : i + SHARD_SIZE] for i in range(0, patches, SHARD_SIZE)]), device)
    index, none = np.arange(patches), np.arange(0)
    embeddings = functional.normalize(torch.randn(n_classes, width), dim=-1)
    head = new_head(embeddings, {"heads": HEADS, "hidden": HIDDEN, "dropout": DROPOUT}, reader.features, index, seed=0)
    other = TorchHead(head).to(device)

    def ours(**changes: float) -> None:
        options = TrainingOptions(epochs=epochs, warmup_epochs=0, batch_size=batch, **changes)
        train_head(head, reader, labels, index, none, options, progress=False)

    contenders = {
        "torch": lambda: torch_epochs(other, tokens[:, 0], labels, batch, epochs, device),
        "ours": lambda: ours(token_dropout=0.0, mixup=0.0),
        "as in a run": ours,
    }
    times: dict[str, list[float]] = {name: [] for name in (*contenders, "limit", "own products")}
    for round_number in range(rounds + 1):
        for name, work in contenders.items():
            taken = seconds(work, device) / epochs
            if round_number:  # the first round warms up
                times[name].append(taken)
        steps = patches / batch
        needed, large = products(batch, length, width, n_classes), [(1, 2048, 2048, 2048)]
        times["limit"].append(steps * flops(needed) / flops(large) * product_seconds(large, device))
        times["own products"].append(steps * product_seconds(needed, device))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "torch / ours": median["torch"] / median["ours"],
        "limit / ours": median["limit"] / median["ours"],
        "own products / ours": median["own products"] / median["ours"],
        **{f"{name}, s": value for name, value in median.items()},
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = compare(SIZES[name], arguments.rounds, torch.device(arguments.device), Path(folder))
    print_table("epoch", rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
