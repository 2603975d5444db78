"""PanNuke as NumPy arrays: reading patches one at a time, and counting nuclei in masks larger than memory."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.common.files import cannot_write, replacing
from histoclip_lib.data.images import MAX_PIXELS

CLASSES = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
N_CHANNELS = len(CLASSES) + 1  # the sixth channel is background and is not read
CHUNK = 16  # patches counted at a time: 50 MB of the official float64 masks


@dataclass(frozen=True)
class FoldArrays:
    """The files of one fold: `images` (B, H, W, 3), `masks` (B, H, W, 6) and `types` (B,)."""

    images: Path
    masks: Path
    types: Path


@dataclass(frozen=True)
class ArraySource:
    """Patches in the arrays of one or more folds, one after the other.

    It holds paths only, so that it can be pickled; each read maps its file again, which takes about 0.1 ms and keeps
    pages already read from counting as memory of the process.
    """

    folds: list[FoldArrays]
    starts: np.ndarray  # index of the first patch of each fold, and the number of all patches

    def _locate(self, index: int) -> tuple[FoldArrays, int]:
        fold = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.folds[fold], index - int(self.starts[fold])

    def image(self, index: int) -> np.ndarray:
        """Return patch `index` as RGB, shape (H, W, 3), uint8; it is stored as float64 from 0 to 255."""
        fold, place = self._locate(index)
        image = np.array(open_array(fold.images)[place])
        if not (image.min() >= 0 and image.max() <= 255):
            raise HistoCLIPError(
                f"{fold.images}, patch {place}: values from {image.min()} to {image.max()}, expected 0 to 255. Use "
                "the images as they were released."
            )
        return np.rint(image).astype(np.uint8)

    def mask(self, index: int) -> np.ndarray:
        """Return the class map, shape (H, W), uint8: k for the k-th class, the later where nuclei overlap."""
        fold, place = self._locate(index)
        instances = np.array(open_array(fold.masks)[place])
        class_map = np.zeros(instances.shape[:2], dtype=np.uint8)
        for channel in range(len(CLASSES)):
            class_map[instances[..., channel] != 0] = channel + 1
        return class_map

    def digest(self, index: int) -> str:
        """Return the digest of the image file's path, size and time of change, and the patch's place in it."""
        fold, place = self._locate(index)
        return f"{file_key(fold.images)}-{place:05d}"


def file_key(path: Path) -> str:
    """Return a hex digest of a file's path, size and time of change (in ns); its bytes are too many to read."""
    stat = path.stat()
    text = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def open_array(path: Path) -> np.ndarray:
    """Map a `.npy` file without reading it.

    Raises
    ------
    HistoCLIPError
        If the file is truncated, not a `.npy` file, or holds Python objects, which are never unpickled.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")  # np.load would take a zip archive, too
    except Exception as error:  # the header is a Python literal: what is wrong with it is of many kinds
        raise HistoCLIPError(
            f"{path} cannot be read as an array of numbers or text ({error or type(error).__name__}). Download the "
            "file again; an array of Python objects (dtype object) must be saved again with a plain dtype."
        ) from error


def check_fold(files: FoldArrays) -> list[str]:
    """Return what is wrong with the shapes and dtypes of a fold's arrays, a line for each fault."""
    arrays, problems = [], []
    for path, rank, channels in ((files.images, 4, 3), (files.masks, 4, N_CHANNELS), (files.types, 1, None)):
        try:
            arrays.append(open_array(path))
        except HistoCLIPError as error:
            problems.append(str(error))
            continue
        shape, dtype = arrays[-1].shape, arrays[-1].dtype
        if len(shape) != rank or (channels and shape[-1] != channels):
            problems.append(f"{path}: shape {shape}, expected {f'(B, H, W, {channels})' if channels else '(B,)'}")
        if dtype.kind not in ("uif" if channels else "U"):
            problems.append(f"{path}: dtype {dtype}, expected {'integers or floats' if channels else 'text (<U13)'}")
    if problems:
        return problems
    images, masks, types = arrays
    try:
        "".join(types.tolist()).encode()
    except (ValueError, SystemError) as error:  # the latter where a number is beyond all characters
        problems.append(f"{files.types}: contains invalid Unicode ({error})")
    if not len(images) == len(masks) == len(types):
        problems.append(
            f"{files.images} has {len(images)} patches, {files.masks} {len(masks)} and {files.types} {len(types)}; "
            "they must agree"
        )
    elif images.shape[:3] != masks.shape[:3]:
        problems.append(f"{files.images}: shape {images.shape}, but {files.masks}: shape {masks.shape}")
    elif images.shape[1] * images.shape[2] > MAX_PIXELS:
        problems.append(f"{files.images}: shape {images.shape}; a patch has at most {MAX_PIXELS:,} pixels")
    elif images.size and images.dtype.kind == "f" and 0 < images[0].max() <= 1:
        problems.append(f"{files.images}: values lie between 0 and 1, expected 0 to 255 as released")
    return problems


def count_nuclei(masks_path: Path) -> np.ndarray:
    """Count the nuclei of each class in each patch: the distinct instance ids, other than 0, in its channel.

    Peak memory is that of a few `CHUNK`s, whatever the size of the file: the file is mapped again for each chunk, since
    pages of a mapping count as memory of the process until it is closed.

    Parameters
    ----------
    masks_path : Path
        Array of shape (B, H, W, 6), any integer or float dtype. Ids go beyond 255 and are compared as stored.

    Returns
    -------
    ndarray of shape (B, 5), int64

    Raises
    ------
    HistoCLIPError
        Listing every patch with an id that is negative, infinite or not a number.
    """
    n_patches = len(open_array(masks_path))
    offenders = []
    counts = np.zeros((n_patches, len(CLASSES)), dtype=np.int64)
    label = f"counting nuclei in {masks_path.parent.name}/{masks_path.name} (once)"
    with tqdm(total=n_patches, desc=label, unit="patch") as bar:
        for start in range(0, n_patches, CHUNK):
            chunk = np.array(open_array(masks_path)[start : start + CHUNK])
            for index, patch in enumerate(chunk, start=start):
                if not (patch.min() >= 0 and patch.max() < np.inf):  # NaN is neither
                    offenders.append(f"patch {index}: ids from {patch.min()} to {patch.max()}")
                    continue
                for channel in range(len(CLASSES)):
                    ids = patch[..., channel]
                    counts[index, channel] = len(np.unique(ids[ids != 0]))
            bar.update(len(chunk))
    if offenders:
        raise HistoCLIPError(
            f"{masks_path}: {len(offenders)} of {n_patches} patches have invalid ids. Download the file again:\n"
            + bullet_list(offenders, limit=1000)
        )
    return counts


def cached_counts(masks_path: Path, cache_dir: Path) -> np.ndarray:
    """Return `count_nuclei`, kept in a table below `cache_dir` until the masks file changes.

    The table is named by the file's path, size and time of change, and moved into place when complete, so that neither
    a changed file nor an interrupted run leaves a table that is wrong. A damaged one is made again.
    """
    table_path = cache_dir / "pannuke" / f"counts-{file_key(masks_path)}.csv"
    if (kept := _read_counts(table_path, len(open_array(masks_path)))) is not None:
        with suppress(OSError):  # a cache of others can still be read
            table_path.touch()  # when it was last used
        return kept
    try:
        table_path.parent.mkdir(parents=True, exist_ok=True)  # before the long count, not after it
    except OSError as error:
        raise cannot_write(table_path.parent, error) from error
    counts = count_nuclei(masks_path)
    with replacing(table_path) as temporary:
        np.savetxt(temporary, counts, fmt="%d", delimiter=",", header=",".join(CLASSES), comments="")
    return counts


def _read_counts(table_path: Path, n_patches: int) -> np.ndarray | None:
    """Return the table of an earlier count, or None if it is missing or damaged."""
    try:
        with table_path.open(encoding="ascii") as file:
            if file.readline().strip() != ",".join(CLASSES):
                return None
            counts = np.array([line.split(",") for line in file], dtype=np.int64)
    except (OSError, ValueError, OverflowError):
        return None
    return counts if counts.shape == (n_patches, len(CLASSES)) and (counts >= 0).all() else None
