"""The picture of a run on the overview: a patch, and beside it where one of its classes is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image

from histoclip_lib.attention import enlarge, square_crop
from histoclip_lib.datasets.base import PatchDataset
from histoclip_lib.files import replacing

SIZE = (480, 320)  # pixels, 3:2
GAP = 4
COLOURS = 255  # of the palette; a picture in all colours takes three times the bytes


def save_thumbnail(
    path: Path,
    patches: PatchDataset,
    rows: np.ndarray,
    maps: np.ndarray,
    probabilities: np.ndarray,
    chosen: list[int],
) -> None:
    """Write the thumbnail of a run as PNG: the first of the chosen patches and the attention of its surest class.

    Parameters
    ----------
    path : Path
        The file.
    patches : PatchDataset
        The data set.
    rows : ndarray of int, shape (B,)
        The patches that `maps` (B, N, g, g) and `probabilities` (B, N) belong to.
    maps, probabilities : ndarray
        See above.
    chosen : list of int
        Positions in `rows`, as `galleries.choose_for_attention` returns; without any the first patch is drawn.
    """
    position = chosen[0] if chosen else 0
    image = square_crop(patches.image(rows[position]))
    picture = side_by_side(image, maps[position, probabilities[position].argmax()])
    with replacing(path) as temporary:
        Image.fromarray(picture).quantize(COLOURS, dither=Image.Dither.FLOYDSTEINBERG).save(temporary, "PNG")


def side_by_side(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Return a patch on the left and the same with attention over it on the right, shape (320, 480, 3), uint8.

    Each half shows the middle of the patch at its full height.

    Parameters
    ----------
    image : ndarray of shape (S, S, 3), uint8
        What the encoder saw.
    attention : ndarray of shape (g, g)
        One map.
    """
    width, height = SIZE
    large = np.asarray(Image.fromarray(image).resize((height, height), Image.Resampling.LANCZOS), dtype=float)
    heat = enlarge(attention / max(attention.max(), np.finfo(float).tiny), height)
    colour = 255 * colormaps["inferno"](heat)[..., :3]
    over = 0.45 * large.mean(axis=2, keepdims=True) + 0.55 * colour
    half = (width - GAP) // 2
    left = (height - half) // 2
    picture = np.full((height, width, 3), 255.0)
    picture[:, :half] = large[:, left : left + half]
    picture[:, -half:] = over[:, left : left + half]
    return picture.round().astype(np.uint8)
