"""The check of all images and masks of a data set, before anything costly is done with them."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.data.base import PatchDataset

MIN_SIDE = 32  # pixels


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
        Listing every image and mask that cannot be read (`images.read_rgb` says which these are), every one smaller
        than 32 pixels, every mask that does not fit its image, and every image whose size is not the usual one: another
        size is another magnification.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads do: decoding releases the GIL
        checks = pool.map(lambda index: _check_image(dataset, index), range(len(dataset)))
        bar = tqdm(checks, total=len(dataset), desc="checking images", unit="patch", disable=not progress)
        shapes, problems = zip(*bar, strict=True)
    usual = Counter(filter(None, shapes)).most_common(1)[0][0] if any(shapes) else None
    listed = [
        f"{file}: {problem or f'{shape[1]}x{shape[0]}, where most patches are {usual[1]}x{usual[0]}'}"
        for file, shape, problem in zip(dataset.files, shapes, problems, strict=True)
        if problem or shape != usual
    ]
    if listed:
        raise HistoCLIPError(
            f"{dataset.name}: {len(listed)} of {len(dataset)} patches cannot be used. Replace or remove them:\n"
            + bullet_list(listed, limit=1000)
        )


def _check_image(dataset: PatchDataset, index: int) -> tuple[tuple[int, int] | None, str | None]:
    """Return the shape (H, W) of a patch, and what is wrong with it if something is."""
    try:
        shape = dataset.image(index).shape[:2]
        mask = dataset.mask(index)
    except (OSError, ValueError) as error:  # HistoCLIPError is a ValueError
        return None, str(error)
    if min(shape) < MIN_SIDE:
        return shape, f"{shape[1]}x{shape[0]} is too small for a patch"
    if mask is not None and mask.shape != shape:
        return shape, f"the mask is {mask.shape[1]}x{mask.shape[0]}, the image {shape[1]}x{shape[0]}"
    return shape, None
