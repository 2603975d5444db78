"""Arrays that lie on the disk in pieces: written once, checked when opened, read as memory maps.

A shard holds the features of up to 256 patches in three files. `.pooled.npy` and `.tokens.npy` are the arrays; the
marker `.json` is written last and holds the length and the checksum of both, and of itself. No marker, or one that does
not fit: no shard.
"""

from __future__ import annotations

import errno
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.common.executors import n_cores
from histoclip_lib.common.files import cannot_write, replacing, write_text
from histoclip_lib.common.html import html, table

SHARD_SIZE = 256
FORMAT = 2  # part of every shard's name; raise it when the content of a shard changes its meaning
ARRAYS = {"pooled": np.float32, "tokens": np.float16}
CHUNK = 2**20  # bytes that are read and summed at once: they stay in the processor's cache
LOCK_PATIENCE = 3600.0  # seconds to wait for the process that encodes the same shard


@dataclass(frozen=True, eq=False)
class Shards:
    """An array (B, V, ...) in memory-mapped pieces of SHARD_SIZE patches."""

    pieces: list[np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return (sum(len(piece) for piece in self.pieces), *self.pieces[0].shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return sum(piece.nbytes for piece in self.pieces)

    def take(self, index: np.ndarray, views: np.ndarray | int = 0) -> np.ndarray:
        """Read patches, each in one view.

        Parameters
        ----------
        index : ndarray of int, shape (n,)
            Any order, repetitions allowed.
        views : ndarray of int, shape (n,), or int
            The view of each patch.

        Returns
        -------
        ndarray of shape (n, ...)
        """
        index, views = np.broadcast_arrays(np.asarray(index), views)
        result = np.empty((len(index), *self.shape[2:]), dtype=self.pieces[0].dtype)
        shard = index // SHARD_SIZE
        for number in np.unique(shard):
            here = shard == number
            result[here] = self.pieces[number][index[here] - number * SHARD_SIZE, views[here]]
        return result


@dataclass(frozen=True, eq=False)
class Shard:
    """One piece: `pooled` (n, V, d) float32 and `tokens` (n, V, L, d) float16, as memory maps."""

    pooled: np.ndarray
    tokens: np.ndarray


class Damaged(Exception):
    """A shard that is there and cannot be used; the message names the file and what is wrong with it."""


def n_shards(n_patches: int) -> int:
    """Return the number of shards that hold so many patches."""
    return -(-n_patches // SHARD_SIZE)


def shard_of(index: int) -> int:
    """Return the number of the shard that holds a patch."""
    return index // SHARD_SIZE


def indices_of(number: int, n_patches: int) -> range:
    """Return the indices of the patches of shard `number`."""
    return range(number * SHARD_SIZE, min((number + 1) * SHARD_SIZE, n_patches))


def write_shard(path: Path, pooled: np.ndarray, tokens: np.ndarray, about: dict[str, str]) -> None:
    """Write a shard, its marker last.

    The arrays are not forced onto the disk before they get their names: what a power failure garbles, the checksums
    show.

    Parameters
    ----------
    path : Path
        Its name without a suffix.
    pooled : ndarray of shape (n, V, d), float32
        Global embeddings.
    tokens : ndarray of shape (n, V, L, d), float16
        Patch tokens.
    about : dict of str to str
        What a person wants to know of it.

    Raises
    ------
    HistoCLIPError
        If the disk is full or the folder cannot be written; nothing new is left then.
    """
    marker = path.with_suffix(".json")
    given = {"pooled": pooled, "tokens": tokens}
    arrays = {name: np.ascontiguousarray(given[name], dtype=kind) for name, kind in ARRAYS.items()}
    content = {"format": FORMAT, **about, "bytes": sum(array.nbytes for array in arrays.values()), "files": {}}
    try:
        marker.unlink(missing_ok=True)  # never beside the arrays of another time
        for name, array in arrays.items():
            content[name] = list(array.shape)
            with replacing(path.with_suffix(f".{name}.npy"), durable=False) as temporary:
                content["files"][name] = _save(temporary, array)
        write_text(marker, json.dumps(content | {"checksum": _checksum(content)}))
    except (HistoCLIPError, OSError) as error:
        for name in ARRAYS:
            with suppress(OSError):
                path.with_suffix(f".{name}.npy").unlink()
        cause = error if isinstance(error, OSError) else error.__cause__
        raise cannot_write(path.parent, cause, content["bytes"]) from error


def open_shard(path: Path, n_patches: int, n_views: int, whole: bool = True) -> Shard | None:
    """Open a shard and check every byte of it.

    Parameters
    ----------
    path : Path
        Its name without a suffix.
    n_patches, n_views : int
        How many it must hold.
    whole : bool
        False compares only the lengths of the arrays: for shards whose every byte was checked before.

    Returns
    -------
    Shard or None
        None where there is no marker.

    Raises
    ------
    Damaged
        If a file is missing, cannot be read, or differs in any byte from what was written.
    HistoCLIPError
        If the system has no memory map or file handle left.
    """
    marker = path.with_suffix(".json")
    if (content := _read_marker(marker)) is None:
        return None
    arrays = {}
    for name, kind in ARRAYS.items():
        file, shape = path.with_suffix(f".{name}.npy"), [n_patches, n_views, *content[name][2:]]
        if content[name] != shape:
            raise Damaged(f"{file} holds an array of shape {content[name]}, not {shape}")
        try:
            expected = content["files"][name]
            length, crc = _sum_of(file) if whole else (file.stat().st_size, expected[1])
            if [length, crc] != expected:
                raise Damaged(f"{file} is not as it was written ({length:,} bytes)")
            # Not through np.load: it parses the header with ast, which at times fails in threads (CPython 3.11.7).
            header = length - math.prod(shape) * np.dtype(kind).itemsize
            arrays[name] = np.memmap(file, kind, "r", header, tuple(shape))
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                raise HistoCLIPError(
                    f"{file}: the system gives no more memory maps or files ({error.strerror}). Raise the limits "
                    "vm.max_map_count (two for each shard of 256 patches) and ulimit -n, or use fewer patches."
                ) from error
            raise Damaged(f"{file} cannot be read ({error.strerror or error})") from error
    return Shard(**arrays)


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
    folder : Path or None
        Where the shards lie; None for features that are in memory only.
    names : tuple of str
        Names of the shards, in order: `open_features` needs neither the encoder nor an image to find them again.
    """

    pooled: Shards
    tokens: Shards
    encoded: int
    folder: Path | None = None
    names: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> Shards:
        """Return what a head attends to: the pooled embedding for `global`, the tokens for `patch`."""
        return {"global": self.pooled, "patch": self.tokens}[kind]

    def about(self) -> str:
        """Return a sentence of Markdown on the size of the features and the cost of their views."""
        patches, views, length, width = self.tokens.shape
        size = (self.pooled.nbytes + self.tokens.nbytes) / 2**20
        return (
            f"Features of {patches} patches in {views} view{'s' if views > 1 else ''}, {length} tokens of width "
            f"{width} each: {size:.0f} MiB in the cache and {patches * views:,} encoded images (patches "
            f"times views), of which {self.encoded * views:,} in this notebook."
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
        arrays_of = table(["features", "shape", "type", "size"], arrays, "The encoded arrays.")
        return html(table([], facts, "What was encoded."), arrays_of)


def open_features(folder: Path, names: Sequence[str], n_patches: int, views: int) -> ImageFeatures:
    """Map features that `encode_dataset` has checked before; neither the encoder nor an image is loaded.

    Lengths and markers are compared, and no checksum: features are read whole once in a run, not in every notebook.

    Parameters
    ----------
    folder : Path
        `ImageFeatures.folder`.
    names : sequence of str
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
    found = open_shards({k: folder / name for k, name in enumerate(names)}, n_patches, views, whole=False)
    if missing := [names[number] for number, shard in found.items() if shard is None]:
        raise HistoCLIPError(f"{folder}: these shards are missing. Encode them again:\n{bullet_list(missing)}")
    return features_of(folder, names, found.values(), 0)


def features_of(folder: Path, names: Sequence[str], shards: Iterable[Shard], encoded: int) -> ImageFeatures:
    """Return opened shards as features, and note in the cache that they were used now."""
    for name in names:
        with suppress(OSError):  # a cache of others can still be read
            (folder / f"{name}.json").touch()
    pooled, tokens = zip(*((shard.pooled, shard.tokens) for shard in shards), strict=True)
    return ImageFeatures(Shards(list(pooled)), Shards(list(tokens)), encoded, folder, tuple(names))


def open_shards(paths: dict[int, Path], n_patches: int, views: int, whole: bool = True) -> dict[int, Shard | None]:
    """Open shards in threads; None stands for those to encode. Damaged ones are among these, with a warning."""

    def open_one(number: int) -> Shard | Damaged | None:
        try:
            return open_shard(paths[number], len(indices_of(number, n_patches)), views, whole)
        except Damaged as damage:
            return damage

    with ThreadPoolExecutor(min(8, n_cores())) as pool:
        found = dict(zip(paths, pool.map(open_one, paths), strict=True))
    damages = [str(shard) for shard in found.values() if isinstance(shard, Damaged)]
    if damages:
        warnings.warn(
            f"{len(damages)} of {len(paths)} shards of the feature cache are damaged; their patches are encoded "
            f"again:\n{bullet_list(damages)}",
            stacklevel=3,
        )
    return {number: None if isinstance(shard, Damaged) else shard for number, shard in found.items()}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a shard for the length of a block, so that no two processes encode it.

    The lock is `flock`'s: the system takes it back when its process ends, however it ends. On NFS it needs version 4,
    or a lock daemon. Nothing but double work hangs on it: files appear whole, and a mixture of two processes' files
    does not fit its marker. So its file is removed at the end, though others may be waiting for it.

    Raises
    ------
    HistoCLIPError
        If another process holds it for longer than LOCK_PATIENCE, or the folder cannot be written.
    """
    file = path.with_suffix(".lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, thread_local=False).acquire(timeout=LOCK_PATIENCE, poll_interval=0.1)
    except Timeout as error:
        raise HistoCLIPError(
            f"{file}: another process has held this lock for {LOCK_PATIENCE / 60:.0f} minutes. Find out who encodes "
            "there and end it, or remove the file."
        ) from error
    except OSError as error:
        raise cannot_write(file.parent, error) from error
    with lock:
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink()


def _save(path: Path, array: np.ndarray) -> list[int]:
    """Write an array in NumPy's format; return the file's length and checksum, computed from what is in memory."""
    with path.open("wb") as file:
        summing = _Summing(file.write)
        np.lib.format.write_array(summing, array, allow_pickle=False)
    return [summing.length, summing.crc]


class _Summing:
    """Passes bytes on and keeps their number and checksum."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write, self.length, self.crc = write, 0, 0

    def write(self, data: bytes) -> int:
        self.length, self.crc = self.length + len(data), zlib.crc32(data, self.crc)
        return self._write(data)


def _sum_of(path: Path) -> tuple[int, int]:
    """Return the length and the checksum of a file. It is read, not mapped: a bad disk is an error then, no signal."""
    length, crc, chunk = 0, 0, memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            length, crc = length + count, zlib.crc32(chunk[:count], crc)
    return length, crc


def _read_marker(marker: Path) -> dict | None:
    try:
        content = json.loads(marker.read_bytes())
        checksum = content.pop("checksum")
        if content["format"] != FORMAT:
            raise Damaged(f"{marker} has format {content['format']}, this version of HistoCLIP writes {FORMAT}")
        if checksum != _checksum(content):
            raise Damaged(f"{marker} is not as it was written")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Damaged(f"{marker} cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise Damaged(f"{marker} is garbled") from error
    return content


def _checksum(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
