"""One shard of patches through the frozen encoder, and the names under which its features are kept."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from histoclip_lib.cache import cache_dir
from histoclip_lib.clip import CLIP
from histoclip_lib.datasets.base import PatchDataset
from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.files import cannot_write, require_space, sweep, temporary_beside
from histoclip_lib.shards import FORMAT, Damaged, open_shard, rows_of
from histoclip_lib.views import view_of


def features_folder(clip: CLIP, views: int, cache: Path | None = None) -> Path:
    """Return the folder of the cache that holds the shards of one encoder with one number of views.

    Raises
    ------
    HistoCLIPError
        If `views` is not 1 to 8.
    """
    if not 1 <= views <= 8:
        raise HistoCLIPError(f"views: {views} is out of range. There are 1 to 8 flips and rotations.")
    key = hashlib.sha256(repr((FORMAT, clip.fingerprint(), views)).encode()).hexdigest()[:32]
    return (cache or cache_dir()) / "features" / key


def shard_key(dataset: PatchDataset, number: int) -> str:
    """Return the name of a shard: a digest of its patches, which are read for it."""
    digest = hashlib.sha256()
    for row in rows_of(number, len(dataset)):
        digest.update(dataset.source.digest(row).encode())
    return digest.hexdigest()[:32]


def make_writable(folder: Path) -> None:
    """Make the folder of an encoder, find out that it can be written, and remove what killed processes left there.

    Raises
    ------
    HistoCLIPError
        If it cannot be written.
    """
    probe = temporary_beside(folder / "probe", ".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(folder, error) from error
    sweep(folder)


def encode_batches(
    clip: CLIP,
    batches: Iterable[torch.Tensor],
    views: int,
    n_rows: int,
    folder: Path,
    n_left: int,
    bar: tqdm | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Encode the batches of one shard.

    On CUDA a batch is handed on while the next one is in work: nothing here waits for the device but the last copy.

    Parameters
    ----------
    clip : CLIP
        The frozen encoder.
    batches : iterable of tensors of shape (b, 3, S, S), uint8
        As `CLIP.resize` gives them; n_rows images together.
    views : int
        How many views V.
    n_rows : int
        The number of patches n.
    folder : Path
        Where they will be kept.
    n_left : int
        How many patches will be kept there, these included.
    bar : tqdm, optional
        Told of every batch.

    Returns
    -------
    pooled : ndarray of shape (n, V, d), float32
    tokens : ndarray of shape (n, V, L, d), float16

    Raises
    ------
    HistoCLIPError
        If there is no room for n_left patches, which the first batch shows; if a batch does not fit in the memory of
        the GPU; or if features are not finite in 16 bits.
    """
    ahead, waiting, filled, largest = int(clip.device.type == "cuda"), deque(), 0, 0
    pooled = tokens = np.empty(0)
    try:
        for images in chain(batches, [None]):
            if images is not None:
                largest = max(largest, len(images))
                waiting.append(_start(clip, images, views))
            while waiting and (images is None or len(waiting) > ahead):
                arrays, arrived = waiting.popleft()
                if arrived is not None:
                    arrived.synchronize()
                if not filled:
                    require_space(folder, n_left * sum(array[0].numpy().nbytes for array in arrays))
                    pooled, tokens = (np.empty((n_rows, *array.shape[1:]), array.numpy().dtype) for array in arrays)
                rows = slice(filled, filled := filled + len(arrays[0]))
                pooled[rows], tokens[rows] = (array.numpy() for array in arrays)
                if bar is not None:
                    bar.update(len(arrays[0]))
    except torch.OutOfMemoryError as error:
        raise HistoCLIPError(
            f"encode_batch_size: {largest} images at once do not fit in the memory of {clip.device} "
            f"({clip.backbone}). Set it to {max(1, largest // 2)}, or end what else uses the GPU."
        ) from error
    if not (np.isfinite(tokens).all() and np.isfinite(pooled).all()):
        raise HistoCLIPError(
            f"backbone {clip.backbone}: features are not finite in 16 bits. Try precision: fp32 or other weights."
        )
    return pooled, tokens


def about_shard(clip: CLIP, dataset: PatchDataset) -> dict[str, str]:
    """Return what a shard's marker says of where it comes from."""
    return {"backbone": clip.backbone, "pretrained": clip.pretrained, "dataset": dataset.name}


def is_usable(path: Path, n_rows: int, views: int) -> bool:
    """Whether a shard is there, whole: asked again once its lock is held, since another process may have made it."""
    try:
        return open_shard(path, n_rows, views) is not None
    except Damaged:
        return False


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
