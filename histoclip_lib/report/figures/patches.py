"""Figures of patches: samples, the most confident errors, and pairs that are nearly the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histoclip_lib.common.arrays import agreement
from histoclip_lib.common.predictions import THRESHOLD
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.leakage import NearDuplicates, correlation_text
from histoclip_lib.report.figures.base import class_colour, described, figure, panel_grid, wrapped

OUTLINES = " Lines are the outlines of the classes in the mask."


@figure
def patch_grid(
    images: list[np.ndarray],
    titles: list[str],
    alternative: str,
    caption: str,
    columns: int = 4,
    masks: list[np.ndarray | None] | None = None,
    classes: Sequence[str] = (),
) -> Figure:
    """Draw patches in a grid, with titles and, where there are masks, the outlines of the classes.

    Parameters
    ----------
    images : list of ndarray (H, W, 3), uint8
        The patches.
    titles : list of str
        One above each.
    alternative, caption : str
        What the grid shows in words, and what to look for.
    columns : int
        Patches in a line.
    masks : list of (ndarray (H, W), uint8, or None), optional
        Class map of each patch.
    classes : sequence of str
        N names, for the legend of the outlines.
    """
    height = 2.6 + 0.2 * max(title.count("\n") + 1 for title in titles)
    drawn, panels = panel_grid(len(images), columns, 2.6, height)
    outlined: set[int] = set()
    for axes, image, title, mask in zip(panels, images, titles, masks or [None] * len(images), strict=True):
        axes.set_axis_off()
        axes.imshow(image)
        axes.set_title(title, fontsize=9)
        if mask is not None:
            outlined |= outline(axes, mask, range(len(classes)))
    drawn.tight_layout()
    if outlined:
        handles = [plt.Line2D([], [], color=class_colour(k), lw=2) for k in sorted(outlined)]
        names = [wrapped(classes[k]) for k in sorted(outlined)]
        drawn.legend(handles, names, loc="upper center", ncols=min(len(names), 5), bbox_to_anchor=(0.5, 0.01))
    return described(drawn, alternative, caption + (OUTLINES if outlined else ""))


def outline(axes: Axes, mask: np.ndarray, classes: range | list[int]) -> set[int]:
    """Draw the border of each class's region in `mask` (H, W) and return the classes that are there."""
    there = {k for k in classes if (mask == k + 1).any()}
    for k in there:
        inside = mask == k + 1
        if not inside.all():
            axes.contour(inside, levels=[0.5], colors=["white"], linewidths=2.4)
            axes.contour(inside, levels=[0.5], colors=[class_colour(k)], linewidths=1.2)
    return there


def sample_patches(patches: PatchDataset, index: np.ndarray, count: int, seed: int) -> Figure:
    """Draw some of the patches `index` at random, with their labels and masks."""
    chosen = np.sort(np.random.default_rng(seed).choice(index, min(count, len(index)), replace=False))
    labelled = [_labels_of(patches, i) for i in chosen]
    said = "; ".join(f"{patches.files[i]}: {text}" for i, text in zip(chosen, labelled, strict=True))
    return patch_grid(
        [patches.picture(i) for i in chosen],
        [wrapped(text, 34) for text in labelled],
        f"{len(chosen)} patches. {said}.",
        f"{len(chosen)} of {len(index):,} patches, drawn at random, with their labels.",
        masks=[patches.mask(i) for i in chosen],
        classes=patches.classes,
    )


def _labels_of(patches: PatchDataset, i: int) -> str:
    nothing = "no known label" if np.isnan(patches.labels[i]).any() else "no label"
    return ", ".join(patches.classes[k] for k in np.flatnonzero(patches.labels[i] == 1)) or nothing


def near_duplicate_pairs(patches: PatchDataset, found: NearDuplicates, count: int) -> Figure:
    """Draw the `count` pairs of a validation and a training patch whose pixels are most alike, side by side."""
    images, titles = [], []
    for place in found.worst_first[:count]:
        kind = "near-duplicate" if found.flagged[place] else "not flagged"
        alike = f"{kind}: pixels {correlation_text(found.correlation[place])}"
        for part, i, remark in (
            ("validation", found.val[place], alike),
            ("train", found.nearest[place], "same bytes" if found.same_bytes[place] else " "),
        ):
            group = "" if patches.groups is None else f", group {patches.groups[i]}"
            titles.append("\n".join([wrapped(f"{part}{group}", 34), wrapped(patches.files[i], 34), remark]))
            images.append(patches.picture(i))
    said = "; ".join(" ".join(title.split()) for title in titles)
    return patch_grid(
        images,
        titles,
        f"Pairs of a validation and a training patch, the most alike first. {said}.",
        f"The {len(images) // 2} of {len(found.val):,} held-out patches that are most like a training patch, which "
        "is on their right. Pairs that show the same piece of tissue are leakage, flagged or not.",
    )


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
    wrong = agreement(labels, probabilities >= THRESHOLD) == 0
    chosen: dict[int, tuple[int, int]] = {}
    for position in np.argsort(-np.where(wrong, confidence, -1), axis=None, kind="stable"):
        patch, k = divmod(int(position), labels.shape[1])
        if not wrong[patch, k] or len(chosen) == count:
            break
        chosen.setdefault(patch, (patch, k))
    return list(chosen.values())


def confident_errors(patches: PatchDataset, index: np.ndarray, probabilities: np.ndarray, count: int) -> Figure | None:
    """Draw the most confident errors; `probabilities` (B, N) of the patches `index`. None where there is no error."""
    errors = find_confident_errors(patches.labels[index], probabilities, count)
    if not errors:
        return None
    titles, said = [], []
    for position, k in errors:
        i = index[position]
        kind = "false negative" if patches.labels[i, k] else "false positive"
        decision, truth = f"{kind}, p = {probabilities[position, k]:.2f}", f"truth: {_labels_of(patches, i)}"
        titles.append("\n".join([wrapped(patches.classes[k]), decision, wrapped(truth, 34)]))
        said.append(f"{patches.files[i]}: {patches.classes[k]}, {decision}, {truth}")
    chosen = [index[position] for position, _ in errors]
    return patch_grid(
        [patches.picture(i) for i in chosen],
        titles,
        f"The most confident errors. {'; '.join(said)}.",
        f"The {len(errors)} most confident errors among {len(index):,} patches, one for each patch. In "
        "annotated data, look for wrong labels.",
        masks=[patches.mask(i) for i in chosen],
        classes=patches.classes,
    )
