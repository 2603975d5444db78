"""Arrays that lie on the disk in pieces: written once, checked when opened, read as memory maps.

A shard holds the features of up to 256 patches in three files. `.pooled.npy` and `.tokens.npy` are the arrays; the
marker `.json` is written last and holds the length and the checksum of both, and of itself. No marker, or one that does
not fit: no shard.
"""

from __future__ import annotations

import errno
import json
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import cannot_write, replacing, write_text

SHARD_SIZE = 256
FORMAT = 2  # part of every shard's name; raise it when the content of a shard changes its meaning
ARRAYS = {"pooled": np.float32, "tokens": np.float16}
CHUNK = 2**20  # bytes that are read and summed at once: they stay in the processor's cache
LOCK_PATIENCE = 3600.0  # seconds to wait for the process that encodes the same shard


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
class Shard:
    """One piece: `pooled` (n, V, d) float32 and `tokens` (n, V, L, d) float16, as memory maps."""

    pooled: np.ndarray
    tokens: np.ndarray


class Damaged(Exception):
    """A shard that is there and cannot be used; the message names the file and what is wrong with it."""


def n_shards(n_rows: int) -> int:
    """Return into how many shards so many rows are divided."""
    return -(-n_rows // SHARD_SIZE)


def shard_of(row: int) -> int:
    """Return the number of the shard that holds a row."""
    return row // SHARD_SIZE


def rows_of(number: int, n_rows: int) -> range:
    """Return the rows of shard `number` among `n_rows`."""
    return range(number * SHARD_SIZE, min((number + 1) * SHARD_SIZE, n_rows))


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


def open_shard(path: Path, n_rows: int, n_views: int, whole: bool = True) -> Shard | None:
    """Open a shard and check every byte of it.

    Parameters
    ----------
    path : Path
        Its name without a suffix.
    n_rows, n_views : int
        The patches and views that it must hold.
    whole : bool
        False compares the lengths of the arrays alone: for shards whose every byte was checked before.

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
        file, shape = path.with_suffix(f".{name}.npy"), [n_rows, n_views, *content[name][2:]]
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
