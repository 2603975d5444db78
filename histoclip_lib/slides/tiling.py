"""The tiles of a slide: a grid of fields with the size of the training patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histoclip_lib.common.errors import HistoCLIPError

if TYPE_CHECKING:
    import pandas as pd

    from histoclip_lib.slides.reading import Slide

MAX_TILES = 10_000_000


def tiles(
    slide: Slide,
    field_um: float,
    overlap: float = 0.0,
    mask: np.ndarray | None = None,
    min_tissue: float = 0.5,
    coordinates: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the tiles of a slide, row by row from the top left.

    The grid begins at pixel (0, 0) of level 0. The last tiles of a row and a column may reach over the edge, where they
    are white.

    Parameters
    ----------
    slide : Slide
        What is tiled.
    field_um : float
        Side of a tile in micrometres: that of the training patches.
    overlap : float
        Part of a tile's side that it shares with its neighbour, from 0 to 0.9.
    mask : ndarray of bool, shape (h, w), optional
        Where tissue is, over the whole slide; without it every tile is kept, and `tissue` is NaN.
    min_tissue : float
        Smallest tissue fraction of a tile that is kept, from 0 to 1.
    coordinates : DataFrame, optional
        Tiles that another program chose, with `x` and `y` and, where they are not those of `field_um`, `width` and
        `height`, in pixels of level 0. They are taken as they are.

    Returns
    -------
    DataFrame of `x`, `y`, `width`, `height` (int64) and `tissue` (float32)
        In pixels of level 0; `tissue` is the part of the tile that is tissue.

    Raises
    ------
    HistoCLIPError
        For values out of range, a slide smaller than a tile, more than `MAX_TILES` tiles, and coordinates that are not
        square, do not lie on the slide, or of which none lies on the tissue.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> print(tiles(SimpleNamespace(path="a.svs", width=600, height=300, mpp=0.5), field_um=128).to_string())
         x    y  width  height  tissue
    0    0    0    256     256     NaN
    1  256    0    256     256     NaN
    2  512    0    256     256     NaN
    3    0  256    256     256     NaN
    4  256  256    256     256     NaN
    5  512  256    256     256     NaN
    """
    import pandas as pd

    if not 0 <= overlap <= 0.9:
        raise HistoCLIPError(f"overlap: {overlap} was given; expected a fraction of a tile from 0 to 0.9.")
    if not 0 <= min_tissue <= 1:
        raise HistoCLIPError(f"min_tissue: {min_tissue} was given; expected a fraction of a tile from 0 to 1.")
    if coordinates is not None:
        table = _given(slide, coordinates, round(field_um / slide.mpp))
    else:
        x, y, side = _grid(slide, field_um / slide.mpp, 1 - overlap)
        table = pd.DataFrame({"x": x, "y": y, "width": side, "height": side})
    if mask is None:
        return table.assign(tissue=np.float32(np.nan))
    table = table.assign(tissue=tissue_fraction(slide, mask, table))
    if coordinates is not None:
        if not table.tissue.any():
            raise HistoCLIPError(
                f"{slide.path}: none of its {len(table):,} coordinates lies on the tissue that was given. Do mask and "
                "coordinates belong to the same slide?"
            )
        return table
    return table[(table.tissue >= min_tissue) & (table.tissue > 0)].reset_index(drop=True)


def _grid(slide: Slide, side0: float, step: float) -> tuple[np.ndarray, np.ndarray, int]:
    side = round(side0)
    if min(slide.width, slide.height) < side or side < 1:
        raise HistoCLIPError(
            f"{slide.path}: with {slide.width} x {slide.height} pixels at {slide.mpp:g} micrometres it is smaller than "
            f"a tile of {side} pixels ({side0 * slide.mpp:g} micrometres). Is its mpp right?"
        )
    counts = [int(np.ceil(length / (side0 * step))) for length in (slide.width, slide.height)]
    if counts[0] * counts[1] > MAX_TILES:
        raise HistoCLIPError(
            f"{slide.path}: {counts[0]:,} x {counts[1]:,} tiles of {side} pixels are more than {MAX_TILES:,}. Is its "
            f"mpp of {slide.mpp:g} right?"
        )
    x, y = (np.rint(np.arange(count) * side0 * step).astype(np.int64) for count in counts)
    x, y = x[x < slide.width], y[y < slide.height]
    return np.tile(x, len(y)), np.repeat(y, len(x)), side


def _given(slide: Slide, coordinates: pd.DataFrame, side: int) -> pd.DataFrame:
    import pandas as pd

    if missing := [name for name in ("x", "y") if name not in coordinates]:
        raise HistoCLIPError(f"coordinates: the columns {missing} are missing.")
    columns = {"x": coordinates["x"], "y": coordinates["y"]}
    columns |= {name: coordinates.get(name, side) for name in ("width", "height")}
    table = pd.DataFrame(columns).reset_index(drop=True).astype(np.int64)
    if table.empty:
        raise HistoCLIPError(f"{slide.path}: the coordinates given for it are an empty table.")
    if (odd := (table.width != table.height) | (table.width < 1)).any():
        first = table[odd].iloc[0]
        raise HistoCLIPError(
            f"{slide.path}: tiles must be square, but the coordinates give {first.width} x {first.height} pixels."
        )
    outside = (table.x >= slide.width) | (table.y >= slide.height)
    outside |= (table.x + table.width <= 0) | (table.y + table.height <= 0)
    if outside.any():
        first = table[outside].iloc[0]
        raise HistoCLIPError(
            f"{slide.path}: {outside.sum():,} of {len(table):,} coordinates do not lie on its {slide.width} x "
            f"{slide.height} pixels, the first at x {first.x}, y {first.y} with {first.width} x {first.height} pixels. "
            "Do they belong to another slide, or count pixels of another level?"
        )
    return table


def tissue_fraction(slide: Slide, mask: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """Return which part of each tile is tissue, shape (n,), float32; what reaches over the edge is not.

    The area is exact: pixels of the mask at the edge of a tile count with the part that is inside.
    """
    from scipy.ndimage import map_coordinates

    height, width = mask.shape
    summed = np.zeros((height + 1, width + 1))
    summed[1:, 1:] = mask.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    x, y, w, h = (table[name].to_numpy(np.float64) for name in ("x", "y", "width", "height"))
    left, right = (np.clip(edge * width / slide.width, 0, width) for edge in (x, x + w))
    top, bottom = (np.clip(edge * height / slide.height, 0, height) for edge in (y, y + h))

    def above_left(column: np.ndarray, row: np.ndarray) -> np.ndarray:
        return map_coordinates(summed, [row, column], order=1, mode="nearest")

    inside = above_left(right, bottom) - above_left(left, bottom) - above_left(right, top) + above_left(left, top)
    whole = w * h * (width / slide.width) * (height / slide.height)
    return np.clip(np.round(inside / whole, 6), 0, 1).astype(np.float32)
