"""Paint each tissue with its typical morphology: nests and glands, collagen, infiltrates, necrosis, fat, vessels.

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
REACH = 40  # pixels: up to here tissue depends on how far its border is; less than `slide.HALO`, so windows agree


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
        OTHER: _rest, FAT: _fat, STROMA: _stroma, WALL: _wall, BLOOD: _blood, NECROSIS: _necrosis, TUMOR: _tumor,
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
    """Crowded, enlarged, irregular nuclei in scant cytoplasm; where glands form, upright at lumina and at the rim."""
    rng, look, size = scene.rng, scene.look, len(region)
    depth = _depth(region)
    to_lumen = _distance_to_lumina(scene, region, depth)
    apex = rng.uniform(0.7, 1.5) * look.radius  # cytoplasm between lumen and nuclei
    from_row = np.abs(to_lumen - apex - 1.5 * look.radius)
    inner, palisade = to_lumen > apex + 3.2 * look.radius, np.minimum(to_lumen, 60)
    if look.glands:  # tumors without glands have lost their polarity
        from_rim = np.abs(depth - 1.6 * look.radius) + 9.0 * ~inner
        palisade = np.where(from_rim < from_row, depth, palisade)
        from_row, inner = np.minimum(from_row, from_rim), inner & (depth > 3.2 * look.radius)
    upright = scatter(rng, region & (from_row < 1.0), 1.1 * look.radius, share=5)  # the rows are thin: many tries
    others = scatter(rng, region & inner, look.crowding * look.radius)
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
    y, x = centres.astype(int).T
    is_upright = np.arange(len(centres)) < len(upright)
    regular = np.where(is_upright, 0.6, 1)  # cells that keep their polarity look alike
    nuclei = vary_nuclei(
        rng,
        centres,
        radius=look.radius,
        spread=look.pleomorphism * regular,
        elongation=np.where(is_upright, 2.1, look.elongation),
        angle=np.where(is_upright, _ascent(palisade, centres), each.normal(scene.direction[y, x], 0.7)),
        darkness=look.hyperchromasia * each.lognormal(0.2 * is_upright, 0.6 * look.pleomorphism, len(centres)),
        rim=look.vesicular * regular,
        nucleolus=look.nucleoli,
    )
    stain_nuclei(scene.section, nuclei, scene.grain, (0.05 + 0.3 * look.pleomorphism) * scene.wobble)
    lumen = np.clip(0.5 - to_lumen, 0, 1)
    brush = np.exp(-(((to_lumen - 0.5) / 1.0) ** 2))  # the apical border is a thin eosinophilic line
    secretion = 0.25 * np.clip(smooth_noise(rng, size, 6) - 0.3, 0, 1) * rng.integers(0, 2)
    scene.section.cover(np.s_[:], lumen, 0.02, secretion)
    scene.section.eosin += 0.25 * brush * region
    # Dying cells: dark round fragments in a halo, as large as a lymphocyte.
    solid = region & (to_lumen > apex)
    dying = scatter(rng, solid, 20, 0.2 * look.apoptosis)
    halo = vary_nuclei(rng, dying, 5.2, 0.15, 1.1, 0.0, 0.05)
    stain_nuclei(scene.section, halo, scene.grain, 0.05 * scene.wobble, eosin=0.55)
    fragments = vary_nuclei(rng, dying, 2.9, 0.25, 1.2, 0.0, 2.0)
    stain_nuclei(scene.section, fragments, scene.grain, 0.1 * scene.wobble)
    _scattered_lymphocytes(scene, solid)


def _depth(region: np.ndarray) -> np.ndarray:
    """Return how far each pixel lies inside a region, at most REACH; the patch's frame is no border."""
    if region.all():
        return np.full(region.shape, REACH, dtype=np.float32)
    return np.minimum(distance_transform_edt(region), REACH).astype(np.float32)


def _ascent(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the direction in which a field rises at each of the points (n, 2), in radians."""
    slope_y, slope_x = np.gradient(gaussian_filter(field, 1.5))
    y, x = points.astype(int).T
    return np.arctan2(slope_y[y, x], slope_x[y, x])


def _distance_to_lumina(scene: Scene, region: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel to the nearest glandular lumen, negative inside; huge without any."""
    rng, look, size = scene.rng, scene.look, len(region)
    places = scatter(rng, depth > 4.0 * look.radius, 9 * look.radius, look.glands * rng.uniform(0.4, 1.5))
    distance = np.full((size, size), 1e3, dtype=np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    drawn = of_points(rng, places).uniform([0.8, 0, 1], [4.0, np.pi, 2.0], (len(places), 3))
    for (place_y, place_x), (width, angle, stretch) in zip(places, drawn, strict=True):
        room = depth[int(np.clip(place_y, 0, size - 1)), int(np.clip(place_x, 0, size - 1))] - 3.2 * look.radius
        radius = min(room, look.radius * width)
        reach = int(2 * max(radius, 0)) + 25  # farther off there is no lumen, whatever the noise
        near = tuple(slice(max(int(at) - reach, 0), int(at) + reach) for at in (place_y, place_x))
        along = ((x[near] - place_x) * np.cos(angle) + (y[near] - place_y) * np.sin(angle)) / stretch
        across = ((y[near] - place_y) * np.cos(angle) - (x[near] - place_x) * np.sin(angle)) * stretch
        distance[near] = np.minimum(distance[near], np.hypot(along, across) - radius)
    lumen = region & (depth > 1.5 * look.radius) & (distance + 2.2 * smooth_noise(rng, size, 6) < 0)
    if not lumen.any():
        return np.full((size, size), 1e3, dtype=np.float32)
    signed = distance_transform_edt(~lumen) - distance_transform_edt(lumen)
    return gaussian_filter(signed.astype(np.float32), 0.7)


def _infiltrate(scene: Scene, region: np.ndarray) -> None:
    """Dense, small, dark nuclei on pale stroma, in clumps in which they touch and mould each other."""
    rng, look, size = scene.rng, scene.look, len(region)
    eosin = rng.uniform(0.2, 0.45) + 0.1 * scene.fibres + 0.06 * smooth_noise(rng, size, 3)
    scene.section.cover(np.s_[:], scene.soft[LYMPHOCYTE], rng.uniform(0.05, 0.18), np.clip(eosin, 0.03, None))
    clump = smooth_noise(rng, size, 9) + smooth_noise(rng, size, 4) > rng.uniform(-0.6, 0.7)
    sparse = scatter(rng, region & ~clump, 1.4 * look.lymphocyte_radius, rng.uniform(0.04, 0.12))
    dense = scatter(rng, region & clump, 1.2 * look.lymphocyte_radius, rng.uniform(0.25, 0.45))
    _lymphocytes(scene, np.concatenate([dense, sparse]))


def _scattered_lymphocytes(scene: Scene, region: np.ndarray) -> None:
    """Single lymphocytes in stroma and nests: too few for an infiltrate, so the mask does not count them."""
    share = 0.08 * scene.look.infiltrate * scene.rng.lognormal(0, 0.4)
    clumps = region & (smooth_noise(scene.rng, len(region), 12) > 0.3)
    _lymphocytes(scene, scatter(scene.rng, clumps, 1.7 * scene.look.lymphocyte_radius, min(share, 0.13)))


def _lymphocytes(scene: Scene, centres: np.ndarray) -> None:
    """Small dark nuclei with coarse chromatin; every tenth is activated: larger, paler and vesicular."""
    each = of_points(scene.rng, centres)
    active = each.uniform(size=len(centres)) < 0.1
    nuclei = vary_nuclei(
        scene.rng,
        centres,
        radius=scene.look.lymphocyte_radius * np.where(active, 1.35, 0.95),
        spread=0.14,
        elongation=1.2,
        angle=each.uniform(0, np.pi, len(centres)),
        darkness=np.where(active, 1.1, 1.6) * each.lognormal(0, 0.12, len(centres)),
        rim=np.where(active, 0.5, 0.22),
    )
    stain_nuclei(scene.section, nuclei, scene.grain, 0.07 * scene.wobble)


def _necrosis(scene: Scene, region: np.ndarray) -> None:
    """From the viable rim inwards: ghosts of cells, then nuclei that shrink and crumble, then amorphous pink matter."""
    rng, look, size = scene.rng, scene.look, len(region)
    coarse, fine = smooth_noise(rng, size, 9), smooth_noise(rng, size, 1.4)
    pace = rng.uniform(0.75, 1.15) + 0.3 * smooth_noise(rng, size, 28)
    decay = np.clip(pace * _depth(region) / REACH + 0.13 * coarse, 0, 1)
    cells = scatter(rng, region, rng.uniform(1.7, 2.1) * max(look.radius, 5.0))
    if not len(cells):
        cells = np.argwhere(region)[:1].astype(np.float32)
    owner, distance = nearest_centres(cells, size)
    y, x = cells.astype(int).T
    stage, each = decay[y, x], of_points(rng, cells)
    shade = gaussian_filter(each.normal(0, 0.1, len(cells)).astype(np.float32)[owner], 1.0)  # of each dead cell
    apart = np.clip(distance / look.radius - 1.2, 0, 1)  # dead cells shrink from each other, and then run together
    eosin = rng.uniform(0.42, 0.65) + 0.15 * decay + (1 - decay) * (shade - 0.4 * apart)
    eosin += 0.1 * coarse + (0.09 - 0.04 * decay) * fine + 0.05 * scene.grain
    blue = 0.14 - 0.1 * decay + look.dust * rng.uniform(0.02, 0.15) * (1 + 0.5 * coarse) * (1 - 0.6 * decay)
    blue += 0.03 * fine
    scene.section.cover(np.s_[:], scene.soft[NECROSIS], np.clip(blue, 0, None), np.clip(eosin, 0.03, None))
    drawn, dying = each.uniform(size=len(cells)), 4 * stage * (1 - stage)  # most die half way
    shrunken = drawn < rng.uniform(0.2, 0.5) * dying
    crumbling = drawn > 1 - rng.uniform(0.15, 0.5) * dying
    kept = shrunken | (~crumbling & (each.uniform(size=len(cells)) > 1.3 * stage))
    ghosts = vary_nuclei(
        rng,
        cells[kept],
        radius=np.where(shrunken, 2.3, 0.85 * look.radius)[kept],
        spread=0.2,
        elongation=1.2,
        angle=0.0,
        darkness=np.where(shrunken, 1.5, 0.6 - 0.45 * stage)[kept],
        rim=0.3,
    )
    stain_nuclei(scene.section, ghosts, scene.grain, 0.15 * scene.wobble, eosin=0.3)
    spilt = coarse + 0.5 * fine > 1.0 - 0.6 * look.dust + 0.8 * decay
    dust = scatter(rng, region & (spilt | (crumbling[owner] & (distance < 0.8 * look.radius))), 1.8, 0.13)
    stain_nuclei(scene.section, vary_nuclei(rng, dust, 0.95, 0.6, 1.4, 0.8, 1.2), scene.grain, 0.3 * scene.wobble)


def _rest(scene: Scene, region: np.ndarray) -> None:
    """Glass, fat, blood or mucus: what belongs to no class. Glass never fills most of a patch."""
    chances = [0.35, 0.25, 0.25, 0.15] if region.mean() < 0.5 else [0, 0.4, 0.35, 0.25]
    kind = scene.rng.choice(["glass", "fat", "blood", "mucus"], p=chances)
    if kind == "fat":
        _fat(scene, region, OTHER)
    elif kind == "blood":
        _blood(scene, region, OTHER)
    elif kind == "mucus":
        _mucus(scene, region)


def _mucus(scene: Scene, region: np.ndarray) -> None:
    """Pale threads in which a few cells float."""
    threads = np.clip(scene.fibres - 0.3, 0, None) * np.clip(0.5 + smooth_noise(scene.rng, len(region), 14), 0, 1.5)
    wisps = 0.1 + 0.2 * threads
    scene.section.cover(np.s_[:], scene.soft[OTHER], wisps, scene.rng.uniform(0.3, 1.2) * wisps)
    floating = scatter(scene.rng, region, 9.0, scene.rng.uniform(0.05, 0.2))
    foam = vary_nuclei(scene.rng, floating, 6.5, 0.2, 1.1, 0.0, 0.14)  # the cytoplasm of macrophages
    stain_nuclei(scene.section, foam, scene.grain, 0.1 * scene.wobble, eosin=0.3)
    _lymphocytes(scene, floating)


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
    scene.section.cover(np.s_[:], membrane * scene.soft[value], 0.07, 0.75)


def _blood(scene: Scene, region: np.ndarray, value: int = BLOOD) -> None:
    """Red cells in plasma inside the thin wall of a vessel, which flat endothelial nuclei line."""
    rng, depth, soft = scene.rng, _depth(region), scene.soft[value]
    scene.section.cover(np.s_[:], soft, 0.0, 0.06)  # plasma
    discs = scatter(rng, region & (depth > 6), rng.uniform(4.6, 5.6), rng.uniform(0.3, 1.0))
    if len(discs):
        _, distance = nearest_centres(discs, len(region))
        disc = np.clip(3.2 + 0.5 * scene.wobble - distance, 0, 1) * np.clip(depth - 4, 0, 1) * soft
        scene.section.cover(np.s_[:], disc, 0.0, 0.45, 0.3 + 0.12 * np.minimum(distance, 3))
    scene.section.cover(np.s_[:], np.clip(4.4 - depth, 0, 1) * soft, 0.14, 0.75 + 0.06 * scene.fibres)
    lining = scatter(rng, region & (np.abs(depth - 3.5) < 1), 10, share=3)
    nuclei = vary_nuclei(rng, lining, 2.9, 0.12, 4.5, _ascent(depth, lining) + np.pi / 2, 1.5, 0.1)
    stain_nuclei(scene.section, nuclei, scene.grain, 0.06 * scene.wobble)


def _wall(scene: Scene, region: np.ndarray) -> None:
    """Smooth muscle in layers around the lumen of a vessel."""
    rng, outside = scene.rng, _depth(scene.class_map != BLOOD)
    layers = 0.75 + 0.07 * scene.fibres + 0.1 * np.sin(outside / 1.5 + scene.wobble)
    scene.section.cover(np.s_[:], scene.soft[WALL], 0.14, np.clip(layers, 0.1, None))
    centres = scatter(rng, region, 9, 0.6)
    nuclei = vary_nuclei(rng, centres, 3.2, 0.15, 5.0, _ascent(outside, centres) + np.pi / 2, 1.2, 0.1)
    stain_nuclei(scene.section, nuclei, scene.grain, 0.06 * scene.wobble)


def _clefts(scene: Scene) -> None:
    """Nests that have shrunk away from the stroma leave a white gap."""
    gap = 4 * gaussian_filter(scene.soft[TUMOR] * scene.soft[STROMA], 0.8)
    width = smooth_noise(scene.rng, len(gap), 10) + 1.2 * scene.look.clefts - 1.4
    scene.section.cover(np.s_[:], np.clip(2.5 * gap * np.clip(width, 0, 1) - 0.25, 0, 1), 0.0, 0.03)
