"""The check of all images and masks of a data set, before anything costly is done with them."""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.common.executors import n_cores
from histoclip_lib.data.base import Note, PatchDataset, coverage

MIN_SIDE = 32  # pixels
FEW = 10  # patches with a class, or without it: with fewer nothing can be concluded of it


@dataclass(frozen=True)
class _Checked:
    """What the check of one patch gives: a problem, or its size and what may contradict its labels."""

    problem: str = ""
    shape: tuple[int, int] | None = None
    digest: bytes = b""  # of the pixels; empty where they are all alike
    covered: np.ndarray | None = None  # share of the mask that each class covers, shape (N,)


def check_images(dataset: PatchDataset, progress: bool = True) -> tuple[Note, ...]:
    """Decode every image and mask once and report all that cannot be used.

    Parameters
    ----------
    dataset : PatchDataset
        What to check.
    progress : bool
        Whether to draw a bar.

    Returns
    -------
    tuple of Note
        What may be wrong, of which nothing is left out: one image under several names with contradicting labels, masks
        that contradict the labels, and patches of one colour.

    Raises
    ------
    HistoCLIPError
        Listing every image and mask that cannot be read (`images.read_rgb` says which these are), every one smaller
        than 32 pixels, every mask that does not fit its image, and every image whose size is not the usual one: another
        size is another magnification.
    """
    with ThreadPoolExecutor(n_cores()) as pool:  # threads do: decoding releases the GIL
        checks = pool.map(lambda index: _check_image(dataset, index), range(len(dataset)))
        checked = list(tqdm(checks, total=len(dataset), desc="checking images", unit="patch", disable=not progress))
    shapes = Counter(patch.shape for patch in checked if patch.shape)
    usual = shapes.most_common(1)[0][0] if shapes else None
    listed = [
        f"{file}: {patch.problem or _size(patch.shape) + ', where most patches are ' + _size(usual)}"
        for file, patch in zip(dataset.files, checked, strict=True)
        if patch.problem or patch.shape != usual
    ]
    if listed:
        raise HistoCLIPError(
            f"{dataset.name}: {len(listed)} of {len(dataset)} patches cannot be used. Replace or remove them:\n"
            + bullet_list(listed, limit=1000)
        )
    return (
        *Note.of("patches of one colour", [f for f, p in zip(dataset.files, checked, strict=True) if not p.digest]),
        *Note.of("images under several names with contradicting labels", _contradicting_copies(dataset, checked)),
        *_contradicting_masks(dataset, checked),
    )


def too_few(dataset: PatchDataset, index: np.ndarray) -> str:
    """Say that nothing can be concluded, and why, where some patches are too few; an empty text where they are not.

    That is where all classes have fewer than 10 patches that show them, or fewer than 10 that do not.
    """
    labels = dataset.labels[index]
    fewest = int(np.minimum((labels == 1).sum(axis=0), (labels == 0).sum(axis=0)).max())
    if fewest >= FEW:
        return ""
    return (
        f"Nothing can be concluded: among the patches held out ({len(index):,}) no class has {FEW} that show it and "
        f"{FEW} that do not."
    )


def _contradicting_copies(dataset: PatchDataset, checked: list[_Checked]) -> list[str]:
    """Return the files that have the same pixels, but a label that is 1 in one of them and 0 in another."""
    copies: dict[bytes, list[int]] = {}
    for index, patch in enumerate(checked):
        if patch.digest:
            copies.setdefault(patch.digest, []).append(index)
    found = []
    for index in copies.values():
        labels = dataset.labels[index]
        differ = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
        if differ.any():
            names = ", ".join(name for name, is_so in zip(dataset.classes, differ, strict=True) if is_so)
            found.append(f"{' = '.join(dataset.files[k] for k in index[:3])}: {names}")
    return found


def _contradicting_masks(dataset: PatchDataset, checked: list[_Checked]) -> tuple[Note, ...]:
    """Note the patches whose mask shows a class that the labels deny, and the reverse."""
    shown, missing = [], []
    for index, patch in enumerate(checked):
        if patch.covered is None or dataset.labels_follow_masks:
            continue
        for name, label, share in zip(dataset.classes, dataset.labels[index], patch.covered, strict=True):
            if label == 0 and share > 0:
                shown.append(f"{dataset.files[index]}: {name} on {share:.1%}")
            elif label == 1 and share == 0:
                missing.append(f"{dataset.files[index]}: {name}")
    return (
        *Note.of("masks that show a class whose label is 0", shown),
        *Note.of("masks that do not show a class whose label is 1", missing),
    )


def _check_image(dataset: PatchDataset, index: int) -> _Checked:
    try:
        image = dataset.image(index)
        mask = dataset.mask(index)
    except (OSError, ValueError) as error:  # HistoCLIPError is a ValueError
        return _Checked(str(error))
    shape = image.shape[:2]
    if min(shape) < MIN_SIDE:
        return _Checked(f"{_size(shape)} is too small for a patch", shape)
    if mask is not None and mask.shape != shape:
        return _Checked(f"the mask is {_size(mask.shape)}, the image {_size(shape)}", shape)
    is_blank = (image == image[0, 0]).all()
    digest = b"" if is_blank else hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()
    return _Checked("", shape, digest, None if mask is None else coverage(mask, len(dataset.classes)))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
