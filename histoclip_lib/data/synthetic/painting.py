"""Draw nuclei and stain into an H&E section and develop it through the law of Beer and Lambert.

A `Section` holds concentrations of hematoxylin, of eosin and of the pigment of red cells; `develop` turns it
into the picture that a scanner would give. Lengths are pixels of about 0.8 micrometres (between 10x and 20x).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial import cKDTree

# Rows: optical density of hematoxylin, eosin and red cells in R, G, B. The first set is Ruifrok & Johnston's
# (Anal Quant Cytol Histol 23:291, 2001; scikit-image's rgb_from_hed), the second the reference of Macenko et
# al. (ISBI 2009). Laboratories lie between them.
_RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.10, 0.65, 0.75]])
_MACENKO = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581], [0.10, 0.65, 0.75]])
MPP = 0.8  # micrometres per pixel, by the size of the nuclei


@dataclass(frozen=True)
class Appearance:
    """What the patches of one patient share: the stain, the tumor's cytology, the stroma and the scanner."""

    stains: np.ndarray  # (3, 3): unit optical density of hematoxylin, eosin and red cells (rows) in R, G, B
    hematoxylin: float  # factors on the concentrations
    eosin: float
    radius: float  # tumor nuclei: mean radius in pixels
    pleomorphism: float  # relative spread of the radius
    elongation: float  # axis ratio
    crowding: float  # centre distance in radii
    hyperchromasia: float  # darkness
    vesicular: float  # paleness inside the membrane
    nucleoli: float  # strength of the nucleolus
    glands: float  # how often nests have lumina
    apoptosis: float  # how many dying tumor cells
    clefts: float  # how much nests retract from the stroma
    cytoplasm: tuple[float, float]  # hematoxylin and eosin in the tumor's cytoplasm
    lymphocyte_radius: float  # pixels
    infiltrate: float  # density of lymphocytes outside infiltrates
    hyaline: float  # stroma: glassiness (resembles necrosis)
    cellularity: float  # density of spindle nuclei
    plumpness: float  # and their breadth
    dust: float  # blueness of necrosis
    blur: float  # scanner: sigma in pixels
    noise: float  # sigma in grey levels
    white: float  # background level
    quality: float  # of the JPEG
    gain: np.ndarray  # (3,): factor on each colour channel


def draw_appearance(rng: np.random.Generator) -> Appearance:
    """Draw the appearance of one patient."""
    stains = _RUIFROK + rng.uniform(0.35, 1.15, (3, 1)) * (_MACENKO - _RUIFROK)
    stains = np.clip(stains + rng.normal(0, 0.025, (3, 3)), 0.02, None)
    return Appearance(
        stains=stains / np.linalg.norm(stains, axis=1, keepdims=True),
        hematoxylin=rng.lognormal(0, 0.2),
        eosin=rng.lognormal(0, 0.25),
        radius=rng.uniform(4.0, 8.0),
        pleomorphism=rng.uniform(0.08, 0.3),
        elongation=rng.uniform(1.05, 1.5),
        crowding=rng.uniform(1.65, 2.3),
        hyperchromasia=rng.uniform(0.9, 1.45),
        vesicular=rng.uniform(0.0, 0.65),
        nucleoli=rng.choice([0.0, 0.6, 1.2]),
        glands=rng.choice([0.0, 0.4, 1.0]),
        apoptosis=rng.exponential(0.3),
        clefts=rng.choice([0.0, 0.4, 1.0]),
        cytoplasm=(rng.uniform(0.06, 0.28), rng.uniform(0.25, 0.6)),
        lymphocyte_radius=rng.uniform(2.9, 3.9),
        infiltrate=rng.exponential(0.5),
        hyaline=rng.beta(0.6, 1.0),
        cellularity=rng.lognormal(0, 0.5),
        plumpness=rng.beta(0.8, 1.4),
        dust=rng.uniform(0.0, 1.0),
        blur=rng.uniform(0.25, 0.7),
        noise=rng.uniform(0.8, 3.0),
        white=rng.uniform(236, 250),
        quality=rng.uniform(60, 92),
        gain=rng.normal(1, 0.018, 3),
    )


@dataclass
class Section:
    """Concentrations of hematoxylin, eosin and red-cell pigment, each of shape (size, size), float32."""

    hematoxylin: np.ndarray
    eosin: np.ndarray
    red: np.ndarray

    def cover(self, where: tuple | slice, alpha: np.ndarray, hematoxylin, eosin, red=0.0) -> None:
        """Replace the share `alpha` of what lies at `where` by the given concentrations."""
        for channel, value in ((self.hematoxylin, hematoxylin), (self.eosin, eosin), (self.red, red)):
            channel[where] += alpha * (value - channel[where])


@dataclass
class Nuclei:
    """n nuclei: centres (n, 2) as y, x, and one value each, shape (n,); `rim` is the paleness inside the membrane."""

    centres: np.ndarray
    radius: np.ndarray
    elongation: np.ndarray
    angle: np.ndarray
    darkness: np.ndarray
    rim: np.ndarray
    nucleolus: np.ndarray


def develop(section: Section, appearance: Appearance, rng: np.random.Generator) -> np.ndarray:
    """Return what a scanner sees of a section: I = I0 exp(-concentrations @ stains), blurred, noisy, as JPEG.

    Returns
    -------
    ndarray of shape (size, size, 3), uint8
        RGB; the scanner's white where nothing is stained.
    """
    concentrations = np.stack([section.hematoxylin, section.eosin, section.red])
    # Not a matrix product: BLAS may add in another order with another number of threads.
    density = np.einsum("syx,sc->yxc", concentrations, appearance.stains.astype(np.float32))
    light = np.exp(-density)
    light = gaussian_filter(light, (appearance.blur, appearance.blur, 0))
    levels = appearance.white * appearance.gain.astype(np.float32) * light
    levels += appearance.noise * rng.standard_normal(levels.shape, dtype=np.float32)
    buffer = io.BytesIO()
    picture = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    picture.save(buffer, "JPEG", quality=int(appearance.quality))
    return np.asarray(Image.open(buffer))


# The functions that follow have a second source of chance: `slide.Plane`, which is fixed to the plane.


@singledispatch
def of_tissue(rng: np.random.Generator, value: int) -> np.random.Generator:
    """Return the source of what is drawn of the tissue `value`."""
    return rng


@singledispatch
def of_points(rng: np.random.Generator, points: np.ndarray) -> np.random.Generator:
    """Return the source of what belongs to each of the points (n, 2)."""
    return rng


@singledispatch
def coordinates(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return y and x of each pixel along which collagen runs, shape (2, size, size), float32."""
    return np.mgrid[:size, :size].astype(np.float32)


@singledispatch
def smooth_noise(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Return Gaussian noise smoothed over `sigma` pixels, of unit variance, shape (size, size), float32."""
    step = max(1, int(sigma / 1.7))  # a wide filter is run on a coarse grid
    coarse = rng.standard_normal((size // step + 3,) * 2, dtype=np.float32)
    coarse = gaussian_filter(coarse, sigma / step, mode="wrap", truncate=3)
    coarse *= 2 * np.sqrt(np.pi) * sigma / step  # analytic: the sample of a wide filter is too small to scale by
    return enlarge(coarse, step, size)


def enlarge(coarse: np.ndarray, step: int, size: int) -> np.ndarray:
    """Interpolate linearly from a grid with one node every `step` pixels, shape (..., size, size)."""
    if step == 1:
        return coarse[..., :size, :size]
    node, between = np.divmod(np.arange(size), step)  # many times faster than scipy.ndimage.zoom
    weight = (between / step).astype(coarse.dtype)
    wide = coarse[..., node] + weight * (coarse[..., node + 1] - coarse[..., node])
    return wide[..., node, :] + weight[:, None] * np.diff(wide, axis=-2)[..., node, :]


@singledispatch
def scatter(rng: np.random.Generator, allowed: np.ndarray, distance: float, share: float = 1.0) -> np.ndarray:
    """Return points (n, 2) in `allowed` at least `distance` apart, as dense as chance lets, or a `share` of them."""
    inside = np.argwhere(allowed)
    n_candidates = int(3 * share * len(inside) / distance**2 + rng.uniform())
    if not len(inside) or not n_candidates:
        return np.empty((0, 2), dtype=np.float32)
    points = inside[rng.integers(len(inside), size=n_candidates)] + rng.uniform(-0.5, 0.5, (n_candidates, 2))
    return thin(points, distance).astype(np.float32)


def thin(points: np.ndarray, distance: float) -> np.ndarray:
    """Return those of some points (n, 2) that are at least `distance` from every earlier one that is kept."""
    pairs = cKDTree(points).query_pairs(distance, output_type="ndarray")
    keep = np.ones(len(points), dtype=bool)
    for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if keep[first]:
            keep[second] = False
    return points[keep]


def vary_nuclei(rng, centres, radius, spread, elongation, angle, darkness, rim=0.0, nucleolus=0.0) -> Nuclei:
    """Give each centre a nucleus that varies about the given values."""
    n, rng = len(centres), of_points(rng, centres)
    return Nuclei(
        centres=centres,
        radius=(radius * rng.lognormal(0, spread, n)).astype(np.float32),
        elongation=(elongation * rng.uniform(0.85, 1.2, n)).astype(np.float32),
        angle=np.broadcast_to(angle, n).astype(np.float32),
        darkness=(darkness * rng.lognormal(0, 0.16, n)).astype(np.float32),
        rim=(rim * rng.uniform(0.5, 1.3, n)).astype(np.float32),
        nucleolus=(nucleolus * (rng.uniform(size=n) < 0.75)).astype(np.float32),
    )


def nearest_centres(centres: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest centre of each pixel and its distance, both of shape (size, size)."""
    position = np.clip(np.rint(centres), 0, size - 1).astype(int)
    empty = np.ones((size, size), dtype=bool)
    owner = np.zeros((size, size), dtype=np.int32)
    empty[position[:, 0], position[:, 1]] = False
    owner[position[:, 0], position[:, 1]] = np.arange(len(centres))
    distance, (y, x) = distance_transform_edt(empty, return_indices=True)
    return owner[y, x], distance.astype(np.float32)


def stain_nuclei(section: Section, nuclei: Nuclei, grain: np.ndarray, wobble: np.ndarray, eosin: float = 0.12) -> None:
    """Draw nuclei. A pixel belongs to the nearest one, so that crowded nuclei mould each other as real ones do."""
    if not len(nuclei.centres):
        return
    owner, distance = nearest_centres(nuclei.centres, len(grain))
    where = np.nonzero(distance < (nuclei.radius * np.sqrt(nuclei.elongation))[owner] * 1.4 + 2)
    owner = owner[where]
    y = where[0] - nuclei.centres[owner, 0]
    x = where[1] - nuclei.centres[owner, 1]
    cosine, sine, stretch = np.cos(nuclei.angle), np.sin(nuclei.angle), np.sqrt(nuclei.elongation)
    radius = nuclei.radius[owner]
    along = (x * cosine[owner] + y * sine[owner]) / stretch[owner]
    across = (y * cosine[owner] - x * sine[owner]) * stretch[owner]
    depth = (1 + wobble[where]) * radius - np.hypot(along, across)  # pixels below the nuclear outline
    alpha = np.clip(depth / stretch[owner] + 0.5, 0, 1)
    inside = np.clip(depth / 2.2 - 0.3, 0, 1)
    chromatin = 1 - nuclei.rim[owner] * inside + (0.10 + 0.22 * nuclei.rim[owner]) * grain[where]
    spot = np.exp(-((along - 0.25 * radius) ** 2 + (across + 0.15 * radius) ** 2) / (0.05 * radius**2 + 0.5))
    stain = nuclei.darkness[owner] * np.clip(chromatin + nuclei.nucleolus[owner] * 0.6 * spot, 0.1, 2)
    section.cover(where, alpha, stain, eosin + 0.25 * nuclei.nucleolus[owner] * spot)
