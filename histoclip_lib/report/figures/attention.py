"""Figures of attention: over the tissue, against the masks, and the thumbnail of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from histoclip_lib.common.arrays import agreement, all_right, nan_mean
from histoclip_lib.common.files import replacing
from histoclip_lib.common.predictions import THRESHOLD
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.localisation import MEASURES, MapScores, class_means
from histoclip_lib.evaluation.text import state_text
from histoclip_lib.models.attention import MAP_LABELS, PROBE, SHIFTED, TRAINED, enlarge, square_crop
from histoclip_lib.report.figures.base import (
    UNCOLOURED,
    WRONG,
    class_colour,
    described,
    figure,
    listed,
    method_colour,
    panel_grid,
    wrapped,
)
from histoclip_lib.report.figures.patches import outline

MARKERS = {
    TRAINED: "o", SHIFTED: "p", "as_is": ".", "untrained": "s", PROBE: "P", "probe": "X", "similarity": "^",
    "corrected": "v", "centre": "D", "uniform": "|",
}  # fmt: skip
LIKE = {
    TRAINED: "histoclip_patch",
    SHIFTED: "histoclip_patch",
    "as_is": "histoclip_patch",
    PROBE: "linear_probe",
    "probe": "linear_probe",
}
OPACITY = 0.7  # of the highest value over the tissue; the lowest is clear
HOT = (0.4, 1.0)  # part of the colour map that is seen: its dark end would hide the tissue
SIZE, GAP = (480, 320), 4  # of the thumbnail in pixels, 3:2
PALETTE = 255  # colours; a picture in all colours takes three times the bytes


@figure
def map_agreement(scores: MapScores, classes: list[str]) -> Figure:
    """Draw how trained attention and the references agree with the masks, one panel for each of the MEASURES.

    Parameters
    ----------
    scores : MapScores
        Of n patches and N classes.
    classes : list of str
        N names.
    """
    heights, counts = np.arange(len(classes)), (~np.isnan(scores.area)).sum(axis=0)
    drawn, panels = plt.subplots(1, len(MEASURES), figsize=(9, 0.5 * len(classes) + 1.8), sharey=True)
    highest = np.nanmax([class_means(getattr(scores, measure)) for measure in MEASURES], initial=0.1)
    limit, said = min(1.03, 1.15 * highest), []
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        means = class_means(getattr(scores, measure))
        lowest = [np.nanmin(column) if count else np.nan for column, count in zip(means.T, counts, strict=True)]
        axes.hlines(heights, lowest, means[scores.maps.index(TRAINED)], color="0.8", lw=2, zorder=1)
        for name, values in zip(scores.maps, means, strict=True):
            axes.plot(
                values, heights, MARKERS[name], color=_map_colour(name), mew=1.8, ms=11 if name == "uniform" else 6.5,
                mfc=_map_colour(name) if name == TRAINED else "white", label=MAP_LABELS[name],
                zorder=4 if name == TRAINED else 3,
            )  # fmt: skip
        axes.set(title=label, xlim=(-0.03 * limit, limit), ylim=(len(classes) - 0.5, -0.5))
        labels = [MAP_LABELS[name].lower() for name in scores.maps]
        shown = zip(classes, means.T, counts, strict=True)
        said += [f"{label}, {name}: {listed(labels, column)}" for name, column, count in shown if count]
    panels[0].set_yticks(heights, [f"{wrapped(name)} ({n})" for name, n in zip(classes, counts, strict=True)])
    drawn.tight_layout()
    drawn.legend(
        *panels[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4,
        frameon=False, handletextpad=0.1, columnspacing=1.2,
    )  # fmt: skip
    return described(
        drawn,
        f"How maps agree with the masks, by class (patches that count in brackets). {'; '.join(said)}.",
        f"Agreement of the trained head's attention and of {len(scores.maps) - 1} references with the masks of "
        f"{len(scores.area):,} patches; in brackets, those that count: with the class, not covered by it completely. "
        "If the filled dot is to the right of the head before training, training has improved the map.",
    )


def _map_colour(name: str) -> tuple | str:
    """Return the colour of the method that a set of maps comes from; grey for those of none."""
    return method_colour(LIKE[name]) if name in LIKE else UNCOLOURED


def choose_for_attention(
    labels: np.ndarray, probabilities: np.ndarray, count: int, gain: np.ndarray | None = None
) -> list[int]:
    """Return patches to look at, typical ones where masks say which are.

    With `gain`: patches without an error, those with the median gain first, so that none is picked because its map is
    good. Without: in turn for each class the patch in which it is found with the highest probability.

    Parameters
    ----------
    labels, probabilities : ndarray of shape (B, N)
        Truth and sigma(logit).
    count : int
        At most so many; patches with several labels and no error come first, since there the maps should differ.
    gain : ndarray of shape (B, N), optional
        How far each map agrees with the mask, as `MapScores.gain`; NaN where a class is not in the mask.
    """
    right = all_right(labels, probabilities >= THRESHOLD)
    telling = ((labels == 1).sum(axis=1) >= 2) & right
    if gain is not None:
        own = nan_mean(gain, axis=1)
        for among in (telling, right):
            if (places := np.flatnonzero(among & ~np.isnan(own))).size:
                distance = np.abs(own[places] - np.median(own[places]))
                return places[np.argsort(distance, kind="stable")][:count].tolist()
    chosen: list[int] = []
    for only_telling in (True, False):
        found = np.where((labels == 1) & (telling[:, None] | (not only_telling)), probabilities, -1)
        for place in np.argsort(-found, axis=0, kind="stable"):
            for k, patch in enumerate(place):
                if len(chosen) < count and found[patch, k] >= THRESHOLD and patch not in chosen:
                    chosen.append(int(patch))
    return chosen


@figure
def attention_overlay(patches: PatchDataset, i: int, maps: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Draw a patch, its mask, and for each class the attention over the patch.

    Parameters
    ----------
    patches : PatchDataset
        The data set, of N classes.
    i : int
        The patch.
    maps : ndarray of shape (N, g, g)
        Attention, each map summing to 1; the outline of each class in the mask is drawn over it.
    probabilities : ndarray of shape (N,)
        sigma(logit).
    """
    classes, labels, name = patches.classes, patches.labels[i], patches.files[i]
    image, mask = square_crop(patches.picture(i)), patches.mask(i)
    mask = None if mask is None else square_crop(mask)
    first = 1 if mask is None else 2
    drawn, panels = panel_grid(first + len(classes), 6, 2.3, 2.9)
    for axes in panels:
        axes.set_axis_off()
    panels[0].imshow(image)
    panels[0].set_title(wrapped(name), fontsize=9)
    if mask is not None:
        panels[1].imshow(np.array([(1, 1, 1), *map(class_colour, range(len(classes)))])[mask])
        panels[1].set_title("mask", fontsize=9)
    said = []
    for k, axes in enumerate(panels[first:]):
        _overlay(axes, image, maps[k], mask, k)
        right = agreement(labels[k], probabilities[k] >= THRESHOLD) != 0
        state = state_text(labels[k])
        axes.set_title(
            f"{wrapped(classes[k])}\n{state}, p = {probabilities[k]:.2f}{'' if right else '  ✗'}",
            fontsize=9, color="black" if right else WRONG,
        )  # fmt: skip
        place = where_highest(maps[k])
        said.append(f"{classes[k]}: {state}, probability {probabilities[k]:.2f}, most attention {place}")
    drawn.tight_layout()
    return described(
        drawn,
        f"Attention over patch {name}. {'; '.join(said)}.",
        f"Attention of {len(classes)} classes over one held-out patch; brighter means more, ✗ marks an error. "
        + ("The maps of classes that are present should differ." if mask is None
           else "Bright regions should lie inside the line, the outline of the class in the mask."),
    )  # fmt: skip


def _overlay(axes: Axes, image: np.ndarray, attention: np.ndarray, mask: np.ndarray | None, k: int) -> None:
    """Draw the attention of class `k` over a patch, with the outline of its mask."""
    axes.imshow(image)
    axes.imshow(heat_over(attention, len(image)))
    if mask is not None:
        outline(axes, mask, [k])


def hot(values: np.ndarray) -> np.ndarray:
    """Return the colours (..., 4) of values from 0 to 1, from clear to hot."""
    low, high = HOT
    colours = colormaps["inferno"](low + (high - low) * values)
    colours[..., 3] = OPACITY * values
    return colours


def heat_over(attention: np.ndarray, size: int) -> np.ndarray:
    """Return what lies over a patch: a map (g, g) in the colours of `hot`, shape (size, size, 4)."""
    large = enlarge(attention, size)
    return hot(large / max(large.max(), np.finfo(float).tiny))


@figure
def attention_cases(
    patches: PatchDataset,
    index: np.ndarray,
    maps: dict[str, np.ndarray],
    scores: MapScores,
    probabilities: np.ndarray,
    cases: list[tuple[int, int]],
    which: str,
) -> Figure | None:
    """Draw trained attention and the linear probe's map over some patches, one line each, with the mask's outline.

    Parameters
    ----------
    patches : PatchDataset
        With masks.
    index : ndarray of int, shape (n,)
        The patches that the rest belongs to.
    maps : dict of str to ndarray of shape (n, N, g, g)
        With `trained` and `probe_unit`.
    scores : MapScores
        Of these maps.
    probabilities : ndarray of shape (n, N)
        sigma(logit).
    cases : list of (patch, class)
        Positions, as `localisation.best_and_worst` returns; without any the result is None.
    which : str
        `best` or `worst`, for the caption.
    """
    if not cases:
        return None
    drawn, grid = plt.subplots(len(cases), 3, figsize=(9, 3.35 * len(cases)), squeeze=False)
    said = []
    for line, (position, k) in zip(grid, cases, strict=True):
        i, area = index[position], scores.area[position, k]
        image, mask = square_crop(patches.picture(i)), square_crop(patches.mask(i))
        line[0].imshow(image)
        outline(line[0], mask, [k])
        about = f"{area:.0%} of the patch, p = {probabilities[position, k]:.2f}"
        titles = [f"{wrapped(patches.files[i])}\n{wrapped(patches.classes[k])}: {about}"]
        said.append(f"{patches.files[i]}, {patches.classes[k]}: {about}")
        for axes, shown in zip(line[1:], (TRAINED, PROBE), strict=True):
            number = scores.maps.index(shown)
            ap, mass = scores.ap[number, position, k], scores.mass[number, position, k]
            _overlay(axes, image, maps[shown][position, k], mask, k)
            titles.append(f"{MAP_LABELS[shown].lower()}\nAP {ap:.2f}, {mass:.0%} in the mask")
            said[-1] += f", {titles[-1]}".replace("\n", ", ")
        for axes, title in zip(line, titles, strict=True):
            axes.set_axis_off()
            axes.set_title(title, fontsize=10)
    drawn.tight_layout()
    return described(
        drawn,
        f"Attention against masks in {len(cases)} cases. {'; '.join(said)}.",
        f"The {len(cases)} pairs of patch and class with the {which} agreement, of {len(index):,} patches: attention "
        "of the trained head and map of the linear probe. Bright regions should lie inside the outline of the class.",
    )


def where_highest(attention: np.ndarray) -> str:
    """Say in words in which ninth of the patch a map (g, g) has its highest value."""
    row, column = np.unravel_index(attention.argmax(), attention.shape)
    side = attention.shape[0]
    vertical = ("at the top", "in the middle", "at the bottom")[int(3 * row / side)]
    horizontal = ("left", "centre", "right")[int(3 * column / side)]
    return f"{vertical} {horizontal}"


def save_thumbnail(
    path: Path,
    patches: PatchDataset,
    index: np.ndarray,
    maps: np.ndarray,
    probabilities: np.ndarray,
    chosen: list[int],
    gain: np.ndarray | None = None,
) -> None:
    """Write the thumbnail of a run as PNG: the first chosen patch, and the attention of one of its classes.

    That is the class whose gain is the patch's median, as `choose_for_attention` has it, else the most probable one.

    Parameters
    ----------
    path : Path
        The file.
    patches, index, maps, probabilities, chosen, gain
        The patches `index` (B,), their maps (B, N, g, g), and the rest as for `choose_for_attention`; without any
        chosen patch the first one is drawn.
    """
    position = chosen[0] if chosen else 0
    image = square_crop(patches.picture(index[position]))
    k = probabilities[position].argmax()
    if gain is not None and not np.isnan(gain[position]).all():
        k = np.nanargmin(np.abs(gain[position] - np.nanmedian(gain[position])))
    picture = side_by_side(image, maps[position, k])
    with replacing(path) as temporary:
        Image.fromarray(picture).quantize(PALETTE, dither=Image.Dither.FLOYDSTEINBERG).save(temporary, "PNG")


def side_by_side(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Return a patch on the left and the same with attention over it on the right, shape (320, 480, 3), uint8.

    Each half shows the middle of the patch at its full height.

    Parameters
    ----------
    image : ndarray of shape (S, S, 3), uint8
        What the encoder saw.
    attention : ndarray of shape (g, g)
        One map.
    """
    width, height = SIZE
    large = np.asarray(Image.fromarray(image).resize((height, height), Image.Resampling.LANCZOS), dtype=float)
    heat = heat_over(attention, height)
    over = (1 - heat[..., 3:]) * large + 255 * heat[..., 3:] * heat[..., :3]
    half = (width - GAP) // 2
    left = (height - half) // 2
    picture = np.full((height, width, 3), 255.0)
    picture[:, :half] = large[:, left : left + half]
    picture[:, -half:] = over[:, left : left + half]
    return picture.round().astype(np.uint8)
