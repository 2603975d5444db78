"""Explorers for pages: a static figure and the data with which the page's script lets a reader move through patches."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import thumbnail
from histoclip_lib.common.predictions import THRESHOLD
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.models.attention import enlarge, square_crop
from histoclip_lib.report.figures import patches as galleries
from histoclip_lib.report.figures.base import CLASS_COLOURS, as_image

ATTENTION_TYPE = "application/vnd.histoclip.attention+json"  # the names that `export` knows
GALLERY_TYPE = "application/vnd.histoclip.gallery+json"
MOST_EXPLORED, PATCH_SIDE, PATCH_QUALITY = 24, 224, 75  # patches with attention; side in pixels; of WebP
MOST_IN_GALLERY, THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 200, 112, 50
FLAT = 1e-5  # a map that varies by less, as a part of its highest value, is even: rounding


@dataclass(frozen=True, eq=False)
class PageExplorer:
    """A figure, and what a page needs to put something in its place that a reader can move through.

    JupyterLab, paper and a browser without scripts show the figure.

    Attributes
    ----------
    type : str
        ATTENTION_TYPE or GALLERY_TYPE: what the page's script makes of `data`.
    data : dict
        As JSON holds it.
    static : Figure
        With its text alternative.
    """

    type: str
    data: dict = field(repr=False)
    static: Figure = field(repr=False)

    def __post_init__(self) -> None:
        """Close the figure: a notebook shows those that are left open below the cell, once more."""
        plt.close(self.static)

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        """Return the data beside the figure; alt text and width are in the figure's metadata."""
        drawn, metadata = as_image(self.static)._repr_mimebundle_()
        return {self.type: self.data, **drawn}, metadata


def choose_to_explore(labels: np.ndarray, probabilities: np.ndarray, count: int = MOST_EXPLORED) -> list[int]:
    """Return patches to look at, so that a reader sees both what goes well and what fails.

    Parameters
    ----------
    labels, probabilities : ndarray of shape (B, N)
        Truth and sigma(logit).
    count : int
        How many, of B at most.

    Returns
    -------
    list of int
        Positions, none twice. First those without a wrong decision, in the order of `galleries.choose_for_attention`;
        then, as about half, those with the most confident errors. Where one kind is short, more of the other.
    """
    count = min(count, len(labels))
    right = np.flatnonzero(((probabilities >= THRESHOLD) == labels).all(axis=1))
    telling = right[galleries.choose_for_attention(labels[right], probabilities[right], count)].tolist()
    telling += np.setdiff1d(right, telling)[: count - len(telling)].tolist()  # those in which there is nothing to find
    wrong = [patch for patch, _ in galleries.find_confident_errors(labels, probabilities, count)]
    n_wrong = min(len(wrong), max(count // 2, count - len(telling)))
    return telling[: count - n_wrong] + wrong[:n_wrong]


def attention_explorer(
    patches: PatchDataset, rows: np.ndarray, maps: np.ndarray, probabilities: np.ndarray, chosen: list[int]
) -> PageExplorer:
    """Return an explorer of attention: a patch, its mask, and the map of any class over it.

    Its figure is `galleries.attention_overlay` of the first patch.

    Parameters
    ----------
    patches : PatchDataset
        The data set.
    rows : ndarray of int, shape (B,)
        The patches that `maps` and `probabilities` belong to.
    maps : ndarray of shape (B, N, g, g)
        Attention, each map summing to 1.
    probabilities : ndarray of shape (B, N)
        sigma(logit).
    chosen : list of int
        Positions in `rows`, from 1 to MOST_EXPLORED of them.

    Raises
    ------
    HistoCLIPError
        If there are none or too many.
    """
    if not 1 <= len(chosen) <= MOST_EXPLORED:
        raise HistoCLIPError(
            f"attention_explorer: {len(chosen)} patches are chosen; a page holds 1 to {MOST_EXPLORED}. Choose as "
            "`choose_to_explore` does."
        )
    heat = np.round(matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    data = _shared(patches) | {
        "grid": maps.shape[-1],
        "heat": _base64(heat.tobytes()),  # 256 colours, each red, green, blue
        "maskStep": 255 // len(patches.classes),
        "patches": [_about(patches, rows[i], probabilities[i]) | _attended(patches, rows[i], maps[i]) for i in chosen],
    }
    static = next(galleries.attention_figures(patches, rows, maps, probabilities, chosen[:1]))
    return PageExplorer(ATTENTION_TYPE, data, static)


def patch_gallery(
    patches: PatchDataset, rows: np.ndarray, probabilities: np.ndarray, count: int, seed: int
) -> PageExplorer:
    """Return a gallery of patches that can be filtered by class, by kind of decision and by confidence.

    It holds at most MOST_IN_GALLERY patches: those with an error, the most confident first, then others at random. Its
    figure is `galleries.confident_errors`, or some patches where there is no error.

    Parameters
    ----------
    patches : PatchDataset
        The data set.
    rows : ndarray of int, shape (B,)
        The patches that `probabilities` (B, N) belong to.
    probabilities : ndarray
        sigma(logit).
    count : int
        Patches in the figure.
    seed : int
        Of the random ones.
    """
    labels = patches.labels[rows]
    n_wrong = int(((probabilities >= THRESHOLD) != labels).any(axis=1).sum())
    wrong = [patch for patch, _ in galleries.find_confident_errors(labels, probabilities, MOST_IN_GALLERY)]
    right = np.setdiff1d(np.flatnonzero(((probabilities >= THRESHOLD) == labels).all(axis=1)), wrong)
    n_right = min(MOST_IN_GALLERY - len(wrong), len(right))
    drawn = np.sort(np.random.default_rng(seed).choice(right, n_right, replace=False)).tolist()
    shown = [
        _about(patches, rows[i], probabilities[i])
        | {"image": _picture(thumbnail(patches.image(rows[i]), THUMBNAIL_SIDE), "webp", quality=THUMBNAIL_QUALITY)}
        for i in wrong + drawn
    ]
    held = _held(len(rows), n_wrong, len(wrong), len(drawn))
    static = galleries.confident_errors(patches, rows, probabilities, count)
    if static is None:
        static = galleries.sample_patches(patches, rows, count, seed)
    return PageExplorer(GALLERY_TYPE, _shared(patches) | {"held": held, "patches": shown}, static)


def _held(n_rows: int, n_wrong: int, wrong: int, right: int) -> str:
    """Say which patches are in the gallery: of all, and of those with a wrong decision."""
    if wrong + right == n_rows:
        return f"All {n_rows:,} patches are here."
    first = f"the {wrong:,} surest of {n_wrong:,}" if wrong < n_wrong else f"all {n_wrong:,}"
    others = f", and {right:,} of the others, drawn at random" if right else ""
    return f"Of {n_rows:,} patches, {wrong + right:,} are here: {first} with a wrong decision{others}."


def _shared(patches: PatchDataset) -> dict:
    """Return what an explorer knows of the whole data set."""
    hues = [colors.to_hex(CLASS_COLOURS[k % len(CLASS_COLOURS)]) for k in range(len(patches.classes))]
    return {"classes": list(patches.classes), "colours": hues, "threshold": THRESHOLD}


def _about(patches: PatchDataset, row: int, probabilities: np.ndarray) -> dict:
    """Return name, group, truth and scores (N,) of a patch."""
    rounded = probabilities.astype(float).round(4)
    below = probabilities < THRESHOLD  # rounding must not carry a score over the threshold
    return {
        "name": patches.files[row],
        "group": None if patches.groups is None else str(patches.groups[row]),
        "labels": patches.labels[row].tolist(),
        "probabilities": np.where(below, np.minimum(rounded, THRESHOLD - 1e-4), rounded).round(4).tolist(),
    }


def _attended(patches: PatchDataset, row: int, maps: np.ndarray) -> dict:
    """Return a patch as the encoder sees it, its mask, and the maps (N, g, g) of its classes."""
    image, mask = square_crop(patches.image(row)), patches.mask(row)
    image = thumbnail(image, PATCH_SIDE)
    attended = {"image": _picture(image, "webp", quality=PATCH_QUALITY), "mask": None}
    if mask is not None:
        mask = square_crop(mask)
        small = np.asarray(Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST))
        # Values far apart, since browsers that hinder fingerprinting alter pixels a little when they are read.
        attended["mask"] = _picture(small * np.uint8(255 // len(patches.classes)), "png", optimize=True)
    return attended | {"maps": [_map(own.astype(float), mask, k) for k, own in enumerate(maps)]}


def _map(own: np.ndarray, mask: np.ndarray | None, k: int) -> dict:
    """Return the map (g, g) of class `k`, and in numbers and words what it shows.

    `cells` holds a byte for each cell, from 0 for its lowest value to 255 for its highest; `peak` is the highest value
    in multiples of an even spread; `area` the fraction of the patch that the class covers in its mask, and `inside` the
    fraction of the attention there.
    """
    spread, highest = np.ptp(own), own.max()
    flat = spread <= FLAT * highest
    scaled = np.zeros_like(own) if flat else (own - own.min()) / spread
    described = {
        "cells": _base64(np.round(scaled * 255).astype(np.uint8).tobytes()),
        "peak": round(float(highest / own.mean()), 1),
        "where": None if flat else galleries.where_highest(own),
        "area": None,
        "inside": None,
    }
    if mask is not None and (inside := mask == k + 1).any():
        enlarged = enlarge(own, len(mask))
        described["area"] = round(float(inside.mean()), 4)
        described["inside"] = round(float(enlarged[inside].sum() / enlarged.sum()), 4)
    return described


def _picture(image: np.ndarray, kind: str, **options: object) -> str:
    """Return an image (H, W) or (H, W, 3), uint8, as a data address."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{_base64(buffer.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
