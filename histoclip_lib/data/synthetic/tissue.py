"""Paint each tissue with its typical morphology: nests and glands, collagen, infiltrates, necrosis, fat, blood.

Each class has look-alikes that the mask does not count: plump fibroblasts and small tumor cells, dying tumor
cells that resemble lymphocytes, scattered lymphocytes, glassy stroma that resembles necrosis, and the reverse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from histoclip_lib.data.synthetic.painting import (
    Appearance,
    Section,
    coordinates,
    develop,
    nearest_centres,
    of_points,
    of_tissue,
    scatter,
    smooth_noise,
    stain_nuclei,
    vary_nuclei,
)

OTHER, TUMOR, STROMA, LYMPHOCYTE, NECROSIS = range(5)
GLASS, FAT, BLOOD, WALL = range(5, 9)  # what a slide has besides: the wall is that of vessels


@dataclass
class Scene:
    """One patch while it is painted; all arrays are (size, size).

    `soft` holds the nine regions with soft borders, shape (9, size, size); `fibres` is the collagen's texture
    and `direction` its direction in radians; `grain` and `wobble` are the texture of chromatin and of outlines.
    """

    class_map: np.ndarray
    section: Section
    look: Appearance
    rng: np.random.Generator
    soft: np.ndarray
    fibres: np.ndarray
    direction: np.ndarray
    grain: np.ndarray
    wobble: np.ndarray


def paint(class_map: np.ndarray, look: Appearance, rng: np.random.Generator) -> np.ndarray:
    """Paint the tissue of a class map.

    Parameters
    ----------
    class_map : ndarray of shape (size, size), uint8
        1 tumor, 2 stroma, 3 lymphocyte, 4 necrosis, 0 for none of them (glass, fat, blood, mucus).
    look : Appearance
        Of the patient.
    rng : numpy.random.Generator
        Decides everything else.

    Returns
    -------
    ndarray of shape (size, size, 3), uint8
        RGB.
    """
    return develop(stain(class_map, look, rng), look, rng)


def stain(class_map: np.ndarray, look: Appearance, rng: np.random.Generator) -> Section:
    """Return the section that `paint` develops; `class_map` may also hold GLASS, FAT, BLOOD and WALL."""
    size = len(class_map)
    section = Section(*(np.zeros((size, size), dtype=np.float32) for _ in range(3)))
    soft = np.zeros((WALL + 1, size, size), dtype=np.float32)
    for value in np.unique(class_map):
        soft[value] = gaussian_filter((class_map == value).astype(np.float32), 1.3)
    fibres, direction = _fibres(soft[TUMOR] + soft[BLOOD], rng)
    grain, wobble = smooth_noise(rng, size, 0.8), smooth_noise(rng, size, 2)
    scene = Scene(class_map, section, look, rng, soft, fibres, direction, grain, wobble)
    painters = {
        OTHER: _rest, FAT: _fat, BLOOD: _blood, STROMA: _stroma, WALL: _wall, NECROSIS: _necrosis, TUMOR: _tumor,
        LYMPHOCYTE: _infiltrate,
    }  # fmt: skip
    for value, painter in painters.items():  # from the back to the front
        if (class_map == value).any():
            painter(replace(scene, rng=of_tissue(rng, value)), class_map == value)
    _clefts(replace(scene, rng=of_tissue(rng, OTHER)))
    thickness = np.exp(rng.normal(0, 0.13) + 0.06 * smooth_noise(rng, size, 40))
    section.hematoxylin *= thickness * look.hematoxylin * rng.lognormal(0, 0.08)
    section.eosin *= thickness * look.eosin * rng.lognormal(0, 0.1)
    return section


def _fibres(obstacle: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the texture of wavy collagen that flows around nests and vessels, and its direction in radians."""
    size = len(obstacle)
    y, x = coordinates(rng, size)
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    waves = 2 * np.pi * along / rng.uniform(18, 45) + smooth_noise(rng, size, 20)
    across += rng.uniform(5, 22) * smooth_noise(rng, size, 26) + rng.uniform(0.3, 2.0) * np.sin(waves)
    across += rng.uniform(0.5, 2.0) * smooth_noise(rng, size, 7) + 45 * gaussian_filter(obstacle, 7)
    threads = gaussian_filter(rng.standard_normal((512, 64), dtype=np.float32), (0.9, 1.2), mode="wrap")
    bundles = gaussian_filter(rng.standard_normal((512, 64), dtype=np.float32), (2.8, 1.5), mode="wrap")
    texture = 0.6 * threads / threads.std() + 0.8 * bundles / bundles.std()
    # Collagen is sampled along curves of equal `across`: its direction is at right angles to that slope.
    slope_y, slope_x = np.gradient(across)
    fibres = map_coordinates(texture, [across, along / 9], order=1, mode="grid-wrap")
    return fibres, np.arctan2(-slope_x, slope_y)


def _stroma(scene: Scene, region: np.ndarray) -> None:
    """Eosinophilic collagen with spindle nuclei along it; hyaline stroma is glassy and almost bare."""
    rng, look, size = scene.rng, scene.look, len(region)
    hyaline = np.clip(look.hyaline + rng.normal(0, 0.2) + 0.25 * smooth_noise(rng, size, 25), 0, 1)
    myxoid = np.clip(rng.normal(-0.2, 0.4), 0, 1)
    eosin = 0.5 + 0.25 * hyaline - 0.2 * myxoid + (0.17 - 0.1 * hyaline) * scene.fibres + 0.04 * scene.grain
    eosin *= 1 - (0.9 - 0.6 * hyaline) * np.clip(-1.0 - scene.fibres, 0, 1)  # gaps between bundles
    blue = 0.05 + 0.12 * myxoid + 0.015 * scene.fibres + 0.04 * hyaline * scene.grain
    scene.section.cover(np.s_[:], scene.soft[STROMA], np.clip(blue, 0, None), np.clip(eosin, 0.03, None))
    density = 0.26 * look.cellularity * rng.lognormal(0, 0.3) * (1 - 0.75 * hyaline.mean())
    busy = region & (smooth_noise(rng, size, 18) > -0.4)
    centres = np.concatenate(
        [scatter(rng, busy, 8, min(density, 0.8)), scatter(rng, region & ~busy, 12, 0.3 * density)]
    )
    y, x = centres.astype(int).T
    each = of_points(rng, centres)
    plump = each.uniform(size=len(centres)) < look.plumpness
    nuclei = vary_nuclei(
        rng,
        centres,
        radius=np.where(plump, 4.2, 3.2),
        spread=0.15,
        elongation=np.where(plump, 2.2, 4.5),
        angle=scene.direction[y, x] + each.normal(0, 0.15, len(centres)),
        darkness=np.where(plump, 1.0, 1.4),
        rim=np.where(plump, 0.35, 0.1),
    )
    stain_nuclei(scene.section, nuclei, scene.grain, 0.08 * scene.wobble)
    _scattered_lymphocytes(scene, region)


def _tumor(scene: Scene, region: np.ndarray) -> None:
    """Crowded, enlarged, irregular nuclei in scant cytoplasm, upright around the lumina of glands."""
    rng, look, size = scene.rng, scene.look, len(region)
    to_lumen = _distance_to_lumina(scene, region)
    apex = rng.uniform(0.5, 1.0) * look.radius  # cytoplasm between lumen and nuclei
    first_row = np.abs(to_lumen - apex - 1.5 * look.radius) < 1.0
    upright = scatter(rng, region & first_row, 1.25 * look.radius, share=5)  # the band is thin: many tries
    others = scatter(rng, region & (to_lumen > apex + 3.4 * look.radius), look.crowding * look.radius)
    centres = np.concatenate([upright, others])
    if not len(centres):
        centres = np.argwhere(region)[:1].astype(np.float32)
    owner, distance = nearest_centres(centres, size)
    blue, pink = look.cytoplasm
    each = of_points(rng, centres)
    cells = each.normal(0, 0.18, (2, len(centres))).astype(np.float32)  # each cell's own cytoplasm shows its border
    cells = gaussian_filter(cells[:, owner], (0, 0.8, 0.8))
    texture = 1 + 0.12 * smooth_noise(rng, size, 1.5)
    gap = np.clip(distance / look.radius - 1.7, 0, 1.2)  # paler far from nuclei
    scene.section.cover(
        np.s_[:],
        scene.soft[TUMOR],
        np.clip(blue * (1 + cells[0]) * texture - 0.05 * gap, 0.02, None),
        np.clip(pink * (1 + cells[1]) * texture - 0.08 * gap, 0.05, None),
    )
    slope_y, slope_x = np.gradient(gaussian_filter(np.minimum(to_lumen, 60), 1.5))
    y, x = centres.astype(int).T
    is_upright = np.arange(len(centres)) < len(upright)
    outward = np.arctan2(slope_y[y, x], slope_x[y, x])
    nuclei = vary_nuclei(
        rng,
        centres,
        radius=look.radius,
        spread=look.pleomorphism,
        elongation=np.where(is_upright, 1.9, look.elongation),
        angle=np.where(is_upright, outward, each.normal(scene.direction[y, x], 0.7)),
        darkness=look.hyperchromasia * each.lognormal(0, 0.6 * look.pleomorphism, len(centres)),
        rim=look.vesicular,
        nucleolus=look.nucleoli,
    )
    stain_nuclei(scene.section, nuclei, scene.grain, (0.05 + 0.3 * look.pleomorphism) * scene.wobble)
    lumen = np.clip(0.5 - to_lumen, 0, 1)
    brush = np.exp(-(((to_lumen - 0.5) / 1.0) ** 2))  # the apical border is a thin eosinophilic line
    secretion = 0.25 * np.clip(smooth_noise(rng, size, 6) - 0.3, 0, 1) * rng.integers(0, 2)
    scene.section.cover(np.s_[:], lumen, 0.02, secretion)
    scene.section.eosin += 0.15 * brush * region
    # Dying cells: dark round fragments in a halo, as large as a lymphocyte.
    solid = region & (to_lumen > apex)
    dying = scatter(rng, solid, 20, 0.2 * look.apoptosis)
    halo = vary_nuclei(rng, dying, 5.2, 0.15, 1.1, 0.0, 0.05)
    stain_nuclei(scene.section, halo, scene.grain, 0.05 * scene.wobble, eosin=0.55)
    fragments = vary_nuclei(rng, dying, 2.9, 0.25, 1.2, 0.0, 2.0)
    stain_nuclei(scene.section, fragments, scene.grain, 0.1 * scene.wobble)
    _scattered_lymphocytes(scene, solid)


def _distance_to_lumina(scene: Scene, region: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel to the nearest glandular lumen, negative inside; huge without any."""
    rng, look, size = scene.rng, scene.look, len(region)
    depth = distance_transform_edt(np.pad(region, 1, mode="edge"))[1:-1, 1:-1]
    if depth.max() > 10 * size:  # no border at all: the nest fills the patch
        depth[:] = size
    places = scatter(rng, depth > 3.6 * look.radius, 8 * look.radius, look.glands * rng.uniform(0.2, 1.5))
    distance = np.full((size, size), 1e3, dtype=np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    drawn = of_points(rng, places).uniform([0.5, 0, 1], [3.2, np.pi, 1.7], (len(places), 3))
    for (place_y, place_x), (width, angle, stretch) in zip(places, drawn, strict=True):
        room = depth[int(np.clip(place_y, 0, size - 1)), int(np.clip(place_x, 0, size - 1))] - 3.0 * look.radius
        radius = min(room, look.radius * width)
        reach = int(2 * max(radius, 0)) + 25  # farther off there is no lumen, whatever the noise
        near = tuple(slice(max(int(at) - reach, 0), int(at) + reach) for at in (place_y, place_x))
        along = ((x[near] - place_x) * np.cos(angle) + (y[near] - place_y) * np.sin(angle)) / stretch
        across = ((y[near] - place_y) * np.cos(angle) - (x[near] - place_x) * np.sin(angle)) * stretch
        distance[near] = np.minimum(distance[near], np.hypot(along, across) - radius)
    lumen = region & (distance + 1.6 * smooth_noise(rng, size, 5) < 0)
    if not lumen.any():
        return np.full((size, size), 1e3, dtype=np.float32)
    signed = distance_transform_edt(~lumen) - distance_transform_edt(lumen)
    return gaussian_filter(signed.astype(np.float32), 0.7)


def _infiltrate(scene: Scene, region: np.ndarray) -> None:
    """Dense, small, round, dark and uniform nuclei on pale stroma."""
    rng, look, size = scene.rng, scene.look, len(region)
    eosin = rng.uniform(0.2, 0.45) + 0.1 * scene.fibres + 0.06 * smooth_noise(rng, size, 3)
    scene.section.cover(np.s_[:], scene.soft[LYMPHOCYTE], rng.uniform(0.05, 0.18), np.clip(eosin, 0.03, None))
    crowded = region & (smooth_noise(rng, size, 8) > rng.uniform(-1.5, 0.3))
    sparse = scatter(rng, region & ~crowded, 1.9 * look.lymphocyte_radius, rng.uniform(0.15, 0.4))
    dense = scatter(rng, crowded, 1.7 * look.lymphocyte_radius, rng.uniform(0.35, 1.0))
    _lymphocytes(scene, np.concatenate([dense, sparse]))


def _scattered_lymphocytes(scene: Scene, region: np.ndarray) -> None:
    """Single lymphocytes in stroma and nests: too few for an infiltrate, so the mask does not count them."""
    share = 0.22 * scene.look.infiltrate * scene.rng.lognormal(0, 0.4)
    clumps = region & (smooth_noise(scene.rng, len(region), 12) > 0.3)
    _lymphocytes(scene, scatter(scene.rng, clumps, 2.3 * scene.look.lymphocyte_radius, min(share, 0.35)))


def _lymphocytes(scene: Scene, centres: np.ndarray) -> None:
    nuclei = vary_nuclei(
        scene.rng,
        centres,
        radius=scene.look.lymphocyte_radius,
        spread=0.09,
        elongation=1.12,
        angle=of_points(scene.rng, centres).uniform(0, np.pi, len(centres)),
        darkness=1.7,
        rim=0.12,
    )
    stain_nuclei(scene.section, nuclei, scene.grain, 0.04 * scene.wobble)


def _necrosis(scene: Scene, region: np.ndarray) -> None:
    """Granular eosinophilic debris with ghosts of cells, shrunken nuclei and nuclear dust; nothing intact."""
    rng, look, size = scene.rng, scene.look, len(region)
    ghosts = scatter(rng, region, rng.uniform(1.8, 2.4) * max(look.radius, 5.0))
    coarse, fine = smooth_noise(rng, size, 9), smooth_noise(rng, size, 1.4)
    eosin = rng.uniform(0.38, 0.75) + 0.1 * coarse + rng.uniform(0.05, 0.13) * fine + 0.06 * scene.grain
    blue = look.dust * rng.uniform(0.03, 0.22) * (1 + 0.5 * coarse) + 0.05 + 0.04 * fine
    if len(ghosts):
        _, distance = nearest_centres(ghosts, size)
        outline = np.exp(-(((distance / look.radius - 0.95 - 0.15 * scene.wobble) / 0.28) ** 2))
        eosin += rng.uniform(0, 0.3) * outline * (coarse > -0.3)
        eosin -= 0.25 * np.clip(distance / look.radius - 1.5, 0, 1)  # cells have come apart
    scene.section.cover(np.s_[:], scene.soft[NECROSIS], np.clip(blue, 0.0, None), np.clip(eosin, 0.03, None))
    pyknotic = ghosts[of_points(rng, ghosts).uniform(size=len(ghosts)) < rng.uniform(0, 0.35)]
    stain_nuclei(scene.section, vary_nuclei(rng, pyknotic, 2.2, 0.3, 1.3, 0.0, 1.5), scene.grain, 0.2 * scene.wobble)
    dust = scatter(rng, region & (coarse + 0.5 * fine > 0.4), 3.2, rng.uniform(0.05, 0.25) + 0.25 * look.dust)
    stain_nuclei(scene.section, vary_nuclei(rng, dust, 0.85, 0.5, 1.4, 0.8, 1.2), scene.grain, 0.3 * scene.wobble)


def _rest(scene: Scene, region: np.ndarray) -> None:
    """Glass, fat, blood or mucus: what belongs to no class."""
    kind = scene.rng.choice(["glass", "fat", "blood", "mucus"], p=[0.35, 0.25, 0.25, 0.15])
    if kind == "fat":
        _fat(scene, region, OTHER)
    elif kind == "blood":
        _blood(scene, region, OTHER)
    elif kind == "mucus":
        wisps = np.clip(0.1 + 0.05 * smooth_noise(scene.rng, len(region), 14) + 0.015 * scene.fibres, 0, None)
        scene.section.cover(np.s_[:], scene.soft[OTHER], wisps, scene.rng.uniform(0.2, 1.0) * wisps)


def _fat(scene: Scene, region: np.ndarray, value: int = FAT) -> None:
    """Large empty cells between thin membranes."""
    rng, size = scene.rng, len(region)
    cells = scatter(rng, np.ones_like(region), rng.uniform(34, 50))
    y, x = np.mgrid[:size, :size].astype(np.float32)
    bend = 3 * np.stack([smooth_noise(rng, size, 12), smooth_noise(rng, size, 12)])
    places = np.stack([y + bend[0], x + bend[1]], axis=-1)
    near = cells[cKDTree(cells).query(places, k=min(3, len(cells)))[1]]
    away = np.hypot(places[..., 0] - near[..., 0].transpose(2, 0, 1), places[..., 1] - near[..., 1].transpose(2, 0, 1))
    nearest, second = np.partition(away, 1, axis=0)[:2]
    membrane = np.exp(-(((second - nearest) / 2.2) ** 2))
    scene.section.cover(np.s_[:], membrane * scene.soft[value], 0.05, 0.5)


def _blood(scene: Scene, region: np.ndarray, value: int = BLOOD) -> None:
    """Red cells."""
    discs = scatter(scene.rng, region, scene.rng.uniform(5.0, 6.0))
    if len(discs):
        _, distance = nearest_centres(discs, len(region))
        disc = np.clip(3.6 + 0.7 * scene.wobble - distance, 0, 1) * scene.soft[value]
        scene.section.cover(np.s_[:], disc, 0.0, 0.12, 0.75 + 0.1 * np.minimum(distance, 3))


def _wall(scene: Scene, region: np.ndarray) -> None:
    """Smooth muscle around the lumen of a vessel, lined by flat nuclei."""
    rng = scene.rng
    scene.section.cover(np.s_[:], scene.soft[WALL], 0.16, np.clip(0.8 + 0.08 * scene.fibres, 0.1, None))
    lining = region & (gaussian_filter(scene.soft[BLOOD], 2) > 0.2)
    centres = np.concatenate([scatter(rng, lining, 9), scatter(rng, region & ~lining, 9, 0.5)])
    y, x = centres.astype(int).T
    nuclei = vary_nuclei(rng, centres, 3.4, 0.15, 5.0, scene.direction[y, x], 1.3, 0.1)
    stain_nuclei(scene.section, nuclei, scene.grain, 0.06 * scene.wobble)


def _clefts(scene: Scene) -> None:
    """Nests that have shrunk away from the stroma leave a white gap."""
    gap = 4 * gaussian_filter(scene.soft[TUMOR] * scene.soft[STROMA], 0.8)
    width = smooth_noise(scene.rng, len(gap), 10) + 1.2 * scene.look.clefts - 1.4
    scene.section.cover(np.s_[:], np.clip(2.5 * gap * np.clip(width, 0, 1) - 0.25, 0, 1), 0.0, 0.03)
