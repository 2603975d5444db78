"""Pictures of patches: samples, the most confident errors, attention over the tissue, and the run's thumbnail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from histoclip_lib.common.files import replacing
from histoclip_lib.common.predictions import THRESHOLD
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.leakage import NearDuplicates, correlation_text
from histoclip_lib.evaluation.localisation import MapScores
from histoclip_lib.models.attention import MAP_LABELS, enlarge, square_crop
from histoclip_lib.report.figures.base import CLASS_COLOURS, described, short


def patch_grid(
    images: list[np.ndarray],
    captions: list[str],
    alternative: str,
    masks: list[np.ndarray | None],
    classes: list[str],
    columns: int = 4,
) -> Figure:
    """Draw patches in a grid, with captions and, where there are masks, the outlines of the classes.

    Parameters
    ----------
    images : list of ndarray (H, W, 3), uint8
        The patches.
    captions : list of str
        One above each.
    alternative : str
        What the grid shows, in words.
    masks : list of (ndarray (H, W), uint8, or None)
        Class map of each patch.
    classes : list of str
        N names, for the legend of the outlines.
    columns : int
        Patches in a row.
    """
    columns = min(columns, len(images))
    lines = -(-len(images) // columns)
    height = 2.6 + 0.2 * max(caption.count("\n") + 1 for caption in captions)
    figure, grid = plt.subplots(lines, columns, figsize=(2.6 * columns, height * lines), squeeze=False)
    outlined: set[int] = set()
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, caption, mask in zip(grid.flat, images, captions, masks, strict=False):
        axes.imshow(image)
        axes.set_title(caption, fontsize=9)
        if mask is not None:
            outlined |= _outline(axes, mask, range(len(classes)))
    figure.tight_layout()
    if outlined:
        handles = [plt.Line2D([], [], color=CLASS_COLOURS[k % 10], lw=2) for k in sorted(outlined)]
        names = [short(classes[k]) for k in sorted(outlined)]
        figure.legend(handles, names, loc="upper center", ncols=len(names), bbox_to_anchor=(0.5, 0.01))
    return described(figure, alternative)


def _outline(axes: Axes, mask: np.ndarray, classes: range | list[int]) -> set[int]:
    """Draw the border of each class's region and return the classes that are there."""
    there = {k for k in classes if (mask == k + 1).any()}
    for k in there:
        inside = mask == k + 1
        if not inside.all():
            axes.contour(inside, levels=[0.5], colors=["white"], linewidths=2.4)
            axes.contour(inside, levels=[0.5], colors=[CLASS_COLOURS[k % 10]], linewidths=1.2)
    return there


def sample_patches(patches: PatchDataset, rows: np.ndarray, count: int, seed: int) -> Figure:
    """Draw some of the patches `rows` at random, with their labels and masks."""
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False))
    labelled = [_label_text(patches.labels[row], patches.classes) for row in chosen]
    listed = "; ".join(f"{patches.files[row]}: {text}" for row, text in zip(chosen, labelled, strict=True))
    captions = [_wrapped(text) for text in labelled]
    images, masks = [patches.image(row) for row in chosen], [patches.mask(row) for row in chosen]
    return patch_grid(images, captions, f"{len(chosen)} patches. {listed}.", masks, patches.classes)


def _label_text(labels: np.ndarray, classes: list[str]) -> str:
    return ", ".join(short(classes[k]) for k in np.flatnonzero(labels)) or "no label"


def _wrapped(text: str, width: int = 34) -> str:
    """Break a caption at its commas so that it stays within one patch."""
    lines = [""]
    for part in text.split(", "):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part + ", "
    return "\n".join(lines).removesuffix(", ")


def near_duplicate_pairs(patches: PatchDataset, found: NearDuplicates, count: int) -> Figure:
    """Draw the `count` pairs of a validation and a training patch whose pixels are most alike, side by side."""
    images, captions = [], []
    for place in found.worst_first[:count]:
        kind = "near-duplicate" if found.flagged[place] else "not flagged"
        alike = f"{kind}: pixels {correlation_text(found.correlation[place])}"
        for part, row, remark in (
            ("validation", found.val[place], alike),
            ("train", found.nearest[place], "same bytes" if found.same_bytes[place] else " "),
        ):
            group = "" if patches.groups is None else f", group {short(patches.groups[row])}"
            captions.append("\n".join([f"{part}{group}", short(patches.files[row]), remark]))
            images.append(patches.image(row))
    listed = "; ".join(" ".join(caption.split()) for caption in captions)
    alternative = f"Pairs of a validation and a training patch, the most alike first. {listed}."
    return patch_grid(images, captions, alternative, [None] * len(images), patches.classes)


def find_confident_errors(labels: np.ndarray, probabilities: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Return the (patch, class) positions of the wrong decisions with the highest confidence, worst first.

    Parameters
    ----------
    labels, probabilities : ndarray of shape (B, N)
        Truth and sigma(logit).
    count : int
        At most so many, and no patch twice.
    """
    confidence = np.abs(probabilities - THRESHOLD)
    wrong = (probabilities >= THRESHOLD) != labels.astype(bool)
    chosen: dict[int, tuple[int, int]] = {}
    for position in np.argsort(-np.where(wrong, confidence, -1), axis=None, kind="stable"):
        patch, k = divmod(int(position), labels.shape[1])
        if not wrong[patch, k] or len(chosen) == count:
            break
        chosen.setdefault(patch, (patch, k))
    return list(chosen.values())


def confident_errors(patches: PatchDataset, val: np.ndarray, probabilities: np.ndarray, count: int) -> Figure | None:
    """Draw the most confident errors; `probabilities` (B, N) of the patches `val`. None where there is no error."""
    errors = find_confident_errors(patches.labels[val], probabilities, count)
    if not errors:
        return None
    rows = [val[patch] for patch, _ in errors]
    captions = [
        f"{short(patches.classes[k])}: {'missed' if patches.labels[val[patch], k] else 'invented'}, "
        f"p = {probabilities[patch, k]:.2f}\n"
        f"truth: {_wrapped(_label_text(patches.labels[val[patch]], patches.classes))}"
        for patch, k in errors
    ]
    listed = "; ".join(
        f"{patches.files[row]}: {caption}".replace("\n", ", ") for row, caption in zip(rows, captions, strict=True)
    )
    images, masks = [patches.image(row) for row in rows], [patches.mask(row) for row in rows]
    return patch_grid(images, captions, f"The most confident errors. {listed}.", masks, patches.classes)


def choose_for_attention(labels: np.ndarray, probabilities: np.ndarray, count: int) -> list[int]:
    """Return patches to look at: in turn for each class the one in which it is most surely and rightly found.

    Parameters
    ----------
    labels, probabilities : ndarray of shape (B, N)
        Truth and sigma(logit).
    count : int
        At most so many; patches with several labels and no error come first, since there the maps should differ.
    """
    right = ((probabilities >= THRESHOLD) == labels).all(axis=1)
    telling = (labels.sum(axis=1) >= 2) & right
    chosen: list[int] = []
    for only_telling in (True, False):
        found = np.where((labels == 1) & (telling[:, None] | (not only_telling)), probabilities, -1)
        for place in np.argsort(-found, axis=0, kind="stable"):
            for k, patch in enumerate(place):
                if len(chosen) < count and found[patch, k] >= THRESHOLD and patch not in chosen:
                    chosen.append(int(patch))
    return chosen


def attention_figures(
    patches: PatchDataset, rows: np.ndarray, maps: np.ndarray, probabilities: np.ndarray, chosen: list[int]
) -> Iterator[Figure]:
    """Draw `attention_overlay` for some patches.

    Parameters
    ----------
    patches : PatchDataset
        The data set.
    rows : ndarray of int, shape (B,)
        The patches that `maps` (B, N, g, g) and `probabilities` (B, N) belong to.
    maps, probabilities : ndarray
        See above.
    chosen : list of int
        Positions in `rows`.
    """
    for position in chosen:
        row = rows[position]
        mask = patches.mask(row)
        yield attention_overlay(
            square_crop(patches.image(row)),
            maps[position],
            patches.classes,
            patches.labels[row],
            probabilities[position],
            None if mask is None else square_crop(mask),
            patches.files[row],
        )


def attention_cases(
    patches: PatchDataset,
    rows: np.ndarray,
    maps: dict[str, np.ndarray],
    scores: MapScores,
    probabilities: np.ndarray,
    cases: list[tuple[int, int]],
) -> Figure | None:
    """Draw trained attention and text similarity over some patches, one line each, with the outline of the mask.

    Parameters
    ----------
    patches : PatchDataset
        With masks.
    rows : ndarray of int, shape (n,)
        The patches that the rest belongs to.
    maps : dict of str to ndarray of shape (n, N, g, g)
        With `trained` and `similarity`.
    scores : MapScores
        Of these maps.
    probabilities : ndarray of shape (n, N)
        sigma(logit).
    cases : list of (patch, class)
        Positions, as `attention_scores.best_and_worst` returns; without any the result is None.
    """
    if not cases:
        return None
    figure, grid = plt.subplots(len(cases), 3, figsize=(9, 3.35 * len(cases)), squeeze=False)
    listed = []
    for line, (i, k) in zip(grid, cases, strict=True):
        image, mask = square_crop(patches.image(rows[i])), square_crop(patches.mask(rows[i]))
        name, file, area = short(patches.classes[k]), short(patches.files[rows[i]]), scores.area[i, k]
        captions = [f"{file}\n{name}: {area:.0%} of the patch, p = {probabilities[i, k]:.2f}"]
        for axes, shown in zip(line[1:], ("trained", "similarity"), strict=True):
            number = scores.maps.index(shown)
            ap, mass = scores.ap[number, i, k], scores.mass[number, i, k]
            axes.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
            axes.imshow(enlarge(maps[shown][i, k], len(image)), cmap="inferno", alpha=0.55)
            captions.append(f"{MAP_LABELS[shown].lower()}\nAP {ap:.2f}, {mass:.0%} in the mask")
        line[0].imshow(image)
        for axes, caption in zip(line, captions, strict=True):
            axes.set_axis_off()
            axes.set_title(caption, fontsize=10)
            _outline(axes, mask, [k])
        listed.append(", ".join(captions).replace("\n", ", "))
    figure.tight_layout()
    return described(figure, f"Attention against masks in {len(cases)} cases. {'; '.join(listed)}.")


def attention_overlay(
    image: np.ndarray,
    maps: np.ndarray,
    classes: list[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    mask: np.ndarray | None,
    name: str,
) -> Figure:
    """Draw a patch, its mask, and for each class the attention over the patch.

    Parameters
    ----------
    image : ndarray of shape (S, S, 3), uint8
        What the encoder saw.
    maps : ndarray of shape (N, g, g)
        Attention, each map summing to 1.
    classes : list of str
        N names.
    labels, probabilities : ndarray of shape (N,)
        Truth and sigma(logit).
    mask : ndarray of shape (S, S), uint8, or None
        Class map; the outline of each class is drawn over its attention.
    name : str
        Of the patch.
    """
    first = 1 if mask is None else 2
    panels = first + len(classes)
    columns = min(panels, 6)
    lines = -(-panels // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(2.3 * columns, 2.9 * lines), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    grid.flat[0].imshow(image)
    grid.flat[0].set_title(short(name), fontsize=9)
    if mask is not None:
        colours = np.vstack([[1, 1, 1], [CLASS_COLOURS[k % 10] for k in range(len(classes))]])
        grid.flat[1].imshow(colours[mask])
        grid.flat[1].set_title("mask", fontsize=9)
    grey = image.mean(axis=2)
    for k, axes in enumerate(list(grid.flat)[first:panels]):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.imshow(enlarge(maps[k], len(image)), cmap="inferno", alpha=0.55)
        if mask is not None:
            _outline(axes, mask, [k])
        right = (probabilities[k] >= THRESHOLD) == bool(labels[k])
        axes.set_title(
            f"{short(classes[k])}\n{'present' if labels[k] else 'absent'}, p = {probabilities[k]:.2f}"
            f"{'' if right else '  ✗'}",
            fontsize=9,
            color="black" if right else CLASS_COLOURS[3],
        )
    figure.tight_layout()
    listed = "; ".join(
        f"{c}: {'present' if labels[k] else 'absent'}, probability {probabilities[k]:.2f}, most attention "
        f"{where_highest(maps[k])}"
        for k, c in enumerate(classes)
    )
    return described(figure, f"Attention over patch {name}. {listed}.")


def where_highest(attention: np.ndarray) -> str:
    """Say in words in which ninth of the patch a map (g, g) has its highest value."""
    row, column = np.unravel_index(attention.argmax(), attention.shape)
    side = attention.shape[0]
    vertical = ("at the top", "in the middle", "at the bottom")[int(3 * row / side)]
    horizontal = ("left", "centre", "right")[int(3 * column / side)]
    return f"{vertical} {horizontal}"


SIZE = (480, 320)  # pixels, 3:2
GAP = 4
COLOURS = 255  # of the palette; a picture in all colours takes three times the bytes


def save_thumbnail(
    path: Path,
    patches: PatchDataset,
    rows: np.ndarray,
    maps: np.ndarray,
    probabilities: np.ndarray,
    chosen: list[int],
) -> None:
    """Write the thumbnail of a run as PNG: the first of the chosen patches and the attention of its surest class.

    Parameters
    ----------
    path : Path
        The file.
    patches : PatchDataset
        The data set.
    rows : ndarray of int, shape (B,)
        The patches that `maps` (B, N, g, g) and `probabilities` (B, N) belong to.
    maps, probabilities : ndarray
        See above.
    chosen : list of int
        Positions in `rows`, as `galleries.choose_for_attention` returns; without any the first patch is drawn.
    """
    position = chosen[0] if chosen else 0
    image = square_crop(patches.image(rows[position]))
    picture = side_by_side(image, maps[position, probabilities[position].argmax()])
    with replacing(path) as temporary:
        Image.fromarray(picture).quantize(COLOURS, dither=Image.Dither.FLOYDSTEINBERG).save(temporary, "PNG")


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
    heat = enlarge(attention / max(attention.max(), np.finfo(float).tiny), height)
    colour = 255 * colormaps["inferno"](heat)[..., :3]
    over = 0.45 * large.mean(axis=2, keepdims=True) + 0.55 * colour
    half = (width - GAP) // 2
    left = (height - half) // 2
    picture = np.full((height, width, 3), 255.0)
    picture[:, :half] = large[:, left : left + half]
    picture[:, -half:] = over[:, left : left + half]
    return picture.round().astype(np.uint8)
