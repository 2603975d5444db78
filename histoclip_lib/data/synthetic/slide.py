"""A painted whole slide: tissue of the procedural H&E, laid out over a glass slide, as a pyramidal TIFF with its mask.

The slide is painted in overlapping windows by the painter of the patches, with a source of chance that is fixed to the
plane. Windows agree where they overlap, so no seam shows. Only the layout (a twentieth of a byte per pixel) and the
smaller levels of the pyramid take memory that grows with the slide's area.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.special import ndtri

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import n_cores
from histoclip_lib.common.files import replacing
from histoclip_lib.data.synthetic import painting, patches, tissue
from histoclip_lib.data.synthetic.painting import MPP, Appearance

CORE, HALO = 512, 48  # pixels: what a window gives, and what it paints around it; multiples of 16, as JPEG has blocks
CELL = 16  # pixels in a cell of the layout
MASK_FACTOR = 4  # level-0 pixels on a side of a pixel of the mask
LEAST_SIDE, QUALITY, STEPS = 512, 88, 16  # pixels; of the JPEG in the TIFF; positions of a point in a pixel
PEN = np.array([0.06, 0.45, 0.60], dtype=np.float32)  # what blue ink lets through of red, green and blue


def paint_slide(folder: str | Path, width: int = 4608, height: int = 4608, seed: int = 0) -> Path:
    """Paint a slide of a synthetic patient who is in no patch data set, and its mask.

    The tissue has tumor with glands and necrotic middles, stroma with vessels, infiltrates of lymphocytes, and fat;
    around it there are glass and a stroke of a blue pen.

    Parameters
    ----------
    folder : str or Path
        Gets `slide.tif`, a tiled JPEG TIFF with a pyramid of factors 2 and `MPP` in its resolution tags, and
        `slide_mask.png`, a palette image whose pixels are MASK_FACTOR level-0 pixels wide: k for the k-th class of
        `patches.CLASSES`, 0 for none (glass, fat, blood, ink).
    width, height : int
        In pixels, LEAST_SIDE or more; rounded up to whole windows of CORE pixels.
    seed : int
        Decides everything.

    Returns
    -------
    Path
        Of the slide. Files that are there already are kept if both are.

    Raises
    ------
    HistoCLIPError
        If a number is out of range.
    """
    import joblib
    import tifffile

    for name, value, least in (("width", width, LEAST_SIDE), ("height", height, LEAST_SIDE), ("seed", seed, 0)):
        if value < least:
            raise HistoCLIPError(f"{name}: {value} is too small for a painted slide. Use {least} or more.")
    folder = Path(folder)
    path, mask_path = folder / "slide.tif", folder / "slide_mask.png"
    if path.is_file() and mask_path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = -(-height // CORE), -(-width // CORE)
    shape = (rows * CORE, columns * CORE)
    half = np.empty((shape[0] // 2, shape[1] // 2, 3), dtype=np.uint8)
    mask = np.empty((shape[0] // MASK_FACTOR, shape[1] // MASK_FACTOR), dtype=np.uint8)
    slide = _Slide(shape, seed)

    def painted() -> Iterator[np.ndarray]:
        workers = max(1, min(n_cores(), rows // 4))  # a process costs as much as painting a row
        done = joblib.Parallel(n_jobs=workers, return_as="generator")(
            joblib.delayed(slide.row)(y) for y in range(0, shape[0], CORE)
        )
        for y, x, image, class_map in itertools.chain.from_iterable(done):
            half[y // 2 : (y + CORE) // 2, x // 2 : (x + CORE) // 2] = _halved(image)
            at = MASK_FACTOR // 2
            small = class_map[at::MASK_FACTOR, at::MASK_FACTOR]
            mask[y // MASK_FACTOR :, x // MASK_FACTOR :][: len(small), : len(small)] = small
            yield image

    options = {
        "tile": (CORE, CORE), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": QUALITY},
        "resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER", "metadata": None,
    }  # fmt: skip
    with replacing(path) as temporary, tifffile.TiffWriter(temporary) as file:
        file.write(painted(), shape=(*shape, 3), dtype=np.uint8, **options)
        level, factor = half, 2
        while True:
            options["resolution"] = (1e4 / MPP / factor,) * 2
            file.write(level, subfiletype=1, **options)
            if max(level.shape) <= CORE:
                break
            level, factor = _halved(level), 2 * factor
    picture = Image.fromarray(mask)
    picture.putpalette(patches.MASK_COLOURS.astype(np.uint8).tobytes())
    with replacing(mask_path) as temporary:
        picture.save(temporary, "png")
    return path


def slide_key(seed: int) -> str:
    """Return a name that changes with the seed and with the source of the painter."""
    source = [Path(__file__), *(Path(inspect.getfile(module)) for module in (painting, tissue))]
    digest = hashlib.blake2b(str(seed).encode() + b"\0".join(path.read_bytes() for path in source), digest_size=8)
    return f"slide-{digest.hexdigest()}"


def _halved(image: np.ndarray) -> np.ndarray:
    """Return the mean of each 2 x 2 pixels of an image (H, W, 3), uint8."""
    height, width = (side // 2 * 2 for side in image.shape[:2])
    quads = image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return np.rint(quads.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)


class _Slide:
    """The layout of a slide of `shape` (height, width), and its windows."""

    def __init__(self, shape: tuple[int, int], seed: int) -> None:
        self.shape, self.seed, self.fields = shape, seed, _lay_out(shape, seed)
        self.look = _draw_look(seed)

    def row(self, y: int) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
        """Return the windows whose upper edge is y, each as y, x, picture and class map."""
        return [(y, x, *self.window(y, x)) for x in range(0, self.shape[1], CORE)]

    def window(self, y: int, x: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the picture (CORE, CORE, 3) and the class map (CORE, CORE) of the window whose corner is y, x."""
        size, core = CORE + 2 * HALO, np.s_[HALO:-HALO, HALO:-HALO]
        plane = Plane(self.seed, y - HALO, x - HALO)
        cell = np.s_[..., y // CELL : y // CELL + size // CELL + 1, x // CELL : x // CELL + size // CELL + 1]
        fields = painting.enlarge(self.fields[cell], CELL, size)
        ripple = [painting.smooth_noise(plane, size, sigma) for sigma in (4, 14)]
        class_map = _regions(fields, *ripple)
        own = np.random.default_rng([self.seed, y, x])
        if (class_map == tissue.GLASS).all():
            section = painting.Section(*np.zeros((3, size, size), dtype=np.float32))
        else:
            section = tissue.stain(class_map, self.look, plane)
        image = painting.develop(section, self.look, own)
        streaks = 1 + 0.12 * ripple[0]
        ink = np.clip((90 - np.abs(fields[-1]) + 8 * ripple[1]) / 12, 0, 1)[..., None]
        if ink.any():
            image = image * (1 - ink * (1 - PEN ** streaks[..., None]))
        known = np.array([0, 1, 2, 3, 4, 0, 0, 0, 2], dtype=np.uint8)[class_map]  # a vessel's wall is stroma
        return np.rint(image).astype(np.uint8)[core], (known * (ink[..., 0] < 0.5))[core]


def _draw_look(seed: int) -> Appearance:
    """Draw a patient as the patches' are drawn, with glands, and without the extremes of scanner and stain."""
    look = painting.draw_appearance(np.random.default_rng([seed, 1, 1]))
    return replace(
        look, glands=0.8, clefts=0.4, infiltrate=0.35, hyaline=0.25, cellularity=1.1, noise=1.5, blur=0.45, quality=90
    )


def _lay_out(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Return the slow fields of a slide on a grid of CELL pixels with a margin of HALO, shape (7, h, w), float32.

    They are: how deep in the tissue, the nests of tumor, their necrosis, infiltrates and fat in units of their noise,
    the distance to the middle of the nearest vessel as a part of its radius, and that to the pen's stroke in pixels.
    """
    rng = np.random.default_rng([seed, 0, 1])
    height, width = ((side + 2 * HALO) // CELL + 1 for side in shape)
    side = max(height, width)

    def noise(pixels: float) -> np.ndarray:
        return painting.smooth_noise(rng, side, pixels / CELL)[:height, :width]

    y, x = np.mgrid[:height, :width].astype(np.float32)
    v, u = 2 * y / height - 1, 2 * x / width - 1
    pieces = [  # a large one and a small one
        1 - np.hypot((u + 0.24) / 0.6, v / 0.72),
        1 - np.hypot((u - 0.7) / 0.2, (v + 0.4) / 0.4),
    ]
    depth = 5 * np.maximum.reduce(pieces) + 0.5 * noise(420) + 0.14 * noise(110)
    bed = 1.2 - 2.4 * np.hypot(u + 0.18, v - 0.15) + 0.9 * noise(330)  # where the tumor grows
    septum = np.abs(noise(170))  # and what parts its nests
    nests = np.minimum(bed + 0.3 * noise(90), 3 * (septum - 0.17))
    necrosis = np.minimum(bed - 0.55, 2 * (septum - 0.85))
    infiltrates = noise(120) - 0.8 * np.abs(bed)  # at the edge of the bed
    fat = noise(300) - np.clip(1.5 * bed + 1.2, 0, None)
    vessels = np.full((height, width), 9, dtype=np.float32)
    stroma = (bed < -0.3) & (depth > 0.5)
    for place_y, place_x in painting.scatter(rng, stroma, 480 / CELL, 0.5):
        radius, angle, stretch = rng.uniform(40, 110) / CELL, rng.uniform(0, np.pi), rng.uniform(1, 1.8)
        along = ((x - place_x) * np.cos(angle) + (y - place_y) * np.sin(angle)) / stretch
        across = (y - place_y) * np.cos(angle) - (x - place_x) * np.sin(angle)
        np.minimum(vessels, np.hypot(along, across) / radius, out=vessels)
    stroke = np.zeros((height, width), dtype=bool)
    t = np.linspace(0.12, 0.46, 4000)
    at_y = (0.5 + 0.47 * np.sin(2 * np.pi * t - 1.2)) * (height - 1)
    at_x = (0.52 + 0.44 * np.cos(2 * np.pi * t - 1.2) + 0.01 * np.sin(40 * t)) * (width - 1)
    stroke[at_y.astype(int), at_x.astype(int)] = True
    pen = CELL * distance_transform_edt(~stroke).astype(np.float32)
    return np.stack([depth, nests, necrosis, infiltrates, fat, vessels, pen])


def _regions(fields: np.ndarray, fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Return the class map, in values of `tissue`, of the fields (7, s, s) of `_lay_out` and two ripples (s, s)."""
    ripple = 0.04 * fine + 0.1 * coarse
    depth, nests, necrosis, infiltrates, fat, vessels, _ = fields
    class_map = np.full(depth.shape, tissue.STROMA, dtype=np.uint8)
    class_map[fat + ripple > 0.75] = tissue.FAT
    class_map[infiltrates + ripple > 0.5] = tissue.LYMPHOCYTE
    class_map[vessels < 1] = tissue.WALL
    class_map[vessels + 0.4 * ripple < 0.6] = tissue.BLOOD
    class_map[nests + ripple > 0] = tissue.TUMOR
    class_map[necrosis + ripple > 0] = tissue.NECROSIS
    class_map[depth + 0.5 * ripple < 0] = tissue.GLASS
    return class_map


# Chance that is fixed to the plane


@dataclass
class _Hashed:
    """Draws that are functions of a key and of the number of the call.

    With `identities` (n,), there is one draw for each of them, and they depend on nothing else.
    """

    key: int
    identities: np.ndarray | None = None
    calls: Iterator[int] = field(default_factory=itertools.count)

    def next_key(self) -> np.uint64:
        """Return a key for the next call."""
        return _mixed(self.key, np.array([next(self.calls)]))[0]

    def _uniform(self, size: int | tuple[int, ...] | None) -> np.ndarray | float:
        if size is None:
            return float(_unit(self.next_key()))
        lines = [
            _unit(_mixed(int(self.next_key()), self.identities))
            for _ in range(np.atleast_1d(size)[:-1].prod(dtype=int))
        ]
        return np.stack(lines).reshape(size)

    def uniform(self, low=0.0, high=1.0, size: int | tuple[int, ...] | None = None) -> np.ndarray | float:
        """Draw as NumPy's generator does; `low` and `high` are numbers, or (m,) where `size` is (n, m)."""
        low, high = np.asarray(low), np.asarray(high)
        drawn = self._uniform(size[::-1]).T if low.ndim else self._uniform(size)
        return low + (high - low) * drawn

    def normal(self, mean: float | np.ndarray, deviation: float, size: int | tuple | None = None) -> np.ndarray:
        """Draw as NumPy's generator does."""
        size = len(mean) if size is None and np.ndim(mean) else size
        return mean + deviation * ndtri(np.clip(self._uniform(size), 1e-9, 1 - 1e-9))

    def lognormal(self, mean: float, deviation: float, size: int | tuple | None = None) -> np.ndarray:
        """Draw as NumPy's generator does."""
        return np.exp(self.normal(mean, deviation, size))

    def integers(self, low: int, high: int) -> int:
        """Draw as NumPy's generator does."""
        return int(self.uniform(low, high))

    def standard_normal(self, shape: tuple[int, ...], dtype: type = np.float64) -> np.ndarray:
        """Draw an array that is the same in every window."""
        return np.random.default_rng(int(self.next_key())).standard_normal(shape, dtype)


@dataclass
class Plane(_Hashed):
    """The source of chance of a window whose corner is at (y, x) of the slide.

    What it gives at a place does not depend on the window. The painter's functions that need places take it instead of
    a `numpy.random.Generator`; single numbers are the same in all windows.
    """

    y: int = 0
    x: int = 0

    def __init__(self, key: int, y: int, x: int) -> None:
        super().__init__(key)
        self.y, self.x = y, x


def _mixed(key: int, *numbers: np.ndarray) -> np.ndarray:
    """Mix whole numbers with a key into 64 random bits each (the finalizer of SplitMix64, once for each argument)."""
    mixed = np.uint64(key & 0xFFFFFFFFFFFFFFFF)
    with np.errstate(over="ignore"):
        for number in numbers:
            mixed = (mixed ^ number.astype(np.int64).view(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def _unit(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(11)) * 2.0**-53


@painting.of_tissue.register
def _(rng: Plane, value: int) -> Plane:
    return Plane(int(_mixed(rng.key, np.array([1000 + value]))[0]), rng.y, rng.x)


@painting.of_points.register
def _(rng: Plane, points: np.ndarray) -> _Hashed:
    whole = np.rint((points.astype(float) + np.array([rng.y, rng.x])) * STEPS).astype(np.int64).reshape(-1, 2)
    return _Hashed(int(rng.next_key()), _mixed(rng.key, *whole.T))


@painting.coordinates.register
def _(rng: Plane, size: int) -> np.ndarray:
    """Let collagen run in wide curves: its coordinates are bent."""
    places = np.mgrid[:size, :size].astype(np.float32) + np.array([rng.y, rng.x], dtype=np.float32)[:, None, None]
    return places + 170 * np.stack([_smooth(rng, size, 340) for _ in range(2)])


@painting.smooth_noise.register
def _smooth(rng: Plane, size: int, sigma: float) -> np.ndarray:
    step = max(1, int(sigma / 1.7))
    reach = int(3 * sigma / step) + 1
    key = int(rng.next_key())
    first_y, first_x = rng.y // step, rng.x // step
    nodes = np.arange(-reach, size // step + 3 + reach)
    bits = _mixed(key, (first_y + nodes)[:, None], (first_x + nodes)[None])
    quarters = [(bits >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    white = (sum(quarters).astype(np.float32) / 65535 - 2) * np.float32(np.sqrt(3))  # nearly normal, of variance 1
    coarse = gaussian_filter(white, sigma / step, truncate=3)[reach:-reach, reach:-reach]
    coarse *= 2 * np.sqrt(np.pi) * sigma / step
    off_y, off_x = rng.y - first_y * step, rng.x - first_x * step
    return painting.enlarge(coarse, step, size + step)[off_y : off_y + size, off_x : off_x + size]


@painting.scatter.register
def _(rng: Plane, allowed: np.ndarray, distance: float, share: float = 1.0) -> np.ndarray:
    """Candidates lie in the squares of a grid, one in each, and come in an order that is fixed to the plane.

    Close points are thinned among those that are allowed. Those farther apart than the halo bears are thinned before,
    in a wider window, since what is allowed is not known there.
    """
    key, size = int(rng.next_key()), len(allowed)
    if share <= 0 or not allowed.any():
        return np.empty((0, 2), dtype=np.float32)
    square, wide = distance / np.sqrt(3 * max(share, 1)), distance > HALO / 2
    margin = 4 * distance if wide else 0
    lines = [
        np.arange(np.floor((corner - margin) / square), np.ceil((corner + size + margin) / square))
        for corner in (rng.y, rng.x)
    ]
    cells = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 2)
    cells = cells[_unit(_mixed(key + 3, *cells.astype(np.int64).T)) < share]  # a share that varies moves no point
    bits = [_mixed(key + k, *cells.astype(np.int64).T) for k in range(3)]
    places = (cells + np.stack([_unit(own) for own in bits[:2]], axis=1)) * square
    places = (np.rint(places * STEPS) / STEPS - (rng.y, rng.x))[np.argsort(bits[2])]  # exact in float32: windows agree
    if wide:
        places = painting.thin(places, distance)
    pixel = np.floor(places + 0.5).astype(int)
    inside = ((pixel >= 0) & (pixel < size)).all(axis=1)
    inside[inside] = allowed[tuple(pixel[inside].T)]
    points = places[inside] if wide else painting.thin(places[inside], distance)
    return points.astype(np.float32)
