"""Image features, encoded once and kept in shards whose names say what they hold.

A shard's name is a digest of all that determines it (the patches' bytes, the encoder's weights and preprocessing, the
number of views), so a changed image or option never meets a stale shard, and an interrupted encode goes on with the
shards that are missing.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from histoclip_lib.clip.encoder import CLIP
from histoclip_lib.clip.field import match_field, require_matchable
from histoclip_lib.common.cache import cache_dir
from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.common.executors import n_cores
from histoclip_lib.common.files import cannot_write, require_space, sweep, temporary_beside
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.features.reader import view_of
from histoclip_lib.features.store import (
    FORMAT,
    Damaged,
    ImageFeatures,
    features_of,
    indices_of,
    locked,
    n_shards,
    open_shard,
    open_shards,
    shard_of,
    write_shard,
)


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


def shard_key(dataset: PatchDataset, number: int, with_mpp: bool = False) -> str:
    """Return the name of a shard: a digest of its patches, whose bytes are read for it.

    Where patches are resampled (`with_mpp`), their resolution belongs to it.
    """
    digest = hashlib.sha256()
    for index in indices_of(number, len(dataset)):
        digest.update(dataset.source.digest(index).encode())
        if with_mpp:
            digest.update(repr(float(dataset.patch_mpp[index])).encode())
    return digest.hexdigest()[:32]


def make_writable(folder: Path) -> None:
    """Create a folder of the cache, check that it can be written, and remove what killed processes left there.

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
    n_patches: int,
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
        As `CLIP.resize` gives them; n_patches images together.
    views : int
        How many views V.
    n_patches : int
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
                    pooled, tokens = (np.empty((n_patches, *array.shape[1:]), array.numpy().dtype) for array in arrays)
                here = slice(filled, filled := filled + len(arrays[0]))
                pooled[here], tokens[here] = (array.numpy() for array in arrays)
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


def _write(held: ExitStack, *shard: object) -> None:
    with held:
        write_shard(*shard)


def encode_and_write(
    clip: CLIP,
    dataset: PatchDataset,
    number: int,
    path: Path,
    batches: Iterable[torch.Tensor],
    views: int,
    n_left: int,
    write: Callable = _write,
    bar: tqdm | None = None,
) -> int:
    """Encode a shard and write it under its lock; return the number of patches encoded.

    That is 0 where another process has meanwhile written the shard. Other arguments are those of `encode_batches`.

    Parameters
    ----------
    number, path
        Which shard of the data set, and its file name without a suffix.
    write : callable
        Called with an `ExitStack` that holds the lock and with the arguments of `write_shard`.
    """
    n_patches = len(indices_of(number, len(dataset)))
    with ExitStack() as held:
        held.enter_context(locked(path))
        try:
            if open_shard(path, n_patches, views) is not None:
                return 0
        except Damaged:
            pass
        arrays = encode_batches(clip, batches, views, n_patches, path.parent, n_left, bar)
        about = {"backbone": clip.backbone, "pretrained": clip.pretrained, "dataset": dataset.name}
        write(held, path, *arrays, about)
    return n_patches


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

    Every byte of the cached features is read and its checksum compared, at 3 to 5 GB/s on a core where the files are
    still in memory (`benchmarks/shards.py`), and at the speed of the disk where not. A shard that differs counts as
    missing, with a warning. Several processes may encode the same patches at once; each shard is encoded by one.

    Parameters
    ----------
    clip : CLIP
        The frozen encoder.
    dataset : PatchDataset
        B patches.
    views : int
        1 to 8: how many of the eight flips and rotations to encode of each patch. Time and size grow with it.
    batch_size : int
        Images in one forward pass; a pass never holds images of two shards, so no more than 256.
    workers : int, optional
        Processes that decode and resize; by default one for each core, at most 8.
    cache : Path, optional
        Folder of the cache; by default `histoclip_lib.common.cache.cache_dir()`.
    progress : bool
        Whether to draw a bar.

    Raises
    ------
    HistoCLIPError
        If `views` is out of range, the cache folder cannot be written or has too little room, the features are not
        finite, or a batch does not fit in the memory of the GPU.

    Examples
    --------
    >>> from histoclip_lib import encode_dataset, load_clip, load_dataset
    >>> patches, clip = load_dataset("synthetic", n_patches=8), load_clip(device="cpu")
    >>> features = encode_dataset(clip, patches, views=1, progress=False)
    >>> features.pooled.shape, features.tokens.shape
    ((8, 1, 384), (8, 1, 49, 384))
    """
    if clip.match_mpp:
        require_matchable(clip.backbone, clip.entry.mpp, dataset.patch_mpp)
    folder = features_folder(clip, views, cache)
    paths = [folder / shard_key(dataset, number, clip.match_mpp) for number in range(n_shards(len(dataset)))]
    found = open_shards(dict(enumerate(paths)), len(dataset), views)
    missing = {number: paths[number] for number, shard in found.items() if shard is None}
    encoded = 0
    if missing:
        make_writable(folder)
        workers = min(8, n_cores()) if workers is None else workers
        encoded = _encode_missing(clip, dataset, views, batch_size, workers, missing, progress)
        found |= open_shards(missing, len(dataset), views)
        if gone := [str(paths[number]) for number, shard in found.items() if shard is None]:
            raise HistoCLIPError(
                f"{folder}: shards were written there and cannot be read back. Check the disk, or that nobody prunes "
                f"the cache:\n{bullet_list(gone)}"
            )
    return features_of(folder, [path.name for path in paths], found.values(), encoded)


class Resized(Dataset):
    """Patches in the encoder's size, decoded and resized where they are asked for; they travel as uint8."""

    def __init__(self, dataset: PatchDataset, clip: CLIP) -> None:
        self.dataset, self.resize = dataset, clip.resize
        self.matched_to = (clip.entry.mpp, clip.side) if clip.match_mpp else None

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        """Return an index and its patch, shape (3, S, S)."""
        image = self.dataset.image(index)
        if self.matched_to is not None:
            return index, self.resize(match_field(image, float(self.dataset.patch_mpp[index]), *self.matched_to))
        return index, self.resize(Image.fromarray(image))


def _plainly(loader: DataLoader) -> Iterator:
    """Yield the batches of a loader; an error of its processes comes without the traceback that PyTorch adds to it."""
    try:
        yield from loader
    except HistoCLIPError as error:
        raise HistoCLIPError(str(error).rpartition(f"{HistoCLIPError.__name__}: ")[2].rstrip()) from error


def _encode_missing(
    clip: CLIP,
    dataset: PatchDataset,
    views: int,
    batch_size: int,
    workers: int,
    missing: dict[int, Path],
    progress: bool,
) -> int:
    """Encode and write shards one after the other; return the number of patches encoded.

    A thread writes a shard while the next one is encoded.
    """
    shards = {number: indices_of(number, len(dataset)) for number in missing}
    loader = DataLoader(
        Resized(dataset, clip),
        batch_sampler=[
            list(shard[start : start + batch_size])
            for shard in shards.values()
            for start in range(0, len(shard), batch_size)
        ],
        num_workers=workers,
        pin_memory=clip.device.type == "cuda",
    )
    encoded, left, written = 0, sum(map(len, shards.values())), Future()
    written.set_result(None)

    def write(held: ExitStack, *shard: object) -> None:
        nonlocal written
        written.result()  # before the lock changes hands: an error here must release it
        written = writer.submit(_write, held.pop_all(), *shard)

    bar = tqdm(total=left, desc=f"encoding with {clip.backbone}", unit="patch", disable=not progress)
    with bar, ThreadPoolExecutor(1) as writer:
        for number, group in groupby(_plainly(loader), lambda batch: shard_of(int(batch[0][0]))):
            batches = (images for _, images in group)
            new = encode_and_write(clip, dataset, number, missing[number], batches, views, left, write, bar)
            left -= len(shards[number])
            encoded += new
            if not new:
                bar.update(len(shards[number]))
        written.result()
    return encoded
