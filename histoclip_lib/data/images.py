"""Reading one image or mask: which files are accepted, how each kind becomes 8-bit RGB, and which are refused."""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from histoclip_lib.common.errors import HistoCLIPError

# Only these are tried, whatever a file is called: Pillow knows some forty more, and hands EPS to Ghostscript.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000")
MAX_PIXELS = 16_000_000  # held here, before anything is decoded: Pillow's own limit is the user's
MAX_BYTES = 2**28
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
MANY_BITS = ";16"  # in the name of Pillow's raw mode, such as "RGB;16B"
FLOATS = (
    "Which of them is white is not known. Save 8 bits, where they go from 0 to 1 with "
    "`Image.fromarray((255 * tifffile.imread(file)).round().astype('uint8')).save('new.png')`."
)
DARK = 16  # of 255: what 12 bits reach where 16 are expected


def read_rgb(source: Path | bytes, place: str) -> np.ndarray:
    """Read an image as 8-bit RGB.

    Grey and 1-bit images give three equal channels, a palette its colours, CMYK what Pillow converts it to (without
    colour management). Where there is transparency the image is laid on white, which is what a slide shows where there
    is no tissue; an image that is transparent everywhere, with something under it, is refused. Of 16 bits a channel the
    upper 8 are kept, so that 65,535 becomes 255.

    Parameters
    ----------
    source : Path or bytes
        A file, or its content.
    place : str
        How an error calls it.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8

    Raises
    ------
    HistoCLIPError
        For a file that is empty, not a regular file, truncated, damaged or in none of `FORMATS`; of more than
        `MAX_PIXELS` pixels (before any is decoded) or `MAX_BYTES` bytes; with several frames or pages; with an EXIF
        orientation, which a mask and other programs may follow or not; with 32 bits a channel; and with 16 bits of
        which only the lower 12 are used, which would be black.
    """
    with _opened(source, place) as (image, many_bits):
        return as_rgb(image, many_bits, place)


def as_rgb(image: Image.Image, many_bits: bool, place: str) -> np.ndarray:
    """Return an image as 8-bit RGB (H, W, 3), as `read_rgb` says; `many_bits` is what `has_many_bits` said.

    Raises
    ------
    HistoCLIPError
        For 32 bits a channel, 16 bits of which only the lower 12 are used, and an image that is wholly transparent.
    """
    if image.mode in ("I", "F"):
        kind = {"I": "int32", "F": "float32"}[image.mode]
        raise HistoCLIPError(f"{place}: it has 32 bits a pixel ({kind}). {FLOATS}")
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        rgb = np.repeat(grey[..., None], 3, axis=2)
    elif image.has_transparency_data:
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema()[1] == 0 and any(a != b for a, b in layers.convert("RGB").getextrema()):
            raise _refusal(place, "its alpha channel is 0 everywhere, which hides what is there")
        rgb = np.asarray(Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB"))
    else:
        rgb = np.asarray(image.convert("RGB"))
    if many_bits and rgb.size and rgb.max() < DARK:
        raise _refusal(
            place, "it has 16 bits a channel, but no value above 4,095 of 65,535, as if only 12 of them were used"
        )
    return rgb


def has_many_bits(image: Image.Image) -> bool:
    """Whether the file of an image that is not decoded yet has 16 bits a channel; afterwards that is forgotten."""
    return any(MANY_BITS in str(tile.args) for tile in image.tile)


def read_class_map(path: Path, mask_values: np.ndarray) -> np.ndarray:
    """Read a P, L or 1-bit mask image and translate its values, shape (H, W), uint8.

    Raises
    ------
    HistoCLIPError
        If the image is not single-channel or holds a value that `mask_values` marks with 255 or both 1 and 255 for one
        class, and wherever `read_rgb` raises it.
    """
    with _opened(path, str(path)) as (image, _):
        if image.mode not in ("P", "L", "1"):
            raise HistoCLIPError(
                f"{path}: a mask must be a P, L or 1-bit image (one channel of class numbers), not {image.mode}."
            )
        stored = np.asarray(image).astype(np.uint8, copy=False)
    class_map = mask_values[stored]
    if mask_values[255] != 255 and np.isin((1, 255), stored).all():  # 255 may mean "not annotated" there
        raise HistoCLIPError(f"{path}: a mask of one class holds 1 or 255 for it, not both.")
    if (class_map == 255).any():
        values = np.unique(stored[class_map == 255]).tolist()
        raise HistoCLIPError(f"{path}: mask values {values} do not name a class.")
    return class_map


def read_nonzero(source: bytes, place: str) -> np.ndarray:
    """Return where an image of one channel is not 0, shape (H, W), bool; it raises what `read_rgb` does."""
    with _opened(source, place) as (image, _):
        if image.mode not in ("1", "L", "P"):
            raise HistoCLIPError(f"{place}: one channel was expected, this image is {image.mode}.")
        return np.asarray(image) != 0


@dataclass(frozen=True)
class ImageFiles:
    """Images (and masks) that are files in a folder."""

    image_paths: list[Path]
    mask_paths: list[Path | None]  # P or L images; empty for a data set without masks
    mask_values: np.ndarray  # (256,), uint8: stored value to k for the k-th class, 0 for none, 255 for "not allowed"

    def image(self, index: int) -> np.ndarray:
        """Return image `index` as RGB, shape (H, W, 3), uint8; `read_rgb` says how and what is refused."""
        path = self.image_paths[index]
        return read_rgb(path, str(path))

    def mask(self, index: int) -> np.ndarray | None:
        """Return the class map of image `index`, shape (H, W), uint8, or None."""
        path = self.mask_paths[index] if self.mask_paths else None
        return None if path is None else read_class_map(path, self.mask_values)

    def digest(self, index: int) -> str:
        """Return the BLAKE2 digest of the image file's bytes."""
        return hashlib.blake2b(self.image_paths[index].read_bytes(), digest_size=16).hexdigest()


@contextmanager
def _opened(source: Path | bytes, place: str) -> Iterator[tuple[Image.Image, bool]]:
    """Open an image; yield it, decoded, and whether the file has 16 bits a channel. Any fault is a HistoCLIPError."""
    try:
        if isinstance(source, Path):
            _require_file(source, place)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(place, f"{image.width}x{image.height} pixels")
            if getattr(image, "is_animated", False):
                raise _refusal(place, "it holds several frames or pages, and a patch is one image")
            many_bits = has_many_bits(image)
            if (orientation := _orientation(image)) not in (0, 1):
                raise _refusal(
                    place,
                    f"its EXIF orientation is {orientation}: some programs rotate it and others do not, so it may not "
                    "match its mask",
                )
            yield image, many_bits
    except HistoCLIPError:
        raise
    except Image.UnidentifiedImageError as error:
        if kind := _wide_tiff(source):
            raise HistoCLIPError(f"{place}: it holds {kind} values. {FLOATS}") from error
        raise HistoCLIPError(
            f"{place}: is not an image in a supported format ({', '.join(FORMATS)}). Save it as PNG or TIFF."
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(place, str(error)) from error
    except Exception as error:  # Pillow's decoders raise some ten kinds on damaged files
        raise HistoCLIPError(f"{place}: cannot be decoded ({error or type(error).__name__}). Copy it again.") from error


def _wide_tiff(source: Path | bytes) -> str:
    """Return the type of the values of a TIFF with over 16 bits a channel, which Pillow does not read in colour."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            header = file.read(8)
            header += file.read(8) if b"+" in header[2:4] else b""  # BigTIFF
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
            bits, kind = max(tags[TiffImagePlugin.BITSPERSAMPLE]), tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]
    except Exception:  # damaged, or no TIFF
        return ""
    return {2: "int", 3: "float"}.get(kind, "uint") + str(bits) if bits > 16 else ""


def _orientation(image: Image.Image) -> int:
    """Decode an image and return its EXIF orientation, 1 where it has none that can be read."""
    if image.format == "TIFF":  # turned, and the tag removed, when it is decoded
        orientation = image.tag_v2.get(ORIENTATION, 1)
        image.load()
        return orientation
    image.load()
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF around a sound image
        return 1


def _require_file(path: Path, place: str) -> None:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise HistoCLIPError(f"{place}: is a folder or a device, not a file.")
    if facts.st_size == 0:
        raise HistoCLIPError(f"{place}: is empty (0 bytes). Copy it again.")
    if facts.st_size > MAX_BYTES:
        raise _too_large(place, f"{facts.st_size:,} bytes")


def _too_large(place: str, size: str) -> HistoCLIPError:
    return HistoCLIPError(f"{place}: {size} are too many for a patch (at most {MAX_PIXELS:,} pixels). Tile it.")


def _refusal(place: str, reason: str) -> HistoCLIPError:
    return HistoCLIPError(f"{place}: {reason}. Save it again, upright, as an 8-bit RGB PNG.")
