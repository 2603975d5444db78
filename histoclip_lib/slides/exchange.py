"""A slide's result in the forms of other programs: wsinfer CSV, QuPath GeoJSON, OME-TIFF, coordinates in HDF5.

Tables of tiles have the columns `x, y, width, height` in level-0 pixels with OpenSlide's origin, and further `tissue`,
`prob_<class>`, `present_<class>` and `ood`. The memory of every writer does not grow with the slide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.common.files import read_json, replacing
from histoclip_lib.data.regions import as_ring

if TYPE_CHECKING:
    import pandas as pd

WSINFER = {"x": "minx", "y": "miny", "width": "width", "height": "height"}
MAX_BYTES = 2**31  # of a GeoJSON file
MAX_TILES, MAX_SIDE = 100_000_000, 1_000_000  # of coordinates that are read: more is damage
CHUNK = 1000  # tiles that are written at once
STRIP = 256  # side of the TIFF's own tiles, and height of what is held at once


def classes_of(tiles: pd.DataFrame) -> list[str]:
    """Return the classes of a table of tiles, in the order of its columns `prob_<class>`."""
    return [name.removeprefix("prob_") for name in tiles.columns if name.startswith("prob_")]


# wsinfer's CSV


def write_wsinfer_csv(path: str | Path, tiles: pd.DataFrame) -> None:
    """Write `minx, miny, width, height` and `prob_<class>`, the columns of wsinfer's results."""
    columns = [*WSINFER, *(f"prob_{name}" for name in classes_of(tiles))]
    with replacing(path) as temporary:
        tiles[columns].rename(columns=WSINFER).to_csv(temporary, index=False, lineterminator="\n")


def read_wsinfer_csv(path: str | Path) -> pd.DataFrame:
    """Read wsinfer's results as a table of tiles.

    Raises
    ------
    HistoCLIPError
        If a column is missing or holds anything but numbers.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, float_precision="round_trip")
    except (OSError, ValueError, UnicodeError) as error:  # ValueError: all of pandas' own
        raise HistoCLIPError(f"{path} cannot be read as CSV ({error}).") from error
    missing = [name for name in WSINFER.values() if name not in table.columns]
    probabilities = [name for name in table.columns if name.startswith("prob_")]
    if missing or not probabilities:
        lacking = ", ".join(missing or ["prob_<class>"])
        raise HistoCLIPError(f"{path}: no column {lacking}. It has {shown(list(table.columns), 300)}.")
    tiles = table[[*WSINFER.values(), *probabilities]].rename(columns={new: old for old, new in WSINFER.items()})
    words = [
        name
        for name in tiles.columns
        if not pd.api.types.is_numeric_dtype(tiles[name]) or not np.isfinite(tiles[name]).all()
    ]
    if words:
        raise HistoCLIPError(f"{path}: the columns {', '.join(words)} must hold a number on every line.")
    return tiles


# QuPath's GeoJSON


@dataclass(frozen=True, eq=False)
class Annotation:
    """An object of a GeoJSON file.

    Attributes
    ----------
    name : str
        Its class; empty where it has none.
    polygons : tuple of tuple of ndarray
        As in `data.regions.Region`, in the file's own coordinates.
    kind : str
        QuPath's `objectType`: `annotation`, `detection`, `tile`, ...
    measurements : dict of str to float
        By name.
    present : tuple of str or None
        The classes that were decided to be present, in a file written by `write_qupath_geojson`.
    """

    name: str
    polygons: tuple[tuple[np.ndarray, ...], ...]
    kind: str = "annotation"
    measurements: dict[str, float] = field(default_factory=dict)
    present: tuple[str, ...] | None = None


def write_qupath_geojson(path: str | Path, tiles: pd.DataFrame, bounds: tuple[int, int] = (0, 0)) -> None:
    """Write tiles as objects that QuPath opens at their place.

    Each is an object of type `tile` with a measurement for each class and no classification, since a tile may show
    several classes. Those that are present stand in its metadata, as a JSON list. The same tiles give the same file.

    Parameters
    ----------
    path : str or Path
        Ends with `.geojson`, by which QuPath knows it.
    tiles : DataFrame
        As this module describes.
    bounds : tuple of int
        `openslide.bounds-x` and `-y` of the slide: where QuPath has its origin. 0 where a slide has none.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for start in range(0, len(tiles), CHUNK):
            features = _features(tiles.iloc[start : start + CHUNK], bounds)
            lines = (json.dumps(feature, ensure_ascii=False, allow_nan=False) for feature in features)
            file.write(("," if start else "") + "\n" + ",\n".join(lines))
        file.write("\n]}\n")


def _features(tiles: pd.DataFrame, bounds: tuple[int, int]) -> Iterator[dict[str, object]]:
    """Yield tiles as objects of QuPath."""
    classes = classes_of(tiles)
    probabilities = tiles[[f"prob_{name}" for name in classes]].to_numpy(np.float64).tolist()
    decided = [f"present_{name}" for name in classes]
    present = tiles[decided].to_numpy(bool).tolist() if set(decided) <= set(tiles.columns) else None
    boxes = tiles[["x", "y", "width", "height"]].to_numpy(np.float64) - np.array([*bounds, 0, 0])
    for index, (x, y, width, height) in enumerate(boxes.tolist()):
        measured = zip(classes, probabilities[index], strict=True)
        properties: dict[str, object] = {
            "objectType": "tile",
            "isLocked": True,
            "measurements": {name: value for name, value in measured if isfinite(value)},
        }
        if present is not None:
            names = [name for name, there in zip(classes, present[index], strict=True) if there]
            properties["metadata"] = {"present": json.dumps(names, ensure_ascii=False)}
        corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
        yield {
            "type": "Feature",
            "id": str(uuid5(NAMESPACE_URL, f"tile {x} {y} {width} {height}")),
            "geometry": {"type": "Polygon", "coordinates": [[[_whole(v) for v in corner] for corner in corners]]},
            "properties": properties,
        }


def _whole(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def read_geojson(path: str | Path) -> tuple[list[Annotation], list[str]]:
    """Read the polygons of a GeoJSON file, as QuPath and others write it.

    A class is `properties.classification.name`, or `properties.classification`, `class_name` or `label` where that is a
    text. Several classes of one object (`classification.names`) are one name, joined with `: ` as QuPath shows them.

    Returns
    -------
    annotations : list of Annotation
        In the order of the file; coordinates are the file's own.
    left_out : list of str
        The type of each geometry that is not a polygon.

    Raises
    ------
    HistoCLIPError
        If it is not GeoJSON, or a ring is not a list of corners.
    """
    path = Path(path)
    content = read_json(path, MAX_BYTES)
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise HistoCLIPError(f"{path} is not GeoJSON: `features` is not a list.")
    annotations, left_out = [], []
    for index, feature in enumerate(features):
        place = f"{path}, feature {index + 1}"
        if not isinstance(feature, dict) or not isinstance(geometry := feature.get("geometry"), dict):
            raise HistoCLIPError(f"{place}: is not GeoJSON: it has no geometry.")
        kind, coordinates = geometry.get("type"), geometry.get("coordinates")
        if kind not in ("Polygon", "MultiPolygon"):
            left_out.append(str(kind))
            continue
        polygons = [coordinates] if kind == "Polygon" else coordinates
        if not isinstance(polygons, list) or not all(isinstance(rings, list) and rings for rings in polygons):
            raise HistoCLIPError(f"{place}: is not GeoJSON: a {kind} has a list of rings.")
        rings = tuple(tuple(as_ring(ring, place) for ring in rings) for rings in polygons)
        annotations.append(_annotation(feature.get("properties"), rings, place))
    return annotations, left_out


def _annotation(properties: object, polygons: tuple, place: str) -> Annotation:
    properties = properties if isinstance(properties, dict) else {}
    named = properties.get("classification")
    if isinstance(named, dict):
        several = named.get("names")  # as QuPath since 0.5 has them
        named = named.get("name") or (": ".join(map(str, several)) if isinstance(several, list) else None)
    names = (named, properties.get("class_name"), properties.get("label"))
    measured = properties.get("measurements") or {}
    if isinstance(measured, list):  # as QuPath before 0.4 has them
        measured = {each.get("name"): each.get("value") for each in measured if isinstance(each, dict)}
    if not isinstance(measured, dict):
        raise HistoCLIPError(f"{place}: `measurements` must be names and numbers, not {shown(measured)}.")
    metadata = properties.get("metadata")
    return Annotation(
        next((name for name in names if isinstance(name, str) and name), ""),
        polygons,
        str(properties.get("objectType") or properties.get("object_type") or "annotation"),
        {str(name): float(value) for name, value in measured.items() if isinstance(value, int | float)},
        _present(metadata.get("present")) if isinstance(metadata, dict) else None,
    )


def _present(text: object) -> tuple[str, ...] | None:
    try:
        names = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


# A heat map as OME-TIFF


def write_heatmap(
    path: str | Path,
    tiles: pd.DataFrame,
    slide_size: tuple[int, int],
    mpp: float,
    attention: np.ndarray | None = None,
) -> None:
    """Write an OME-TIFF with a channel for each class: probabilities at the tiles' places, NaN where there is none.

    A pixel is one step of the grid of tiles, or with `attention` one cell of a tile's attention map; its physical size
    says so to other programs. Where tiles overlap it is their mean. The map begins at the slide's corner and is placed
    to the nearest pixel of its own.

    Parameters
    ----------
    path : str or Path
        Ends with `.ome.tif`.
    tiles : DataFrame
        T tiles, as this module describes, all of one size.
    slide_size : tuple of int
        Width and height of level 0, in pixels.
    mpp : float
        Micrometres per pixel of level 0.
    attention : ndarray of shape (T, N, g, g), optional
        Attention of each class within each tile, not negative. It is scaled so that its largest cell has the tile's
        probability. May be a memory map: tiles are read in the order of their rows.

    Raises
    ------
    HistoCLIPError
        If tiles differ in size, or attention does not fit them.
    """
    import tifffile

    classes = classes_of(tiles)
    grid = _Grid.of(tiles, slide_size, attention)
    if attention is not None and attention.shape[:2] != (len(tiles), len(classes)):
        raise HistoCLIPError(
            f"attention has shape {attention.shape}, but there are {len(tiles)} tiles of {len(classes)} classes."
        )
    micrometres = grid.step * mpp
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": classes},
        "PhysicalSizeX": micrometres,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": micrometres,
        "PhysicalSizeYUnit": "µm",
    }
    pixels = (
        strip[:, left : left + STRIP]
        for k, name in enumerate(classes)
        for strip in grid.strips(
            tiles[f"prob_{name}"].to_numpy(np.float32), None if attention is None else attention, k
        )
        for left in range(0, grid.width, STRIP)
    )
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary,
            pixels,
            shape=(len(classes), grid.height, grid.width),
            dtype=np.float32,
            tile=(STRIP, STRIP),
            ome=True,
            photometric="minisblack",
            compression="zlib",
            resolution=(1e4 / micrometres, 1e4 / micrometres),
            resolutionunit="CENTIMETER",
            metadata=metadata,
        )


def _step(x: np.ndarray, y: np.ndarray, side: float) -> float:
    """Return the step of a grid of tiles: the typical distance between neighbours in a row, a tile's side at most.

    The smallest distance of any two would not do: CLAM begins a grid of its own at each piece of tissue. Corners are
    whole pixels, so distances are one pixel more or less than the step, which is their mean.
    """
    order = np.lexsort((x, y))
    gaps = np.diff(x[order])[np.diff(y[order]) == 0]
    gaps = gaps[(gaps > 0) & (gaps <= side + 1)]
    return float(gaps[np.abs(gaps - np.median(gaps)) <= 1].mean()) if len(gaps) else float(side)


@dataclass(frozen=True)
class _Grid:
    """Where tiles lie on a map: `step` is a pixel of the map in level-0 pixels, `span` a tile in pixels of the map."""

    step: float
    span: int
    rows: np.ndarray
    columns: np.ndarray
    height: int
    width: int

    @classmethod
    def of(cls, tiles: pd.DataFrame, slide_size: tuple[int, int], attention: np.ndarray | None) -> _Grid:
        sizes = tiles[["width", "height"]].drop_duplicates().to_numpy(float)
        if len(sizes) != 1 or sizes[0, 0] != sizes[0, 1]:
            raise HistoCLIPError(f"a heat map needs square tiles of one size, not {shown(sizes.tolist())}.")
        side = sizes[0, 0]
        x, y = tiles["x"].to_numpy(float), tiles["y"].to_numpy(float)
        step = _step(x, y, side) if attention is None else side / attention.shape[-1]
        width, height = (max(1, int(np.ceil(length / step))) for length in slide_size)
        span = max(1, round(side / step))
        return cls(step, span, np.rint(y / step).astype(int), np.rint(x / step).astype(int), height, width)

    def strips(self, values: np.ndarray, attention: np.ndarray | None, k: int) -> Iterator[np.ndarray]:
        """Yield the map of one class from top to bottom, each STRIP rows high (the last fewer), float32."""
        order = np.argsort(self.rows, kind="stable")
        rows = self.rows[order]
        for top in range(0, self.height, STRIP):
            shape = min(STRIP, self.height - top), self.width
            total, count = np.zeros(shape), np.zeros(shape, dtype=np.int32)
            first, last = np.searchsorted(rows, [top - self.span + 1, top + shape[0]])
            here = order[first:last]
            pieces = np.broadcast_to(values[here, None, None], (len(here), self.span, self.span))
            if attention is not None:
                weights = np.asarray(attention[here, k], dtype=np.float64)
                highest = weights.max(axis=(1, 2), keepdims=True, initial=0)
                pieces = pieces * weights / np.maximum(highest, np.finfo(float).tiny)
            steps = np.arange(self.span)
            row = np.broadcast_to((self.rows[here, None] - top + steps)[:, :, None], pieces.shape)
            column = np.broadcast_to((self.columns[here, None] + steps)[:, None, :], pieces.shape)
            inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
            np.add.at(total, (row[inside], column[inside]), pieces[inside])
            np.add.at(count, (row[inside], column[inside]), 1)
            yield np.where(count, total / np.maximum(count, 1), np.nan).astype(np.float32)


# Coordinates of other programs


def read_coordinates(path: str | Path) -> pd.DataFrame:
    """Read where TRIDENT or CLAM put its patches: `x, y, width, height` in level-0 pixels.

    The side is the attribute `patch_size_level0` of `coords` (TRIDENT), else `patch_size` times `downsample` (CLAM,
    whose patches are `patch_size` pixels of the level `patch_level`).

    Raises
    ------
    HistoCLIPError
        If it is not HDF5, has no `coords` of shape (T, 2), or does not say how large a patch is.
    """
    import h5py
    import pandas as pd

    try:
        with h5py.File(path) as file:
            found = file.get("coords")
            shape = getattr(found, "shape", None)
            if shape is None or len(shape) != 2 or not 0 < shape[0] <= MAX_TILES or shape[1] != 2:
                held = f"one of shape {shape}" if shape else shown(list(file), 300)
                raise HistoCLIPError(f"{path}: needs a data set `coords` with x and y of each patch, but has {held}.")
            coordinates, facts = found[()].astype(np.int64), dict(found.attrs)
    except HistoCLIPError:
        raise
    except Exception as error:  # h5py raises some ten kinds on damaged files
        raise HistoCLIPError(f"{path}: is not an HDF5 file that can be read ({error}).") from error
    side = [_number(facts, name) for name in ("patch_size_level0", "patch_size")]
    downsample = _number(facts, "downsample") or (1.0 if _number(facts, "patch_level") == 0 else None)
    if not side[0] and (side[1] is None or downsample is None):
        raise HistoCLIPError(
            f"{path}: `coords` does not say how large a patch is at level 0. It needs the attribute patch_size_level0, "
            f"or patch_size and downsample; it has {', '.join(map(str, facts)) or 'none'}."
        )
    side0 = round(side[0] or side[1] * downsample)
    if not 0 < side0 < MAX_SIDE:
        raise HistoCLIPError(f"{path}: a patch of {side0:,} level-0 pixels is impossible.")
    return pd.DataFrame(coordinates, columns=["x", "y"]).assign(width=side0, height=side0)


def _number(facts: dict[str, object], name: str) -> float | None:
    """Return an attribute as a number: the first of several, None where it is none."""
    try:
        value = float(np.ravel(facts[name])[0])
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return value if np.isfinite(value) else None
