"""Opening a whole slide and reading square fields of it: OpenSlide, tifffile for TIFF, Pillow for plain images."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown, silenced
from histoclip_lib.data.images import DARK, FORMATS, ORIENTATION, as_rgb, has_many_bits

SCANNERS = (".svs", ".ndpi", ".scn", ".mrxs", ".vms", ".vmu", ".svslide", ".bif", ".czi")
DICOM, TIFF = ".dcm", (".tif", ".tiff")
MIN_MPP, MAX_MPP = 0.05, 20.0  # micrometres per pixel of level 0; no scanner of tissue is outside
MOST_ASPECT = 1.05  # of a pixel
MOST_AT_ODDS = 1.5  # between the mpp and what the objective power lets expect
MPP_TIMES_POWER = 10.0  # 20x is 0.5 micrometres, 40x is 0.25
MAX_WHOLE = 2**28  # pixels of an image that is held in memory as a whole: 0.8 GB
CACHE_BYTES = 2**27  # of decoded tiles of a slide
BLOCK = 4096  # pixels of a level, of the side of what is read at once for a thumbnail
ROUNDING = 1e-3  # of a pixel: an edge as near as this lies on it
NEARLY = 1.01  # a level with a downsample of 2.0005 serves where 2 is wanted
MICROMETRES = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "&#181;m": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
RESOLUTION_UNITS = {2: 25_400.0, 3: 10_000.0}  # micrometres in an inch and in a centimetre
GIVE_MPP = "Give its micrometres per pixel: --mpp, the column `mpp` of slides.csv, or open_slide(path, mpp=0.5)."
AS_PYRAMID = "Save it as a tiled pyramid: vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg --Q 90"
SERIES_UID = re.compile(rb"\x20\x00\x0e\x00UI..([0-9.]+)", re.DOTALL)  # DICOM's (0020,000E), explicit little endian
HEADER = 2**21  # bytes of a DICOM file in which that and the first frame are looked for
INSTALL = "Run: pip install 'histoclip[slides]'"


class Pixels(Protocol):
    """The levels of a slide, finest first."""

    sizes: list[tuple[int, int]]  # width and height of each level
    properties: Mapping[str, str]

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return RGB (height, width, 3), uint8, of a box that lies within a level; white where there is nothing."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True, eq=False)
class Slide:
    """An open slide. Several threads may read at once.

    Attributes
    ----------
    path : Path
        The file, or the folder of a DICOM slide.
    width, height : int
        Of level 0, in pixels.
    mpp : float
        Micrometres per pixel of level 0.
    mpp_source : str
        Where that is from: `given`, or the name of the slide's own property.
    level_downsamples : tuple of float
        Of each level, 1.0 first.
    bounds : tuple of int
        Where in level 0 the scanned area begins, as x and y (OpenSlide's `bounds-x`, `bounds-y`); (0, 0) where the
        slide does not say. QuPath counts from there.
    properties : dict of str to str
        What the file says of itself.
    notes : tuple of str
        What a reader of the results should know, a sentence each.
    """

    path: Path
    width: int
    height: int
    mpp: float
    mpp_source: str
    level_downsamples: tuple[float, ...]
    bounds: tuple[int, int]
    properties: dict[str, str]
    pixels: Pixels = field(repr=False)
    notes: tuple[str, ...] = ()

    def __enter__(self) -> Slide:
        """Return the slide."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.pixels.close()

    def read_field(self, x: float, y: float, side0: float, pixels: int) -> np.ndarray:
        """Read a square field.

        It comes from the coarsest level that is at least as fine as wanted, and is then reduced with a bicubic filter
        that covers all pixels (antialiased).

        Parameters
        ----------
        x, y : float
            Left and upper edge, in pixels of level 0; the field may reach over the edge of the slide.
        side0 : float
            Side of the field, in pixels of level 0.
        pixels : int
            Side of the result.

        Returns
        -------
        ndarray of shape (pixels, pixels, 3), uint8
            RGB; white beyond the edge and where the slide is transparent.

        Raises
        ------
        HistoCLIPError
            If the slide is truncated or damaged there.
        """
        return self._resampled(x, y, side0, side0, pixels, pixels)

    def thumbnail(self, max_side: int) -> np.ndarray:
        """Return the whole slide as RGB (h, w, 3), uint8, whose longer side is `max_side`, or less for a small slide.

        Raises
        ------
        HistoCLIPError
            If the slide is truncated or damaged.
        """
        scale = max(1.0, max(self.width, self.height) / max_side)
        width, height = (max(1, round(side / scale)) for side in (self.width, self.height))
        step = max(1, int(BLOCK * self._finer(scale)[1] / scale))
        across, down = self.width / width, self.height / height
        result = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, step):
            for left in range(0, width, step):
                w, h = min(step, width - left), min(step, height - top)
                box = (left * across, top * down, w * across, h * down)
                result[top : top + h, left : left + w] = self._resampled(*box, w, h)
        return result

    def _finer(self, scale: float) -> tuple[int, float]:
        """Return the coarsest level that is finer than a downsample, and its own."""
        return max(pair for pair in enumerate(self.level_downsamples) if pair[1] <= max(1.0, scale * NEARLY))

    def _resampled(self, x: float, y: float, width0: float, height0: float, width: int, height: int) -> np.ndarray:
        level, _ = self._finer(min(width0 / width, height0 / height))
        across, down = self.pixels.sizes[level][0] / self.width, self.pixels.sizes[level][1] / self.height
        left, top, right, bottom = x * across, y * down, (x + width0) * across, (y + height0) * down
        x0, y0 = (math.floor(edge + 1e-6) for edge in (left, top))
        x1, y1 = (math.ceil(edge - 1e-6) for edge in (right, bottom))
        found = self._padded(level, x0, y0, x1 - x0, y1 - y0)
        if found.shape[:2] == (height, width) and max(abs(left - x0), abs(top - y0)) < ROUNDING:
            return found
        box = (max(0.0, left - x0), max(0.0, top - y0), min(right - x0, x1 - x0), min(bottom - y0, y1 - y0))
        return np.asarray(Image.fromarray(found).resize((width, height), Image.Resampling.BICUBIC, box=box))

    def _padded(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a box of a level, white where it reaches over the edge."""
        size = self.pixels.sizes[level]
        x0, y0, x1, y1 = max(0, x), max(0, y), min(size[0], x + width), min(size[1], y + height)
        try:
            found = self.pixels.region(level, x0, y0, x1 - x0, y1 - y0) if x0 < x1 and y0 < y1 else None
        except Exception as error:  # OpenSlide, tifffile and the decoders behind them raise many kinds
            raise HistoCLIPError(
                f"{self.path}: cannot be read at pixel {x0}, {y0} of level {level} ({error}). The file may be "
                "truncated or damaged: copy it again."
            ) from error
        if found is not None and found.shape[:2] == (height, width):
            return found
        result = np.full((height, width, 3), 255, np.uint8)
        if found is not None:
            result[y0 - y : y1 - y, x0 - x : x1 - x] = found
        return result


def open_slide(path: str | Path, mpp: float | None = None) -> Slide:
    """Open a slide, for a `with` statement or until `close`.

    Scanners' formats and DICOM are read with OpenSlide; other TIFF with tifffile, since OpenSlide sees only one level
    and no scale of an OME-TIFF; a large JPEG, PNG, BMP, WebP or JPEG 2000 with Pillow, as a whole. A TIFF in strips is
    read as a whole too.

    Parameters
    ----------
    path : str or Path
        A file; for DICOM also the folder of its files.
    mpp : float, optional
        Micrometres per pixel of level 0. It overrides what the slide says; without it the slide must say.

    Raises
    ------
    HistoCLIPError
        For a file that is not a slide, is damaged, or is not brightfield RGB of 8 or 16 bits; for an image without
        tiles of more than `MAX_WHOLE` pixels. Where `mpp` is not given: for a slide without one, and for one that is
        outside `MIN_MPP` to `MAX_MPP`, differs between x and y by more than a factor of `MOST_ASPECT`, or from what
        the objective power lets expect by more than `MOST_AT_ODDS`.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "section.png"
    >>> Image.new("RGB", (600, 400), "white").save(file)
    >>> with open_slide(file, mpp=0.5) as slide:
    ...     slide.width, slide.height, slide.read_field(x=100, y=50, side0=256, pixels=224).shape
    (600, 400, (224, 224, 3))
    """
    path = Path(path)
    pixels = _open_pixels(path)
    try:
        width, height = pixels.sizes[0]
        value, source, notes = _scale(path, pixels.properties, mpp)
        corner = [int(pixels.properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy"]
        return Slide(
            path=path,
            width=width,
            height=height,
            mpp=value,
            mpp_source=source,
            level_downsamples=tuple((width / w + height / h) / 2 for w, h in pixels.sizes),
            bounds=(corner[0], corner[1]),
            properties=dict(pixels.properties),
            pixels=pixels,
            notes=notes,
        )
    except BaseException:
        pixels.close()
        raise


def slide_files(path: Path) -> list[Path]:
    """Return the files that make a slide: itself, or what is in a DICOM or MIRAX folder."""
    folder = path if path.is_dir() else path.with_suffix("")
    beside = path.is_dir() or path.suffix.casefold() == ".mrxs"
    inside = sorted(file for file in folder.rglob("*") if file.is_file()) if beside and folder.is_dir() else []
    return inside if path.is_dir() else [path, *inside]


def _open_pixels(path: Path) -> Pixels:
    try:
        import openslide
        import tifffile  # noqa: F401
    except ImportError as error:
        raise HistoCLIPError(f"{path}: slides need packages that are not installed ({error}). {INSTALL}") from error
    file = _dicom_file(path) if path.is_dir() else path
    if not file.is_file():
        raise HistoCLIPError(f"{path}: does not exist, or is not a regular file.")
    if file.stat().st_size == 0:
        raise HistoCLIPError(f"{path}: is empty (0 bytes). Copy it again.")
    reasons = []
    try:
        if openslide.OpenSlide.detect_format(file) not in (None, "generic-tiff"):
            return _OpenSlidePixels(openslide.OpenSlide(file), file)
    except Exception as error:  # OpenSlide's own errors, and ctypes's on odd names
        raise HistoCLIPError(
            f"{path}: OpenSlide cannot open it ({error}). It may be truncated: copy it again."
        ) from error
    for reader in (_TiffPixels, _WholeImage):
        try:
            with silenced("tifffile"):
                return reader(file)
        except HistoCLIPError as error:
            raise HistoCLIPError(f"{path}: {error}") from error
        except _NotThisKind as error:
            reasons.append(str(error))
        except Exception as error:
            raise HistoCLIPError(
                f"{path}: cannot be opened ({error or type(error).__name__}). It may be truncated: copy it again."
            ) from error
    with file.open("rb") as stream:
        beginning = shown(stream.read(16))
    raise HistoCLIPError(
        f"{path}: is not a slide or an image. OpenSlide does not recognise it; {'; '.join(reasons)}. "
        f"It begins with {beginning}. Copy it again, or leave it out."
    )


class _NotThisKind(Exception):
    """A file that another reader may know."""


def dicom_series(folder: Path) -> list[Path]:
    """Return the first file of each DICOM series in a folder; a slide is one series, and OpenSlide finds the others."""
    series: dict[bytes | None, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.casefold() == DICOM and file.name[0] != ".":
            with file.open("rb") as stream:
                match = SERIES_UID.search(stream.read(HEADER))
            series.setdefault(match and match[1], file)
    return list(series.values())


def is_dicom_slide(folder: Path) -> bool:
    """Whether a folder is a DICOM slide, and not one in which slides lie."""
    others = any(file.suffix.casefold() in (*SCANNERS, *TIFF) for file in folder.iterdir())
    return not others and len(dicom_series(folder)) == 1


def _dicom_file(folder: Path) -> Path:
    files = dicom_series(folder)
    if not files:
        raise HistoCLIPError(f"{folder}: is a folder without DICOM files (*.dcm). Give a slide's file.")
    if len(files) > 1:
        raise HistoCLIPError(
            f"{folder}: holds {len(files)} DICOM series, but a slide is a single series. Give one of its files:\n"
            + bullet_list([str(file) for file in files])
        )
    return files[0]


class _OpenSlidePixels:
    def __init__(self, slide: object, file: Path) -> None:
        import openslide

        slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        self._slide, self.sizes, self.properties = slide, list(slide.level_dimensions), slide.properties
        self._downsamples = [(self.sizes[0][0] / width, self.sizes[0][1] / height) for width, height in self.sizes]
        self._luma = self.properties.get("dicom.PhotometricInterpretation") == "RGB" and _holds_luma(file)
        self.close = slide.close

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        across, down = self._downsamples[level]
        image = self._slide.read_region((round(x * across), round(y * down)), level, (width, height))
        colours = image.convert("RGB")
        if self._luma:
            colours = Image.frombytes("YCbCr", image.size, colours.tobytes()).convert("RGB")
        if image.getextrema()[3][0] < 255:
            colours = Image.composite(colours, Image.new("RGB", image.size, "white"), image.getchannel("A"))
        return np.asarray(colours)


def _holds_luma(file: Path) -> bool:
    """Whether a DICOM file that calls its JPEG frames RGB holds YCbCr, as Bio-Formats wrote it.

    OpenSlide takes the file at its word, and the slide comes out pink and teal. A JFIF frame, and one whose first
    component is sampled more finely than the others, is YCbCr.
    """
    with file.open("rb") as stream:
        start = stream.read(HEADER)
    first = start.find(b"\xff\xd8\xff")
    if first < 0:
        return False
    with suppress(Exception), Image.open(io.BytesIO(start[first:]), formats=["JPEG"]) as frame:
        return "jfif" in frame.info or frame.layer[0][1:3] != frame.layer[1][1:3]
    return False


class _TiffPixels:
    """A TIFF with a pyramid or without, in tiles or strips, of 8 or 16 bits."""

    def __init__(self, file: Path) -> None:
        import tifffile

        try:
            self._file = tifffile.TiffFile(file)
        except tifffile.TiffFileError as error:
            raise _NotThisKind("it is not TIFF") from error
        try:
            if not self._file.series:
                raise HistoCLIPError("has no image where its header points to: it is truncated. Copy it again.")
            series, *others = self._file.series
            if pages := sum(other.shape == series.shape for other in others):
                raise HistoCLIPError(
                    f"is a stack of {pages + 1} images of the same size; a slide is one: export one RGB image."
                )
            self._pages = [_rgb_page(level) for level in series.levels]
            self.sizes = [(page.imagewidth, page.imagelength) for page in self._pages]
            self.properties = self._own_words()
            self._lock, self._whole = threading.Lock(), {}
            sizes = [page.tilewidth * page.tilelength * 3 for page in self._pages if page.is_tiled]
            self._tile = lru_cache(max(16, CACHE_BYTES // max(sizes, default=CACHE_BYTES)))(self._decode)
            if self._pages[0].dtype.itemsize == 2:
                self._refuse_few_bits()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._tile.cache_clear()
        self._whole.clear()
        self._file.close()

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        page = self._pages[level]
        if not page.is_tiled:
            return self._striped(level)[y : y + height, x : x + width]
        side_x, side_y = page.tilewidth, page.tilelength
        result = np.full((height, width, 3), 255, np.uint8)
        for row in range(y // side_y, (y + height - 1) // side_y + 1):
            for column in range(x // side_x, (x + width - 1) // side_x + 1):
                tile = self._tile(level, row, column)
                if tile is None:
                    continue
                left, top = column * side_x, row * side_y
                x0, y0 = max(x, left), max(y, top)
                x1, y1 = min(x + width, left + tile.shape[1]), min(y + height, top + tile.shape[0])
                result[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return result

    def _striped(self, level: int) -> np.ndarray:
        with self._lock:
            if level not in self._whole:
                self._whole[level] = _rgb8(self._pages[level].asarray(), self._pages[level])
            return self._whole[level]

    def _decode(self, level: int, row: int, column: int) -> np.ndarray | None:
        """Return a tile, cut at the edge of the image; None where the file holds nothing."""
        page = self._pages[level]
        index = row * -(-page.imagewidth // page.tilewidth) + column
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0:
            return None
        with self._lock:
            self._file.filehandle.seek(offset)
            data = self._file.filehandle.read(count)
        if len(data) < count:
            raise HistoCLIPError(f"the file ends within tile {index}")
        return _rgb8(page.decode(data, index, jpegtables=page.jpegtables)[0][0], page)

    def _refuse_few_bits(self) -> None:
        level = len(self._pages) - 1
        width, height = self.sizes[level]
        side_x, side_y = min(width, 256), min(height, 256)
        if self.region(level, (width - side_x) // 2, (height - side_y) // 2, side_x, side_y).max() < DARK:
            raise HistoCLIPError(
                "has 16 bits a channel, but no value above 4,095 of 65,535 in its centre, as if only 12 of them were "
                "used. Save it with 8 bits."
            )

    def _own_words(self) -> dict[str, str]:
        """Return what the file says of its scale, as OpenSlide would call it."""
        page, said = self._pages[0], {}
        pixels = re.search(r"<Pixels\b[^>]*>", self._file.ome_metadata or "")
        for axis in "XY":
            size = pixels and re.search(rf'\bPhysicalSize{axis}="([^"]*)"', pixels[0])
            if not size:
                continue
            unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]*)"', pixels[0])
            with suppress(ValueError, KeyError):  # a unit such as `pixel`
                said[axis] = ("OME PhysicalSize", float(size[1]) * MICROMETRES[unit[1] if unit else "µm"])
        inch = RESOLUTION_UNITS.get(int(page.resolutionunit))
        for axis, resolution in zip("XY", page.resolution, strict=True):
            # A resolution such as 72 dpi is meant for printing and is not a scanner's scale.
            if axis not in said and inch and resolution > 0 and MIN_MPP <= inch / resolution <= MAX_MPP:
                said[axis] = ("TIFF resolution", inch / resolution)
        return {
            "tifffile.software": str(page.software or ""),
            **{f"openslide.mpp-{axis.lower()}": repr(value) for axis, (_, value) in said.items()},
            "histoclip.mpp-source": said["X"][0] if "X" in said else "",
        }


def _rgb_page(level: object) -> object:
    """Return the page of a level of a TIFF series, if it is RGB and can be read in pieces or is small."""
    from tifffile import PHOTOMETRIC

    page = level.keyframe
    if level.axes != "YXS" or page.photometric not in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR):
        raise HistoCLIPError(
            f"is not brightfield RGB: its first image has the axes {level.axes}, the shape {level.shape} and is "
            f"{page.photometric.name}. Fluorescence, stacks and pages are not read: export one RGB image."
        )
    if level.dtype not in (np.uint8, np.uint16) or level.shape[2] not in (3, 4):
        raise HistoCLIPError(
            f"is not RGB of 8 or 16 bits: it has {level.shape[2]} channels of {level.dtype}. Export it with 8 bits."
        )
    if not page.is_tiled and page.imagewidth * page.imagelength > MAX_WHOLE:
        raise _too_large(page.imagewidth, page.imagelength, "in strips")
    return level.pages[0]


def _rgb8(pixels: np.ndarray, page: object) -> np.ndarray:
    """Return 8-bit RGB of decoded pixels, laid on white where there is an alpha channel."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels)
    opacity = pixels[..., 3:] / np.float32(255)
    multiplied = page.extrasamples and page.extrasamples[0] == 1  # associated alpha
    colour = pixels[..., :3] if multiplied else pixels[..., :3] * opacity
    return np.minimum(colour + 255 * (1 - opacity) + 0.5, 255).astype(np.uint8)


def _too_large(width: int, height: int, how: str) -> HistoCLIPError:
    return HistoCLIPError(
        f"{width:,} x {height:,} pixels {how} would have to fit in memory as a whole; the limit is {MAX_WHOLE:,}. "
        f"{AS_PYRAMID}"
    )


class _WholeImage:
    """An image that Pillow reads, held in memory."""

    def __init__(self, file: Path) -> None:
        with _unlimited(file) as image:
            if image.width * image.height > MAX_WHOLE:
                raise _too_large(image.width, image.height, f"of a {image.format}")
            if getattr(image, "is_animated", False):
                raise HistoCLIPError("holds several frames, but a slide is a single image.")
            self.sizes, self.properties = [image.size], {}
            many_bits = has_many_bits(image)
            orientation = image.getexif().get(ORIENTATION, 1)
            if orientation not in (0, 1):
                raise HistoCLIPError(
                    f"its EXIF orientation is {orientation}: some programs rotate it, others do not. Save it upright."
                )
            self._rgb = as_rgb(image, many_bits, str(file))

    def close(self) -> None:
        self._rgb = None

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return self._rgb[y : y + height, x : x + width]


def _unlimited(file: Path) -> Image.Image:
    """Open an image without Pillow's limit of pixels, which is the user's; the caller holds one before decoding."""
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        with file.open("rb") as stream:
            known = accept is None or accept(stream.read(16))
        if known is True or (known and not isinstance(known, str)):
            with suppress(SyntaxError):  # the plugins' word for another format
                return factory(str(file), str(file))
    raise _NotThisKind(f"Pillow does not know it as {', '.join(FORMATS)}")


def _scale(path: Path, properties: Mapping[str, str], given: float | None) -> tuple[float, str, tuple[str, ...]]:
    """Return the micrometres per pixel, their source, and notes."""
    own = [_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise HistoCLIPError(f"{path}: mpp {given} was given; expected a number above 0, such as 0.5.")
        if own[0] and own[0] > 0 and max(own[0], given) / min(own[0], given) > MOST_ASPECT:
            return float(given), "given", (f"The mpp given, {given:g}, overrides that of the slide, {own[0]:g}.",)
        return float(given), "given", ()
    power = _number(properties.get("openslide.objective-power"))
    if own[0] is None or own[1] is None:
        hint = f" Its objective power is {power:g}, with which {MPP_TIMES_POWER / power:g} is usual." if power else ""
        raise HistoCLIPError(f"{path}: does not say its scale.{hint} {GIVE_MPP}")
    for value in own:
        if not MIN_MPP <= value <= MAX_MPP:
            raise HistoCLIPError(
                f"{path}: says {value:g} micrometres per pixel, which cannot be ({MIN_MPP:g} to {MAX_MPP:g} can). "
                + GIVE_MPP
            )
    if max(own) / min(own) > MOST_ASPECT:
        raise HistoCLIPError(
            f"{path}: says {own[0]:g} micrometres per pixel in x and {own[1]:g} in y: its pixels are not square. "
            + GIVE_MPP
        )
    mpp = (own[0] + own[1]) / 2
    if power:
        usual = MPP_TIMES_POWER / power
        if max(mpp / usual, usual / mpp) > MOST_AT_ODDS:
            raise HistoCLIPError(
                f"{path}: says {mpp:g} micrometres per pixel and an objective power of {power:g}, with which "
                f"{usual:g} is usual. One of them is wrong. {GIVE_MPP}"
            )
    return mpp, properties.get("histoclip.mpp-source", "openslide.mpp-x"), ()


def _number(text: str | None) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
