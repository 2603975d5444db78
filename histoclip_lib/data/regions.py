"""Regions of an image, as polygons with holes or run lengths, and the pixels that they cover."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from histoclip_lib.common.errors import HistoCLIPError, shown


@dataclass(frozen=True, eq=False)
class Region:
    """A part of an image that shows one class.

    Attributes
    ----------
    name : str
        Its class.
    polygons : tuple of tuple of ndarray
        Each polygon is its outer ring and then its holes; a ring has shape (V, 2), float64, x and y in pixels of the
        image, where the first pixel reaches from 0 to 1. The region is the union of its polygons.
    runs : ndarray of int64, or None
        Instead of polygons: lengths of the runs of pixels without and with the region, in turn, down one column of the
        image after the other, as COCO has them. A bitmap of each region would not fit into memory.
    size : tuple of int
        Height and width of that image.
    """

    name: str
    polygons: tuple[tuple[np.ndarray, ...], ...] = ()
    runs: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)

    def bitmap(self) -> np.ndarray:
        """Return the pixels that `runs` cover, shape `size`, bool."""
        return np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs).reshape(self.size[::-1]).T

    @cached_property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge, in pixels; with `runs`, those of the image."""
        if self.runs is not None:
            return 0.0, 0.0, float(self.size[1]), float(self.size[0])
        outer = np.concatenate([rings[0] for rings in self.polygons])
        return *outer.min(axis=0).tolist(), *outer.max(axis=0).tolist()

    @cached_property
    def area(self) -> float:
        """In square pixels, holes taken off."""
        if self.runs is not None:
            return float(self.runs[1::2].sum())
        areas = [[abs(_shoelace(ring)) for ring in rings] for rings in self.polygons]
        return sum(outer - sum(holes) for outer, *holes in areas)


@dataclass(frozen=True)
class Field:
    """A part of an image as a patch shows it.

    Attributes
    ----------
    x, y : float
        Its upper left corner, in pixels of the image.
    scale : float
        Pixels of the patch for each pixel of the image.
    height, width : int
        In pixels of the patch.
    """

    x: float
    y: float
    scale: float
    height: int
    width: int


def covered(region: Region, field: Field) -> np.ndarray:
    """Return which pixels of a field have their centre in a region, shape (height, width), bool."""
    covers = np.zeros((field.height, field.width), dtype=bool)
    if region.runs is not None:
        rows = np.floor(field.y + (np.arange(field.height) + 0.5) / field.scale).astype(int)
        columns = np.floor(field.x + (np.arange(field.width) + 0.5) / field.scale).astype(int)
        height, width = region.size
        row_exists, column_exists = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        covers[np.ix_(row_exists, column_exists)] = region.bitmap()[np.ix_(rows[row_exists], columns[column_exists])]
        return covers
    origin = np.array([field.x, field.y])
    for rings in region.polygons:
        covers |= fill([(ring - origin) * field.scale for ring in rings], field.height, field.width)
    return covers


def fill(rings: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return which pixels have their centre within an odd number of rings, shape (height, width), bool.

    Each edge toggles the rest of a row to the right of where it crosses the row's centre line; the time does not depend
    on pixels times vertices, as it would with a test of each pixel.

    Parameters
    ----------
    rings : sequence of ndarray of shape (V, 2)
        x and y of the corners; a ring may end with its first corner or not.
    """
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    upper, lower = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    first = np.ceil(upper - 0.5).clip(0, height).astype(int)  # the first row whose centre line the edge crosses
    n_rows = (np.ceil(lower - 0.5).clip(0, height).astype(int) - first).clip(0)
    edge = np.repeat(np.arange(len(starts)), n_rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows) + first[edge]
    (x0, y0), (x1, y1) = starts[edge].T, ends[edge].T
    crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    toggles = np.zeros((height, width + 1), dtype=np.uint8)
    np.bitwise_xor.at(toggles, (row, np.ceil(crossing - 0.5).clip(0, width).astype(int)), 1)
    return np.bitwise_xor.accumulate(toggles, axis=1)[:, :width].astype(bool)


def class_map(regions: Iterable[Region], classes: Sequence[str], field: Field) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each pixel of a field, and the share of the field that each class covers.

    Where regions of different classes overlap, the smaller region lies on top: it is the finer statement.

    Returns
    -------
    drawn : ndarray of shape (height, width), uint8
        k for the k-th class, 0 for none.
    coverage : ndarray of shape (N,), float64
        Of each class, also where another lies on top of it.
    """
    drawn = np.zeros((field.height, field.width), dtype=np.uint8)
    areas = np.zeros((len(classes), field.height, field.width), dtype=bool)
    order = {name: place for place, name in enumerate(classes)}
    for region in sorted(regions, key=lambda region: -region.area):
        covers = covered(region, field)
        drawn[covers] = order[region.name] + 1
        areas[order[region.name]] |= covers
    return drawn, areas.mean(axis=(1, 2))


def _shoelace(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def as_ring(corners: object, place: str) -> np.ndarray:
    """Return a list of corners from a file as a ring, shape (V, 2).

    Raises
    ------
    HistoCLIPError
        If these are not at least three pairs of finite numbers.
    """
    try:
        ring = np.array([corner[:2] for corner in corners], dtype=np.float64)  # some write a third number, 0
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1:] != (2,) or len(ring) < 3 or not np.isfinite(ring).all():
        raise HistoCLIPError(f"{place}: a ring is a list of at least three [x, y], not {shown(corners)}.")
    return ring


def from_run_lengths(name: str, counts: object, height: int, width: int, place: str) -> Region:
    """Return the region of COCO's run lengths, a list of numbers or a text.

    In a text each number is stored in groups of five bits and, from the third on, as the difference to the one two
    before it (https://github.com/cocodataset/cocoapi, `maskApi.c`).

    Raises
    ------
    HistoCLIPError
        If the runs are not as many pixels as the image has.
    """
    try:
        runs = _uncompressed(counts) if isinstance(counts, str) else [int(run) for run in counts]
    except (TypeError, ValueError, IndexError, OverflowError):
        runs = [-1]
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise HistoCLIPError(f"{place}: the run lengths do not add up to {width}x{height} pixels: {shown(counts)}.")
    return Region(name, runs=np.array(runs, dtype=np.int64), size=(height, width))


def _uncompressed(text: str) -> list[int]:
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
