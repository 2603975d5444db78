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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
READ_AHEAD = 2  # batches that are read from the disk while another is used
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
    """Yield the pooled features (V, d) and tokens (V, L, d) of one patch after the other."""
    for images in loader:
        pooled, tokens = zip(*(clip.encode_images(view_of(images, view)) for view in range(views)), strict=True)
        yield from zip(
            torch.stack(pooled, dim=1).cpu().numpy(), torch.stack(tokens, dim=1).half().cpu().numpy(), strict=True
        )
        bar.update(len(images))


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


class FeatureReader:
    """Gives batches of features on a device: resident there when they fit, else read from the memory map.

    Parameters
    ----------
    features : Shards of shape (B, V, d) or (B, V, L, d)
        Pooled features or tokens.
    device : torch.device
        Where the batches go.
    resident_limit : int
        Bytes up to which the features are held on the device, in the precision in which they are cached. By default
        the part `1 / share` of the free memory.
    share : int
        More than 3 where several processes read at once.
    """

    def __init__(
        self, features: Shards, device: torch.device, resident_limit: int | None = None, share: int = 3
    ) -> None:
        self.features, self.device = features, device
        self.n_views = features.shape[1]
        limit = _free_memory(device) // share if resident_limit is None else resident_limit
        self.resident = None
        if features.nbytes <= limit:
            self.resident = torch.cat([torch.from_numpy(np.array(piece)) for piece in features.pieces]).to(device)

    def take(self, rows: np.ndarray, views: np.ndarray | int = 0) -> torch.Tensor:
        """Return features (n, L, d) of some patches in one view each; pooled features come with L = 1."""
        if self.resident is None:
            batch = torch.from_numpy(self.features.take(rows, views))
            batch = (batch.pin_memory() if self.device.type == "cuda" else batch).to(self.device, non_blocking=True)
        else:
            views = torch.from_numpy(np.broadcast_to(views, rows.shape).copy()).to(self.device)
            batch = self.resident[torch.from_numpy(rows).to(self.device), views]
        return batch if batch.ndim == 3 else batch.unsqueeze(1)

    def batches(self, wanted: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[torch.Tensor]:
        """Yield `take` of each pair of rows and views; what is not resident is read ahead while the last is used."""
        if self.resident is not None:
            yield from (self.take(*each) for each in wanted)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = deque(pool.submit(self.take, *each) for each in wanted[:READ_AHEAD])
            for each in wanted[READ_AHEAD:]:
                yield ahead.popleft().result()
                ahead.append(pool.submit(self.take, *each))
            for batch in ahead:
                yield batch.result()


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
