"""Where the tissue of a slide is: found in a thumbnail, or read from a mask or annotations of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.common.files import read_json
from histoclip_lib.data.images import as_rgb, has_many_bits
from histoclip_lib.data.regions import as_ring

if TYPE_CHECKING:
    from histoclip_lib.slides.reading import Slide

MASK_MPP = 8.0  # micrometres per pixel of a mask
MAX_SIDE = 4096  # pixels of a mask
PALEST, FULL = 0.07, 0.15  # saturation between which Otsu's threshold may lie: below is glass, above is tissue
SPECK = 0.02  # mm2; smaller pieces are dust
HOLE = 0.01  # mm2; smaller holes belong to the tissue: vessels, fat cells
GAP = 16.0  # micrometres between pieces of loose tissue that are one
HALO = 50.0  # micrometres around a pen mark, which is out of focus
RED, BLUE = (0.965, 0.07), (0.2, 0.62)  # hues of ink, of 1; haematoxylin and eosin lie between 0.63 and 0.94
MOST_ASPECT = 1.02  # between a mask and its slide
MAX_JSON = 2**28


def mask_thumbnail(slide: Slide) -> tuple[np.ndarray, float]:
    """Return a thumbnail of a slide for `tissue_mask`, and its micrometres per pixel."""
    longer = max(slide.width, slide.height)
    thumbnail = slide.thumbnail(max(1, min(MAX_SIDE, longer, round(longer * slide.mpp / MASK_MPP))))
    return thumbnail, slide.mpp * longer / max(thumbnail.shape[:2])


def tissue_mask(thumbnail: np.ndarray, mpp: float = MASK_MPP) -> np.ndarray:
    """Find the tissue on a thumbnail.

    Tissue is what is more saturated than glass: Otsu's threshold of the saturation, kept between `PALEST` and `FULL`,
    so that glass alone is not divided and pale tissue beside dark is not lost. Pen marks are removed by their colour:
    red, green, blue and black ink, with the blurred halo around them. Pieces smaller than `SPECK` are removed and holes
    smaller than `HOLE` filled.

    Parameters
    ----------
    thumbnail : ndarray of shape (h, w, 3), uint8
        RGB of a whole slide.
    mpp : float
        Its micrometres per pixel.

    Returns
    -------
    ndarray of shape (h, w), bool

    References
    ----------
    Otsu, A threshold selection method from gray-level histograms, IEEE Transactions SMC 9, 1979.

    Examples
    --------
    >>> glass = np.full((100, 100, 3), 243, np.uint8)
    >>> glass[20:60, 30:70] = 190, 110, 170
    >>> int(tissue_mask(glass).sum())
    1600
    """
    from skimage.color import rgb2hsv
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import isotropic_closing, isotropic_dilation, remove_small_holes, remove_small_objects

    hue, saturation, value = np.moveaxis(
        rgb2hsv(gaussian(thumbnail.astype(np.float32) / 255, 0.7, channel_axis=-1)), -1, 0
    )
    of_a_mm2 = (1000 / mpp) ** 2
    ink = remove_small_objects(_ink(hue, saturation, value), max_size=int(SPECK * of_a_mm2))
    ink = isotropic_dilation(ink, HALO / mpp)
    clean = saturation[~ink]
    threshold = np.clip(threshold_otsu(clean), PALEST, FULL) if clean.size and np.ptp(clean) else PALEST
    mask = isotropic_closing((saturation > threshold) & ~ink, GAP / mpp)
    mask = remove_small_holes(mask, max_size=int(HOLE * of_a_mm2))
    return remove_small_objects(mask, max_size=int(SPECK * of_a_mm2)) & ~ink


def _ink(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return where the colour is that of a pen: what is surely ink, and what like it is connected to it."""
    from skimage.filters import apply_hysteresis_threshold

    red, blue = (hue > RED[0]) | (hue < RED[1]), (hue > BLUE[0]) & (hue < BLUE[1])
    grey = (value < 0.35) & (saturation * value < 0.08)
    sureness = np.select(
        [
            red & (saturation > 0.65),
            blue & (saturation > 0.35),
            grey,
            red & (saturation > 0.3),
            blue & (saturation > 0.1),
        ],
        [2, 2, 2, 1, 1],
        0,
    )
    return apply_hysteresis_threshold(sureness, 0.5, 1.5)


def tissue_mask_from(path: str | Path, slide: Slide) -> np.ndarray:
    """Read where the tissue is from a file.

    Parameters
    ----------
    path : str or Path
        An image with the slide's aspect, of any size, that is not 0 (or not transparent) where tissue is; or GeoJSON
        with polygons as QuPath writes them: pixels of level 0, counted from `slide.bounds`; holes stay holes.
    slide : Slide
        What it belongs to.

    Returns
    -------
    ndarray of shape (h, w), bool
        Of the whole slide.

    Raises
    ------
    HistoCLIPError
        For a file that is neither, whose aspect differs by more than a factor of `MOST_ASPECT`, or without a polygon.
    """
    path = Path(path)
    if path.suffix.casefold() in (".geojson", ".json"):
        return _from_polygons(path, slide)
    return _from_image(path, slide)


def _from_image(path: Path, slide: Slide) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG", "TIFF", "BMP", "JPEG"]) as image:
            many_bits = has_many_bits(image)
            if image.mode in ("P", "L", "1", "I;16"):  # a palette's numbers, not its colours
                mask = np.asarray(image) > (127 if image.format == "JPEG" else 0)
            elif image.has_transparency_data:
                mask = np.asarray(image.convert("RGBA"))[..., 3] > 0
            else:
                mask = as_rgb(image, many_bits, str(path)).max(axis=2) > (127 if image.format == "JPEG" else 0)
    except HistoCLIPError:
        raise
    except Exception as error:  # Pillow raises some ten kinds
        raise HistoCLIPError(
            f"{path} cannot be read as a mask ({error}). Use a PNG with the slide's aspect ratio, at any scale, or "
            "GeoJSON."
        ) from error
    height, width = mask.shape
    ratio = (width / height) / (slide.width / slide.height)
    # a small mask is rounded to whole pixels
    if max(ratio, 1 / ratio) > MOST_ASPECT + 1 / min(width, height):
        raise HistoCLIPError(
            f"{path}: has {width} x {height} pixels, another aspect than the slide {slide.path.name} with "
            f"{slide.width} x {slide.height}. A mask covers the whole slide."
        )
    return mask


def _from_polygons(path: Path, slide: Slide) -> np.ndarray:
    found = read_json(path, MAX_JSON, "Export it from QuPath as GeoJSON.")
    scale = min(1.0, MAX_SIDE / max(slide.width, slide.height), slide.mpp / MASK_MPP)
    size = (max(1, round(slide.width * scale)), max(1, round(slide.height * scale)))
    offset = np.asarray(slide.bounds)
    factor = np.array(size) / (slide.width, slide.height)
    polygons, drawn = _polygons(found, path), Image.new("1", size)
    if not polygons:
        raise HistoCLIPError(f"{path}: holds no Polygon or MultiPolygon. Export annotations of areas from QuPath.")
    for rings in polygons:
        one = Image.new("1", size) if len(rings) > 1 else drawn  # a hole is none in other polygons
        draw = ImageDraw.Draw(one)
        for number, ring in enumerate(rings):
            corners = (as_ring(ring, str(path)) + offset) * factor - 0.5  # to the centres of pixels
            draw.polygon([tuple(corner) for corner in corners], fill=0 if number else 1)
        if one is not drawn:
            drawn.paste(1, mask=one)
    mask = np.asarray(drawn)
    if not mask.any():
        raise HistoCLIPError(
            f"{path}: none of its {len(polygons)} polygons lies on the slide {slide.path.name}, which has "
            f"{slide.width} x {slide.height} pixels. Does it belong to another slide?"
        )
    return mask


def _polygons(found: object, path: Path) -> list[list]:
    """Return the rings of every polygon, in features, collections and lists of features, at any depth."""
    if isinstance(found, list):
        return [rings for each in found for rings in _polygons(each, path)]
    if not isinstance(found, dict):
        raise HistoCLIPError(f"{path}: is not GeoJSON: {shown(found)} was found where an object is expected.")
    kind, corners = found.get("type"), found.get("coordinates")
    if kind in ("Polygon", "MultiPolygon"):
        polygons = [corners] if kind == "Polygon" else corners
        if not isinstance(polygons, list) or not all(isinstance(rings, list) for rings in polygons):
            raise HistoCLIPError(f"{path}: is not GeoJSON: a {kind} has a list of rings, not {shown(corners)}.")
        return polygons
    inside = [found.get(key) for key in ("features", "geometries", "geometry")]
    return [rings for each in inside if each is not None for rings in _polygons(each, path)]
