"""Explorers of patches: the tissue with its labels and masks, and the attention over it."""

from __future__ import annotations

import matplotlib
import numpy as np
from ipywidgets import HTML, Checkbox, Dropdown, FloatSlider, VBox
from PIL import Image
from skimage.morphology import erosion

from histoclip_lib.common.html import Node, element, picture, table
from histoclip_lib.common.predictions import THRESHOLD
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.models.attention import enlarge, square_crop
from histoclip_lib.report.explore.base import BESIDE, STYLE, WIDE, Explorer, beside, choice, counter, swatch, write
from histoclip_lib.report.figures import patches as galleries
from histoclip_lib.report.figures.base import CLASS_COLOURS

SIDE = 280  # pixels of the longer side of a shown patch
OUTLINE = np.ones((5, 5), dtype=bool)  # takes two pixels off on every side
ON_PAGE = 8  # patches in the picture of `patches`
UNREADABLE = (OSError, ValueError)  # HistoCLIPError is a ValueError


def patches(patches: PatchDataset, static: object = None) -> Explorer:
    """Return an explorer of a data set: patches of a class and a group, with outlines of the mask, and labels.

    Parameters
    ----------
    patches : PatchDataset
        B patches.
    static : Figure or object with `_repr_mimebundle_`, optional
        What a page shows; by default some patches.

    Returns
    -------
    Explorer
        Controls `class`, `state`, `patch` and, where the data set has them, `group` and `outlines`; views `picture`
        and `labels`.
    """
    controls = {
        "class": choice("Class", patches.classes, "Show patches by this class", first="any class"),
        "state": Dropdown(
            options=["present", "absent"], description="which is", tooltip="Whether the class is there", style=STYLE,
            layout={"width": WIDE},
        ),
    }  # fmt: skip
    group_names = [] if patches.groups is None else np.unique(patches.groups).tolist()
    if group_names:
        controls["group"] = choice("Group", group_names, "Show patches of one patient or source image", "any group")
    controls["patch"] = counter("Patch", len(patches), "Which of the patches that fit")
    if patches.has_masks:
        controls["outlines"] = _outlines_box("Draw the borders of the classes in the mask")
    views = {"picture": HTML(layout=BESIDE), "labels": HTML()}
    fitting = np.arange(len(patches))

    def choose(_: object = None) -> None:
        nonlocal fitting
        fits, k = np.ones(len(patches), dtype=bool), controls["class"].value
        controls["state"].disabled = k < 0
        if k >= 0:
            fits &= patches.labels[:, k] == (controls["state"].value == "present")
        if group_names and controls["group"].value >= 0:
            fits &= patches.groups == group_names[controls["group"].value]
        fitting = np.flatnonzero(fits)
        controls["patch"].max = max(1, len(fitting))
        controls["patch"].disabled = len(fitting) < 2
        if controls["patch"].value == 1:
            draw()
        else:
            controls["patch"].value = 1

    def draw(_: object = None) -> None:
        place = controls["patch"].value
        if place > len(fitting):
            write(views["picture"], element("p", "No patch fits."))
            write(views["labels"])
            return
        row = fitting[place - 1]
        try:
            image, mask = resized(patches.image(row)), patches.mask(row)
        except UNREADABLE as error:
            write(views["picture"], element("p", f"{patches.files[row]} cannot be read: {error}"))
            mask = None
        else:
            if mask is not None and controls["outlines"].value:
                image = outlined(image, _mask_to(mask, image), range(len(patches.classes)))
            write(views["picture"], picture(image, _in_words(patches, row)))
        write(views["labels"], *_about(patches, row, f"{place} of {len(fitting)}"), _label_table(patches, row, mask))

    for name, control in controls.items():
        control.observe(draw if name in ("patch", "outlines") else choose, "value")
    choose()
    box = VBox([*controls.values(), beside(*views.values())])
    return Explorer(
        box, controls, views, static or galleries.sample_patches(patches, np.arange(len(patches)), ON_PAGE, 0)
    )


def attention(
    patches: PatchDataset,
    rows: np.ndarray,
    maps: np.ndarray,
    probabilities: np.ndarray,
    chosen: list[int],
    static: object = None,
) -> Explorer:
    """Return an explorer of attention: a patch, its mask, the map of one class over it, and what was decided.

    Parameters
    ----------
    patches : PatchDataset
        The data set.
    rows : ndarray of int, shape (B,)
        The patches that the rest belongs to.
    maps : ndarray of shape (B, N, g, g)
        Attention, not negative.
    probabilities : ndarray of shape (B, N)
        sigma(logit).
    chosen : list of int
        Positions in `rows` that come first; the others follow in their order.
    static : Figure or object with `_repr_mimebundle_`, optional
        What a page shows; by default the first patch with the attention of all its classes.

    Returns
    -------
    Explorer
        Controls `patch`, `class`, `opacity` and, where the data set has masks, `outlines`; views `patch`, `mask`,
        `attention` and `scores`.
    """
    order = [*chosen, *np.setdiff1d(np.arange(len(rows)), chosen).tolist()]
    controls = {
        "patch": counter("Patch", len(order), "The patches of the galleries come first"),
        "class": choice("Class", patches.classes, "Whose attention is shown"),
        "opacity": FloatSlider(
            value=0.55, min=0, max=1, step=0.05, description="Opacity", tooltip="How much the map covers the tissue",
            style=STYLE, layout={"width": WIDE},
        ),
    }  # fmt: skip
    if patches.has_masks:
        controls["outlines"] = _outlines_box("Draw the border of the class in the mask")
    views = {name: HTML(layout=BESIDE) for name in ("patch", "mask", "attention", "scores")}
    colours = np.vstack([[1, 1, 1], [CLASS_COLOURS[k % 10] for k in range(len(patches.classes))]])

    def draw(_: object = None) -> None:
        position, k = order[controls["patch"].value - 1], controls["class"].value
        row, file, name = rows[position], patches.files[rows[position]], patches.classes[k]
        try:
            image, mask = resized(square_crop(patches.image(row))), patches.mask(row)
        except UNREADABLE as error:
            mask = None
            write(views["patch"], element("p", f"{file} cannot be read: {error}"))
            write(views["attention"])
        else:
            overlay = overlaid(image, maps[position, k], controls["opacity"].value)
            if mask is not None:
                mask = _mask_to(square_crop(mask), image)
                write(views["mask"], _titled("mask", (colours * 255).astype(np.uint8)[mask], f"mask of patch {file}"))
                if controls["outlines"].value:
                    image, overlay = outlined(image, mask, [k]), outlined(overlay, mask, [k])
            write(views["patch"], _titled(file, image, _in_words(patches, row)))
            words = f"attention of {name} over patch {file}"
            write(views["attention"], _titled(f"attention of {name}", overlay, words))
        views["mask"].layout.display = "none" if mask is None else ""
        scores = _score_table(patches, row, maps[position], probabilities[position], mask, k)
        write(views["scores"], *_about(patches, row, f"{controls['patch'].value} of {len(order)}"), scores)

    for control in controls.values():
        control.observe(draw, "value")
    draw()
    first = galleries.attention_figures(patches, rows, maps, probabilities, order[:1])
    box = VBox([*controls.values(), beside(*views.values())])
    return Explorer(box, controls, views, static or next(first))


def overlaid(image: np.ndarray, attention: np.ndarray, opacity: float) -> np.ndarray:
    """Lay a map (g, g) from its lowest to its highest value over a grey image (S, S, 3), uint8; opacity 0 to 1."""
    enlarged = enlarge(attention.astype(float), len(image))
    spread = np.ptp(enlarged)
    heat = matplotlib.colormaps["inferno"]((enlarged - enlarged.min()) / (spread if spread > 0 else 1))[..., :3] * 255
    grey = image.mean(axis=2, keepdims=True)
    return ((1 - opacity) * grey + opacity * heat).astype(np.uint8)


def outlined(image: np.ndarray, mask: np.ndarray, classes: range | list[int]) -> np.ndarray:
    """Draw the border of each class's region in `mask` (H, W), inside it, into a copy of `image` (H, W, 3), uint8."""
    image = image.copy()
    for k in classes:
        inside = mask == k + 1
        image[inside & ~erosion(inside, OUTLINE)] = np.multiply(CLASS_COLOURS[k % 10], 255)
    return image


def _outlines_box(tooltip: str) -> Checkbox:
    return Checkbox(value=True, description="Outlines of the mask", tooltip=tooltip, style=STYLE)


def resized(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) whose longer side has SIDE pixels."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _mask_to(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return a class map in the size of an image."""
    return np.asarray(Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST))


def _titled(title: str, image: np.ndarray, alternative: str) -> Node:
    caption = element("figcaption", title, style=f"max-width: {SIDE}px; overflow-wrap: anywhere")
    return element("figure", picture(image, alternative), caption, style="margin: 0")


def _in_words(patches: PatchDataset, row: int) -> str:
    present = [patches.classes[k] for k in np.flatnonzero(patches.labels[row])]
    return f"patch {patches.files[row]}: {', '.join(present) or 'no label'}"


def _about(patches: PatchDataset, row: int, place: str) -> list[Node]:
    """Return lines on where a patch comes from."""
    known = {"group": patches.groups, "part": patches.parts, "tissue": patches.tissue}
    facts = [["patch", place], ["file", patches.files[row]]]
    facts += [[name, str(values[row])] for name, values in known.items() if values is not None]
    return [table([], facts)]


def _label_table(patches: PatchDataset, row: int, mask: np.ndarray | None) -> Node:
    header = ["class", "label"] + ["area in the mask"] * (mask is not None)
    lines = []
    for k, name in enumerate(patches.classes):
        line = [element("span", swatch(k), f" {name}"), _state(patches.labels[row, k])]
        lines.append(line if mask is None else [*line, f"{(mask == k + 1).mean():.1%}"])
    return table(header, lines)


def _score_table(
    patches: PatchDataset, row: int, maps: np.ndarray, probabilities: np.ndarray, mask: np.ndarray | None, chosen: int
) -> Node:
    """Return a table of all classes: truth, probability and, with a mask (S, S), its area and the attention in it."""
    header = ["class", "truth", "p", "decision"] + ["area in the mask", "attention there"] * (mask is not None)
    lines = []
    for k, name in enumerate(patches.classes):
        right = (probabilities[k] >= THRESHOLD) == bool(patches.labels[row, k])
        named = element("span", swatch(k), " ", element("strong", name) if k == chosen else name)
        line = [named, _state(patches.labels[row, k]), f"{probabilities[k]:.2f}", "right" if right else "wrong ✗"]
        if mask is not None:
            inside, enlarged = mask == k + 1, enlarge(maps[k].astype(float), len(mask))
            share = enlarged[inside].sum() / enlarged.sum() if inside.any() else None
            line += [f"{inside.mean():.1%}", "—" if share is None else f"{share:.1%}"]
        lines.append(line)
    return table(header, lines)


def _state(label: int) -> str:
    return "present" if label else "absent"
