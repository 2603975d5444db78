"""Image features, encoded once and kept in shards whose names say what they hold.

A shard's name is a digest of all that determines it (the patches' bytes, the encoder's weights and preprocessing, the
number of views), so a changed image or option never meets a stale shard, and an interrupted encode goes on with the
shards that are missing.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from histoclip_lib.clip.encoder import CLIP
from histoclip_lib.common.cache import cache_dir
from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.common.files import cannot_write, require_space, sweep, temporary_beside
from histoclip_lib.common.html import html, table
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.features.reader import view_of
from histoclip_lib.features.store import (
    FORMAT,
    Damaged,
    Shard,
    Shards,
    locked,
    n_shards,
    open_shard,
    rows_of,
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
    folder : Path
        Where the shards lie.
    names : list of str
        Of the shards, in order: with them `open_features` finds the features again without encoder or images.
    """

    pooled: Shards
    tokens: Shards
    encoded: int
    folder: Path
    names: list[str]

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

    def _repr_html_(self) -> str:
        """Show in a notebook the shapes and sizes, and what came from the cache."""
        arrays = [
            [name, " x ".join(map(str, array.shape)), str(array.pieces[0].dtype), f"{array.nbytes / 2**20:,.1f} MiB"]
            for name, array in (("pooled", self.pooled), ("tokens", self.tokens))
        ]
        n_patches = self.pooled.shape[0]
        facts = [
            ["patches", f"{n_patches:,}"],
            ["views", str(self.n_views)],
            ["grid", f"{self.grid} x {self.grid} tokens"],
            ["encoded now", f"{self.encoded:,}"],
            ["from the cache", f"{n_patches - self.encoded:,}"],
        ]
        return html(table([], facts), table(["features", "shape", "type", "size"], arrays))


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
    """
    folder = features_folder(clip, views, cache)
    paths = [folder / shard_key(dataset, number) for number in range(n_shards(len(dataset)))]
    found = _open_all(dict(enumerate(paths)), len(dataset), views)
    missing = {number: paths[number] for number, shard in found.items() if shard is None}
    encoded = 0
    if missing:
        make_writable(folder)
        workers = min(8, os.cpu_count() or 1) if workers is None else workers
        with tqdm(
            total=sum(len(rows_of(number, len(dataset))) for number in missing),
            desc=f"encoding with {clip.backbone}",
            unit="patch",
            disable=not progress,
        ) as bar:
            encoded = _encode_missing(clip, dataset, views, batch_size, workers, missing, bar)
        found |= _open_all(missing, len(dataset), views)
        if gone := [str(paths[number]) for number, shard in found.items() if shard is None]:
            raise HistoCLIPError(
                f"{folder}: shards were written there and cannot be read back. Check the disk, or that nobody prunes "
                f"the cache:\n{bullet_list(gone)}"
            )
    return _features(folder, [path.name for path in paths], list(found.values()), encoded)


def open_features(folder: Path, names: list[str], n_patches: int, views: int) -> ImageFeatures:
    """Map features that `encode_dataset` has checked before; neither the encoder nor an image is loaded.

    Lengths and markers are compared, and no checksum: features are read whole once in a run, not in every notebook.

    Parameters
    ----------
    folder : Path
        `ImageFeatures.folder`.
    names : list of str
        `ImageFeatures.names`.
    n_patches, views : int
        What they must hold.

    Raises
    ------
    HistoCLIPError
        If a shard is missing, or not as it was written.
    """
    if len(names) != n_shards(n_patches):
        raise HistoCLIPError(f"{folder}: {len(names)} shards do not hold {n_patches} patches. Encode them again.")
    found = _open_all({k: folder / name for k, name in enumerate(names)}, n_patches, views, whole=False)
    if missing := [names[number] for number, shard in found.items() if shard is None]:
        raise HistoCLIPError(f"{folder}: these shards are missing. Encode them again:\n{bullet_list(missing)}")
    return _features(folder, names, list(found.values()), 0)


def _features(folder: Path, names: list[str], shards: list[Shard], encoded: int) -> ImageFeatures:
    for name in names:
        with suppress(OSError):  # a cache that others own can still be read
            (folder / f"{name}.json").touch()  # when it was last used
    pooled, tokens = ([getattr(shard, kind) for shard in shards] for kind in ("pooled", "tokens"))
    return ImageFeatures(Shards(pooled), Shards(tokens), encoded, folder, names)


def _open_all(paths: dict[int, Path], n_rows: int, views: int, whole: bool = True) -> dict[int, Shard | None]:
    """Open shards, in threads; None for those that must be encoded, of the damaged ones with a warning."""

    def open_one(number: int) -> Shard | Damaged | None:
        try:
            return open_shard(paths[number], len(rows_of(number, n_rows)), views, whole)
        except Damaged as damage:
            return damage

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = dict(zip(paths, pool.map(open_one, paths), strict=True))
    damages = [str(shard) for shard in found.values() if isinstance(shard, Damaged)]
    if damages:
        warnings.warn(
            f"{len(damages)} of {len(paths)} shards of the feature cache are damaged; their patches are encoded "
            f"again:\n{bullet_list(damages)}",
            stacklevel=3,
        )
    return {number: None if isinstance(shard, Damaged) else shard for number, shard in found.items()}


class _Resized(Dataset):
    """Patches in the encoder's size, decoded and resized in worker processes; they travel as uint8."""

    def __init__(self, dataset: PatchDataset, clip: CLIP) -> None:
        self.dataset, self.resize = dataset, clip.resize

    def __getitem__(self, row: int) -> tuple[int, torch.Tensor]:
        return row, self.resize(Image.fromarray(self.dataset.image(row)))


def _encode_missing(
    clip: CLIP,
    dataset: PatchDataset,
    views: int,
    batch_size: int,
    workers: int,
    missing: dict[int, Path],
    bar: tqdm,
) -> int:
    """Encode and write shards one after the other, each under its lock; return how many patches were encoded.

    A thread writes a shard while the next one is encoded, and gives its lock back.
    """
    rows = [rows_of(number, len(dataset)) for number in missing]
    loader = DataLoader(
        _Resized(dataset, clip),
        batch_sampler=[list(r[start : start + batch_size]) for r in rows for start in range(0, len(r), batch_size)],
        num_workers=workers,
        pin_memory=clip.device.type == "cuda",
    )
    about, encoded, left, written = about_shard(clip, dataset), 0, sum(map(len, rows)), Future()
    written.set_result(None)
    with ThreadPoolExecutor(1) as writer:
        for number, batches in groupby(loader, lambda batch: shard_of(int(batch[0][0]))):
            path, count = missing[number], len(rows_of(number, len(dataset)))
            with ExitStack() as held:
                held.enter_context(locked(path))
                if is_usable(path, count, views):
                    bar.update(sum(len(images) for _, images in batches))
                else:
                    arrays = encode_batches(
                        clip, (images for _, images in batches), views, count, path.parent, left, bar
                    )
                    written.result()
                    written = writer.submit(_write, held.pop_all(), path, *arrays, about)
                    encoded += count
            left -= count
        written.result()
    return encoded


def _write(held: ExitStack, path: Path, pooled: np.ndarray, tokens: np.ndarray, about: dict[str, str]) -> None:
    with held:
        write_shard(path, pooled, tokens, about)
