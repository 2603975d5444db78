"""Image features, encoded once and kept: content-addressed shards that are read as memory maps.

A shard holds up to 256 patches. Its name is a digest of all that determines it (the patches' bytes, the encoder's
weights and preprocessing, the number of views), so a changed image or option never meets a stale shard, and an
interrupted encode goes on with the shards that are missing. Its `.json` is written last: no `.json`, no shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from histoclip_lib.cache import cache_dir
from histoclip_lib.clip import CLIP
from histoclip_lib.datasets.base import PatchDataset
from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.files import replacing, write_text

SHARD_SIZE = 256
SHARD_FILES = (".pooled.npy", ".tokens.npy", ".json")
FORMAT = 1  # part of every shard's name; raise it when the content of a shard changes its meaning


@dataclass(frozen=True, eq=False)
class Shards:
    """An array (B, V, ...) that lies in memory-mapped pieces of SHARD_SIZE rows."""

    pieces: list[np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return (sum(len(piece) for piece in self.pieces), *self.pieces[0].shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return sum(piece.nbytes for piece in self.pieces)

    def take(self, rows: np.ndarray, views: np.ndarray | int = 0) -> np.ndarray:
        """Read rows in one view each.

        Parameters
        ----------
        rows : ndarray of int, shape (n,)
            Any order, repetitions allowed.
        views : ndarray of int, shape (n,), or int
            Which view of each row.

        Returns
        -------
        ndarray of shape (n, ...)
        """
        rows, views = np.broadcast_arrays(np.asarray(rows), views)
        result = np.empty((len(rows), *self.shape[2:]), dtype=self.pieces[0].dtype)
        piece_of_row = rows // SHARD_SIZE
        for piece in np.unique(piece_of_row):
            here = piece_of_row == piece
            result[here] = self.pieces[piece][rows[here] - piece * SHARD_SIZE, views[here]]
        return result


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Frozen features of B patches in V views.

    Attributes
    ----------
    pooled : Shards of shape (B, V, d), float32
        Global embeddings, not normalised.
    tokens : Shards of shape (B, V, L, d), float16
        Projected patch tokens, row by row from the top left of the view.
    encoded : int
        Number of patches that had to be encoded now; the others were in the cache.
    """

    pooled: Shards
    tokens: Shards
    encoded: int

    def of_kind(self, kind: str) -> Shards:
        """Return what a head attends to: the pooled embedding for `global`, the tokens for `patch`."""
        return {"global": self.pooled, "patch": self.tokens}[kind]

    def about(self) -> str:
        """Return a sentence of Markdown on the size of the features and the cost of their views."""
        patches, views, length, width = self.tokens.shape
        size = (self.pooled.nbytes + self.tokens.nbytes) / 2**20
        return (
            f"Features of {patches} patches in {views} view{'s' if views > 1 else ''}, {length} tokens of width "
            f"{width} each: {size:.0f} MiB in the cache and {patches * views} passes of the encoder, of which "
            f"{self.encoded * views} in this notebook."
        ) + (f" One view would take 1/{views} of both." if views > 1 else "")

    @property
    def n_views(self) -> int:
        """Number of views V."""
        return self.pooled.shape[1]

    @property
    def grid(self) -> int:
        """Side of the square grid that the L tokens form."""
        return round(self.tokens.shape[2] ** 0.5)


def view_of(images: torch.Tensor, view: int) -> torch.Tensor:
    """Return one of the eight flips and rotations of square images (..., S, S); view 0 is the image itself."""
    turned = torch.rot90(images, view % 4, dims=(-2, -1)) if view % 4 else images
    return turned.flip(-1) if view >= 4 else turned


def undo_view(images: torch.Tensor, view: int) -> torch.Tensor:
    """Turn what was computed on a view, (..., S, S), back to where it lies in the image."""
    upright = images.flip(-1) if view >= 4 else images
    return torch.rot90(upright, -(view % 4), dims=(-2, -1))


def encode_dataset(
    clip: CLIP,
    dataset: PatchDataset,
    views: int = 1,
    batch_size: int = 32,
    workers: int | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> ImageFeatures:
    """Return the features of every patch, encoding those that the cache lacks.

    Parameters
    ----------
    clip : CLIP
        The frozen encoder.
    dataset : PatchDataset
        B patches.
    views : int
        1 to 8: how many of the eight flips and rotations to encode of each patch. Time and size grow with it.
    batch_size : int
        Images in one forward pass.
    workers : int, optional
        Processes that decode and resize; by default one for each core, at most 8.
    cache : Path, optional
        Folder of the cache; by default `histoclip_lib.cache.cache_dir()`.
    progress : bool
        Whether to draw a bar.

    Raises
    ------
    HistoCLIPError
        If `views` is out of range.
    """
    if not 1 <= views <= 8:
        raise HistoCLIPError(f"views: {views} is out of range. There are 1 to 8 flips and rotations.")
    folder = (cache or cache_dir()) / "features" / _encoder_key(clip, views)
    shards = [folder / key for key in _shard_keys(dataset)]
    missing = [
        number
        for number, shard in enumerate(shards)
        if not all(shard.with_suffix(suffix).is_file() for suffix in SHARD_FILES)
    ]
    rows = [row for number in missing for row in _rows_of(number, len(dataset))]
    if rows:
        _require_writable(folder)
        workers = min(8, os.cpu_count() or 1) if workers is None else workers
        _encode_missing(clip, dataset, views, batch_size, workers, [(n, shards[n]) for n in missing], rows, progress)
    for shard in shards:
        with contextlib.suppress(OSError):  # a cache that others own can still be read
            shard.with_suffix(".json").touch()  # when it was last used
    return ImageFeatures(
        pooled=Shards([np.load(shard.with_suffix(".pooled.npy"), mmap_mode="r") for shard in shards]),
        tokens=Shards([np.load(shard.with_suffix(".tokens.npy"), mmap_mode="r") for shard in shards]),
        encoded=len(rows),
    )


def _require_writable(folder: Path) -> None:
    """Find out before the first patch is encoded, and not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HistoCLIPError(
            f"{folder}: the feature cache cannot be written ({error.strerror}). Set the environment variable "
            "HISTOCLIP_CACHE to a folder that can."
        ) from error


def _encoder_key(clip: CLIP, views: int) -> str:
    return hashlib.sha256(repr((FORMAT, clip.fingerprint(), views)).encode()).hexdigest()[:32]


def _shard_keys(dataset: PatchDataset) -> list[str]:
    keys = []
    for start in range(0, len(dataset), SHARD_SIZE):
        digest = hashlib.sha256()
        for row in range(start, min(start + SHARD_SIZE, len(dataset))):
            digest.update(dataset.source.digest(row).encode())
        keys.append(digest.hexdigest()[:32])
    return keys


def _rows_of(shard: int, n_rows: int) -> range:
    return range(shard * SHARD_SIZE, min((shard + 1) * SHARD_SIZE, n_rows))


class _Resized(Dataset):
    """Patches in the encoder's size, decoded and resized in worker processes; they travel as uint8."""

    def __init__(self, dataset: PatchDataset, rows: list[int], clip: CLIP) -> None:
        self.dataset, self.rows, self.resize = dataset, rows, clip.resize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.resize(Image.fromarray(self.dataset.image(self.rows[index])))


def _encode_missing(
    clip: CLIP,
    dataset: PatchDataset,
    views: int,
    batch_size: int,
    workers: int,
    missing: list[tuple[int, Path]],
    rows: list[int],
    progress: bool,
) -> None:
    loader = DataLoader(
        _Resized(dataset, rows, clip), batch_size, num_workers=workers, pin_memory=clip.device.type == "cuda"
    )
    bar = tqdm(total=len(rows), desc=f"encoding with {clip.backbone}", unit="patch", disable=not progress)
    encoded = _encoded_rows(clip, loader, views, bar)
    for number, shard in missing:
        count = len(_rows_of(number, len(dataset)))
        pooled, tokens = zip(*(next(encoded) for _ in range(count)), strict=True)
        _write_shard(shard, np.stack(pooled), np.stack(tokens), clip, dataset.name)
    bar.close()


def _encoded_rows(clip: CLIP, loader: DataLoader, views: int, bar: tqdm) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pooled features (V, d) and tokens (V, L, d) of one patch after the other.

    On CUDA a batch is handed on while the next one is in work: nothing here waits for the device but the last copy.
    """
    ahead, waiting = int(clip.device.type == "cuda"), deque()
    for images in chain(loader, [None]):
        if images is not None:
            waiting.append(_start(clip, images, views))
        while waiting and (images is None or len(waiting) > ahead):
            arrays, arrived = waiting.popleft()
            if arrived is not None:
                arrived.synchronize()
            yield from zip(*(array.numpy() for array in arrays), strict=True)
            bar.update(len(arrays[0]))


def _start(clip: CLIP, images: torch.Tensor, views: int) -> tuple[list[torch.Tensor], torch.cuda.Event | None]:
    """Encode a batch in all views; return its features on the host, and on CUDA the event that says they are there."""
    images = images.to(clip.device, non_blocking=True)
    pooled, tokens = zip(*(clip.encode_images(view_of(images, view)) for view in range(views)), strict=True)
    arrays = [torch.stack(pooled, dim=1), torch.stack(tokens, dim=1).half()]
    if clip.device.type != "cuda":
        return [array.cpu() for array in arrays], None
    hosts = [torch.empty(array.shape, dtype=array.dtype, pin_memory=True) for array in arrays]
    for host, array in zip(hosts, arrays, strict=True):
        host.copy_(array, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return hosts, arrived


def _write_shard(shard: Path, pooled: np.ndarray, tokens: np.ndarray, clip: CLIP, dataset: str) -> None:
    if not (np.isfinite(tokens).all() and np.isfinite(pooled).all()):
        raise HistoCLIPError(
            f"backbone {clip.backbone}: features are not finite in 16 bits. Try precision: fp32 or other weights."
        )
    for suffix, array in ((".pooled.npy", pooled), (".tokens.npy", tokens)):
        with replacing(shard.with_suffix(suffix)) as temporary:
            np.save(temporary, array)
    about = {
        "backbone": clip.backbone,
        "pretrained": clip.pretrained,
        "dataset": dataset,
        "pooled": pooled.shape,
        "tokens": tokens.shape,
        "bytes": pooled.nbytes + tokens.nbytes,
    }
    write_text(shard.with_suffix(".json"), json.dumps(about))
