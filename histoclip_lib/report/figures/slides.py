"""Figures of whole slides: the map of each class, beside its mask where there is one, and burdens slide by slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histoclip_lib.report.figures.base import class_colour, described, figure, listed, panel_grid, wrapped
from histoclip_lib.report.figures.patches import patch_grid

if TYPE_CHECKING:
    import pandas as pd

HEAT, CLEAREST, OPACITY = "viridis", 0.12, 0.75  # the lowest values are nearly clear, so that tissue stays visible
COLUMNS, MOST_NAMED = 4, 30  # panels in a line; slides whose names stand at the axis
BAR = (1, 2, 5)  # first digit of a scale bar


def painted(tiles: pd.DataFrame, values: np.ndarray, shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the values (n,) of tiles as a picture of `shape` of a slide of `size` (width, height); NaN beside them."""
    picture = np.full(shape, np.nan)
    factor = np.array([shape[1] / size[0], shape[0] / size[1]])
    first = tiles[["x", "y"]].to_numpy(np.float64)
    last = first + tiles[["width", "height"]].to_numpy(np.float64)
    first, last = (np.rint(ends * factor).astype(int).clip(0) for ends in (first, last))
    for (left, top), (right, bottom), value in zip(first, last, values, strict=True):
        picture[top:bottom, left:right] = value
    return picture


@figure
def slide_maps(
    overview: np.ndarray,
    tiles: pd.DataFrame,
    classes: list[str],
    size: tuple[int, int],
    mpp: float,
    mask: np.ndarray | None = None,
) -> Figure:
    """Draw the map of each class over a slide, and below it the class in the mask.

    Parameters
    ----------
    overview : ndarray of shape (h, w, 3), uint8
        The whole slide.
    tiles : DataFrame
        `x, y, width, height` in level-0 pixels and `prob_<class>`.
    classes : list of str
        N names.
    size : tuple of int
        Width and height of the slide at level 0.
    mpp : float
        Micrometres per pixel of level 0.
    mask : ndarray of shape (H, W), uint8, optional
        Of the whole slide: k for the k-th class.
    """
    columns, kinds = min(COLUMNS, len(classes)), 1 if mask is None else 2
    lines = -(-len(classes) // columns) * kinds
    height = 8 / columns * overview.shape[0] / overview.shape[1]
    drawn, grid = plt.subplots(
        lines, columns, figsize=(8, (height + 0.4) * lines + 0.6), squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.set_axis_off()
    paler, said = (overview.astype(float) * 0.5 + 127).astype(np.uint8), []
    for k, name in enumerate(classes):
        values = tiles[f"prob_{name}"].to_numpy(np.float64)
        axes = grid[k // columns * kinds, k % columns]
        axes.set_title(wrapped(name, 22), fontsize=9)
        axes.imshow(overview)
        axes.imshow(_coloured(painted(tiles, values, overview.shape[:2], size)))
        said.append(
            f"{name}: mean probability {values.mean():.2f}, {(values >= 0.5).mean():.0%} of the tiles above 0.5"
        )
        if mask is not None:
            axes = grid[k // columns * kinds + 1, k % columns]
            axes.set_title(f"{wrapped(name, 22)}, mask", fontsize=9)
            axes.imshow(paler)
            filled = np.zeros((*mask.shape, 4))
            filled[mask == k + 1] = (*class_colour(k), 0.9)
            axes.imshow(filled, extent=(0, overview.shape[1], overview.shape[0], 0), interpolation="nearest")
            said[-1] += f", the class covers {(mask == k + 1).mean():.1%} of the slide in the mask"
    _scale_bar(grid[0, 0], overview.shape[1], size[0] * mpp)
    colours = plt.cm.ScalarMappable(cmap=HEAT)
    drawn.colorbar(colours, ax=grid, orientation="horizontal", shrink=0.4, aspect=40, label="probability")
    compared = "" if mask is None else " Compare each with the class in the mask below it."
    return described(
        drawn,
        f"Maps of {len(classes)} classes over a slide of {size[0] * mpp / 1000:.1f} x {size[1] * mpp / 1000:.1f} mm, "
        f"{len(tiles):,} tiles. {'; '.join(said)}.",
        f"Probability of each class in the {len(tiles):,} tiles with tissue; a class is unlikely in "
        f"uncoloured tissue.{compared}",
    )


def _coloured(values: np.ndarray) -> np.ndarray:
    """Return a picture (h, w, 4) of values from 0 to 1, clear where they are NaN."""
    known = np.nan_to_num(values)
    coloured = colormaps[HEAT](known)
    coloured[..., 3] = np.where(np.isnan(values), 0, OPACITY * (CLEAREST + (1 - CLEAREST) * known))
    return coloured


def _scale_bar(axes: Axes, pixels: int, micrometres: float) -> None:
    """Draw a bar of about a quarter of a picture that is so many pixels, and micrometres, wide."""
    wanted = micrometres / 4
    ten = 10.0 ** np.floor(np.log10(wanted))
    length = max(first for first in BAR if first * ten <= wanted) * ten
    end = 0.03 * pixels + length / micrometres * pixels
    bottom = axes.get_ylim()[0]
    axes.plot([0.03 * pixels, end], [0.97 * bottom] * 2, color="black", lw=2.5, solid_capstyle="butt")
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    axes.text(0.03 * pixels, 0.95 * bottom, text, fontsize=8, va="bottom")


def top_tiles(
    images: list[list[np.ndarray]], probabilities: list[list[float]], classes: list[str], per_class: int = 4
) -> Figure:
    """Draw the tiles with the highest probability of each class, the highest first.

    Parameters
    ----------
    images : list of list of ndarray (S, S, 3), uint8
        For each of N classes.
    probabilities : list of list of float
        Of the class, for each of these.
    classes : list of str
        N names.
    per_class : int
        At most so many.
    """
    shown = [
        (image, f"{wrapped(name, 24)}\n{p:.2f}")
        for name, own, values in zip(classes, images, probabilities, strict=True)
        for image, p in list(zip(own, values, strict=True))[:per_class]
    ]
    pictures, titles = ([pair[part] for pair in shown] for part in (0, 1))
    said = "; ".join(
        f"{name}: {listed(['p'] * len(v[:per_class]), v[:per_class])}"
        for name, v in zip(classes, probabilities, strict=True)
    )
    return patch_grid(
        pictures, titles, f"The tiles with the highest probability. {said}.",
        f"The {per_class} tiles with the highest probability of each class. Each should show its class.", per_class,
    )  # fmt: skip


@figure
def slide_burdens(slides: pd.DataFrame, classes: list[str]) -> Figure:
    """Draw which share of the tissue of each slide is positive, one panel for each class, with intervals.

    Parameters
    ----------
    slides : DataFrame of S lines
        `slide`, and `share_<class>`, `share_low_<class>`, `share_high_<class>`: NaN where it is not known.
    classes : list of str
        N names.
    """
    named, width = len(slides) <= MOST_NAMED, 8 / min(COLUMNS, len(classes))
    height = 0.28 * min(len(slides), MOST_NAMED) + 1.2
    drawn, panels = panel_grid(len(classes), COLUMNS, width, height, sharex=True, sharey=True)
    places, said = np.arange(len(slides)), []
    for k, (name, axes) in enumerate(zip(classes, panels, strict=True)):
        share, low, high = (
            slides[f"{kind}_{name}"].to_numpy(np.float64) for kind in ("share", "share_low", "share_high")
        )
        axes.hlines(places, low, high, color=class_colour(k), lw=2, alpha=0.5)
        axes.plot(share, places, "o", color=class_colour(k), ms=6 if named else 3)
        axes.set_title(wrapped(name, 22), fontsize=9)
        axes.set(xlim=(-0.03, 1.03), ylim=(len(slides) - 0.5, -0.5), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
        short = [wrapped(slide) for slide in slides.slide]
        said.append(f"{name}: {listed(short, share) if named else f'median {np.nanmedian(share):.2f}'}")
    panels[0].set_yticks(places if named else [], [wrapped(slide, 18) for slide in slides.slide] if named else [])
    drawn.supxlabel("share of the tissue", fontsize=10)
    drawn.tight_layout()
    count = "1 slide" if len(slides) == 1 else f"{len(slides)} slides"
    return described(
        drawn,
        f"Share of the tissue that is positive, {count}. {'; '.join(said)}.",
        f"Fraction of the tissue of {count} in positive tiles, with 95% intervals that allow for similar neighbouring "
        "tiles. Look for slides that stand out.",
    )
