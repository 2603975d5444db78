"""What every data set gives: labels, classes, groups and images that are read one at a time."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from histoclip_lib.errors import HistoCLIPError, bullet_list

Image.MAX_IMAGE_PIXELS = 16_000_000  # Pillow refuses twice as many: a slide is no patch
MIN_SIDE = 32  # pixels


class PatchSource(Protocol):
    """Where the pixels of a data set come from. Must be picklable: worker processes read through it."""

    def image(self, index: int) -> np.ndarray:
        """Return patch `index` as RGB, shape (H, W, 3), uint8."""

    def mask(self, index: int) -> np.ndarray | None:
        """Return the class map of patch `index`, shape (H, W), uint8: k for the k-th class, 0 for none."""

    def digest(self, index: int) -> str:
        """Return a hex digest that changes whenever the pixels of patch `index` may have changed."""


@dataclass(frozen=True, eq=False)
class PatchDataset:
    """Patches that carry several labels at once.

    Attributes
    ----------
    name : str
        Name of the data set, as in the parameter `dataset`.
    classes : list of str
        The N class names, in column order.
    files : list of str
        B distinct identifiers, relative to the data folder; they name a patch in every table.
    labels : ndarray of shape (B, N), uint8
        1 where the class is present.
    source : PatchSource
        Reads images and masks lazily, by position in `files`.
    groups : ndarray of shape (B,), str, or None
        Patient or source image; patches of one group look alike and must not be on both sides of a
        grouped split.
    parts : ndarray of shape (B,), str, or None
        The official part of each patch: `train`, `val` or `test`.
    tissue : ndarray of shape (B,), str, or None
        Organ, where the data set knows it.
    has_masks : bool
        Whether `source.mask` gives masks.
    """

    name: str
    classes: list[str]
    files: list[str]
    labels: np.ndarray
    source: PatchSource
    groups: np.ndarray | None = None
    parts: np.ndarray | None = None
    tissue: np.ndarray | None = None
    has_masks: bool = False

    def __post_init__(self) -> None:
        """Hold the shapes, the 0/1 labels and the distinct names that everything else relies on."""
        shape = (len(self.files), len(self.classes))
        if self.labels.shape != shape:
            raise HistoCLIPError(f"{self.name}: labels have shape {self.labels.shape}, expected {shape}.")
        if not len(self.files):
            raise HistoCLIPError(f"{self.name}: no patches were found. Check data_dir.")
        if not np.isin(self.labels, (0, 1)).all():
            bad = np.flatnonzero(~np.isin(self.labels, (0, 1)).all(axis=1))
            raise HistoCLIPError(
                f"{self.name}: labels must be 0 or 1; these patches have others:\n"
                + bullet_list([f"{self.files[i]}: {self.labels[i].tolist()}" for i in bad])
            )
        names, counts = np.unique(np.asarray(self.files, dtype=object), return_counts=True)
        if (counts > 1).any():
            raise HistoCLIPError(
                f"{self.name}: each file may be listed once; these stand there several times:\n"
                + bullet_list([f"{n} ({c} times)" for n, c in zip(names, counts, strict=True) if c > 1])
            )

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.files)

    def image(self, index: int) -> np.ndarray:
        """Return patch `index` as RGB, shape (H, W, 3), uint8."""
        return self.source.image(int(index))

    def mask(self, index: int) -> np.ndarray | None:
        """Return the class map of patch `index`, shape (H, W), uint8 (0 = none), or None without masks."""
        return self.source.mask(int(index)) if self.has_masks else None

    @property
    def prevalence(self) -> np.ndarray:
        """Fraction of patches in which each class is present, shape (N,)."""
        return self.labels.mean(axis=0)


@dataclass(frozen=True)
class ImageFiles:
    """Images (and masks) that lie as files in a folder.

    Attributes
    ----------
    image_paths : list of Path
        One RGB image each.
    mask_paths : list of (Path or None)
        P or L images, or empty for a data set without masks.
    mask_values : ndarray of shape (256,), uint8
        Maps stored mask values to class numbers: k for the k-th class, 0 for none, 255 for "not allowed".
    """

    image_paths: list[Path]
    mask_paths: list[Path | None]
    mask_values: np.ndarray

    def image(self, index: int) -> np.ndarray:
        """Return image `index` as RGB, shape (H, W, 3), uint8."""
        with Image.open(self.image_paths[index]) as image:
            return np.asarray(image.convert("RGB"))

    def mask(self, index: int) -> np.ndarray | None:
        """Return the class map of image `index`, shape (H, W), uint8, or None."""
        path = self.mask_paths[index] if self.mask_paths else None
        return None if path is None else read_class_map(path, self.mask_values)

    def digest(self, index: int) -> str:
        """Return the BLAKE2 digest of the image file's bytes."""
        return hashlib.blake2b(self.image_paths[index].read_bytes(), digest_size=16).hexdigest()


def read_class_map(path: Path, mask_values: np.ndarray) -> np.ndarray:
    """Read a P or L mask image and translate its values, shape (H, W), uint8.

    Raises
    ------
    HistoCLIPError
        If the image is not single-channel or holds a value that `mask_values` marks with 255.
    """
    with Image.open(path) as image:
        if image.mode not in ("P", "L"):
            raise HistoCLIPError(
                f"{path}: a mask must be a P or L image (one channel of class numbers), this one is {image.mode}."
            )
        stored = np.asarray(image)
    class_map = mask_values[stored]
    if (class_map == 255).any():
        values = np.unique(stored[class_map == 255]).tolist()
        raise HistoCLIPError(f"{path}: mask values {values} name no class.")
    return class_map


def check_images(dataset: PatchDataset, progress: bool = True) -> None:
    """Decode every image and mask once and report all that cannot be used.

    Parameters
    ----------
    dataset : PatchDataset
        What to check.
    progress : bool
        Whether to draw a bar.

    Raises
    ------
    HistoCLIPError
        Listing every unreadable or truncated image, every one smaller than 32 pixels, every mask that does not fit
        its image, and every image whose size is not the usual one: another size is another magnification.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads do: decoding leaves Python
        checks = pool.map(lambda index: _check_image(dataset, index), range(len(dataset)))
        bar = tqdm(checks, total=len(dataset), desc="checking images", unit="patch", disable=not progress)
        shapes, problems = zip(*bar, strict=True)
    usual = Counter(shape for shape in shapes if shape).most_common(1)[0][0] if any(shapes) else None
    listed = [
        f"{file}: {problem or f'{shape[1]}x{shape[0]}, where most patches are {usual[1]}x{usual[0]}'}"
        for file, shape, problem in zip(dataset.files, shapes, problems, strict=True)
        if problem or shape != usual
    ]
    if listed:
        raise HistoCLIPError(
            f"{dataset.name}: {len(listed)} of {len(dataset)} patches cannot be used. Mend or remove:\n"
            + bullet_list(listed, limit=1000)
        )


def _check_image(dataset: PatchDataset, index: int) -> tuple[tuple[int, int] | None, str | None]:
    """Return the shape (H, W) of a patch, and what is wrong with it if something is."""
    try:
        shape = dataset.image(index).shape[:2]
        mask = dataset.mask(index)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
        return None, str(error)
    if min(shape) < MIN_SIDE:
        return shape, f"{shape[1]}x{shape[0]} is too small for a patch"
    if mask is not None and mask.shape != shape:
        return shape, f"the mask is {mask.shape[1]}x{mask.shape[0]}, the image {shape[1]}x{shape[0]}"
    return shape, None
