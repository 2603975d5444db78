"""How the map of a slide agrees with a label mask, or with labels at points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from histoclip_lib.common.csv_tables import read_table
from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown
from histoclip_lib.data.images import FORMATS
from histoclip_lib.evaluation.metrics import auroc, cut_counts
from histoclip_lib.evaluation.uncertainty import MIN_GROUPS, Draws, draw_units, percentile_interval, unit_sums

if TYPE_CHECKING:
    import pandas as pd

MASK, POINTS = "_mask.png", "_points.csv"  # how the files beside a slide end that hold its labels
BLOCK_TILES = 8  # tiles on a side of the blocks that count as independent: neighbours are alike
MOST_ASPECT = 1.02  # between a mask and its slide
NUDGE = 1e-4  # pixels


def labels_beside(slide: str | Path, ending: str) -> Path | None:
    """Return the file beside a slide that has its name and one of the endings MASK and POINTS; None without one."""
    path = Path(slide)
    found = path.with_name(f"{path.stem}{ending}")
    return found if found.is_file() else None


def read_label_mask(path: str | Path, n_classes: int, size: tuple[int, int]) -> np.ndarray:
    """Read the label mask of a slide.

    Parameters
    ----------
    path : str or Path
        A P or L image of the whole slide, at any scale: k for the k-th class, 0 for none.
    n_classes : int
        N.
    size : tuple of int
        Width and height of the slide at level 0.

    Returns
    -------
    ndarray of shape (h, w), uint8

    Raises
    ------
    HistoCLIPError
        If it cannot be read, has colours, values above N, or another shape than the slide.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode, mask = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise HistoCLIPError(
            f"{path} cannot be read as an image ({error}). Save it as PNG; any scale will do."
        ) from error
    if mode not in ("P", "L"):
        raise HistoCLIPError(
            f"{path}: a label mask must have mode P or L, not {mode}. Save the class numbers, not colours."
        )
    if mask.max() > n_classes:
        raise HistoCLIPError(f"{path}: has the value {mask.max()}; there are {n_classes} classes, numbered from 1.")
    aspect = mask.shape[1] / mask.shape[0] * size[1] / size[0]
    if not 1 / MOST_ASPECT <= aspect <= MOST_ASPECT:
        raise HistoCLIPError(
            f"{path}: is {mask.shape[1]} x {mask.shape[0]} pixels, the slide {size[0]} x {size[1]}: they differ in "
            "shape. Give a mask of the whole slide."
        )
    return mask


def cover_of_tiles(mask: np.ndarray, tiles: pd.DataFrame, size: tuple[int, int], n_classes: int) -> np.ndarray:
    """Return the share of each tile's field that each class covers in a mask, shape (n, N).

    Parameters
    ----------
    mask : ndarray of shape (h, w), uint8
        Of the whole slide, as `read_label_mask` returns it.
    tiles : DataFrame
        With `x, y, width, height` in level-0 pixels; edges go to the nearest edge of the mask's pixels, and what lies
        beyond the slide is of no class.
    size : tuple of int
        Width and height of the slide at level 0.
    n_classes : int
        N.
    """
    edges = {}
    for axis, side, whole, length in (("x", "width", size[0], mask.shape[1]), ("y", "height", size[1], mask.shape[0])):
        start, extent = (tiles[name].to_numpy(np.float64) * length / whole for name in (axis, side))
        low = np.rint(start).astype(int)
        high = np.maximum(np.rint(start + extent).astype(int), low + 1)
        edges[axis] = (*(np.clip(edge, 0, length) for edge in (low, high)), high - low)
    (left, right, across), (top, bottom, down) = edges["x"], edges["y"]
    cover = np.empty((len(tiles), n_classes))
    for k in range(n_classes):
        sums = np.pad(mask == k + 1, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
        cover[:, k] = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return cover / (across * down)[:, None]


def spatial_blocks(x: np.ndarray, y: np.ndarray, side: float) -> np.ndarray:
    """Return the number of the square of `side` pixels that holds each place (n,)."""
    return np.unique(np.stack([x // side, y // side]), axis=1, return_inverse=True)[1].ravel()


def score_tiles(
    truth: np.ndarray, tiles: pd.DataFrame, classes: list[str], resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Score the map of a slide against the truth of its tiles.

    Parameters
    ----------
    truth : ndarray of shape (n, N)
        0 or 1; NaN where it is not known.
    tiles : DataFrame
        The same n tiles: `x, y, width`, `prob_<class>` and `present_<class>`.
    classes : list of str
        N names.
    resamples, seed : int
        Bootstrap samples, and their seed.

    Returns
    -------
    DataFrame of N lines
        `class`, `n_tiles` and `n_present` in truth; `auroc` of the probabilities over tiles; `dice` of the decisions,
        2 TP / (2 TP + FP + FN) over tiles; each with `_low` and `_high` of the 95% interval of a bootstrap over blocks
        of BLOCK_TILES x BLOCK_TILES tiles. NaN where it is not defined, and the intervals also with fewer than
        `uncertainty.MIN_GROUPS` blocks.

    Examples
    --------
    >>> import pandas as pd
    >>> tiles = pd.DataFrame({"x": range(0, 4000, 100), "y": 0, "width": 100, "prob_tumor": np.linspace(0, 1, 40)})
    >>> tiles["present_tumor"] = tiles.prob_tumor >= 0.5
    >>> scored = score_tiles(tiles[["x"]].to_numpy() >= 1500, tiles, ["tumor"])
    >>> print(scored[["class", "auroc", "dice"]].round(2).to_string(index=False))
    class  auroc  dice
    tumor    1.0  0.89
    """
    import pandas as pd

    truth = np.asarray(truth, dtype=np.float64)
    blocks = spatial_blocks(tiles.x.to_numpy(), tiles.y.to_numpy(), BLOCK_TILES * float(tiles.width.max()))
    lines = []
    for k, name in enumerate(classes):
        known = ~np.isnan(truth[:, k])
        own = truth[known, k].astype(int)
        scores, decisions = (tiles[f"{what}_{name}"].to_numpy(np.float64)[known] for what in ("prob", "present"))
        line = {"class": name, "n_tiles": len(own), "n_present": int(own.sum())}
        whole = Draws(np.arange(len(own)), np.ones((1, len(own)), np.int32))
        many = draw_units(blocks[known], resamples, seed) if len(own) else whole
        for measure, of, found in (("auroc", resampled_auroc, scores), ("dice", _dice, decisions)):
            value, sampled = (of(own, found, draws) if len(own) else np.full(1, np.nan) for draws in (whole, many))
            enough = many.counts.shape[1] >= MIN_GROUPS
            low, high = percentile_interval(sampled) if enough else (np.nan, np.nan)
            line |= {measure: float(value[0]), f"{measure}_low": low, f"{measure}_high": high}
        lines.append(line)
    return pd.DataFrame(lines)


def resampled_auroc(truth: np.ndarray, scores: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the AUROC (R,) of scores (n,) in every bootstrap sample; `truth` (n,) is 0 or 1."""
    return auroc(*cut_counts(truth, scores, draws.counts[:, draws.unit]))


def _dice(truth: np.ndarray, decisions: np.ndarray, draws: Draws) -> np.ndarray:
    counted = draws.counts @ unit_sums(np.stack([truth * decisions, truth + decisions], axis=1), draws.unit)
    with np.errstate(invalid="ignore"):
        return 2 * counted[:, 0] / counted[:, 1]


def read_points(path: str | Path, classes: list[str]) -> pd.DataFrame:
    """Read labels at points of a slide.

    Parameters
    ----------
    path : str or Path
        A table with `x` and `y` in level-0 pixels and a column for each class: 1, 0, or empty where it is not known.
        Other columns are passed over.
    classes : list of str
        N names; a class without a column is not known anywhere.

    Returns
    -------
    DataFrame of `x`, `y` and the classes, of floats

    Raises
    ------
    HistoCLIPError
        For what `csv_tables.read_table` refuses, and a table without `y` or any class; listing cells that are none.
    """
    import pandas as pd

    table = read_table(Path(path), "x")
    there = [name for name in classes if name in table.columns]
    if "y" not in table.columns or not there:
        raise HistoCLIPError(f"{path} needs the columns x, y and at least one of the classes {', '.join(classes)}.")
    columns, wrong = {}, []
    for name in ("x", "y", *there):
        cells = table.columns[name]
        numbers = pd.to_numeric(pd.Series(cells), errors="coerce").to_numpy(np.float64)
        bad = (
            ~np.isfinite(numbers)
            if name in ("x", "y")
            else ~(np.isin(numbers, (0, 1)) | np.array([not c for c in cells]))
        )
        wrong += [f"line {table.lines[i]}, {name}: {shown(cells[i])}" for i in np.flatnonzero(bad)]
        columns[name] = numbers
    if wrong:
        raise HistoCLIPError(f"{path}: x and y must be numbers, a class 1, 0 or empty:\n{bullet_list(wrong)}")
    return pd.DataFrame(columns).reindex(columns=["x", "y", *classes])


def tiles_at(points: pd.DataFrame, tiles: pd.DataFrame) -> np.ndarray:
    """Return for each point (`x`, `y`) the index of the tile that holds it, -1 where none does.

    A tile holds its left and upper edge. Of several the one whose centre is nearest counts: a square tile holds a point
    at most half its side off in x and in y.
    """
    from scipy.spatial import cKDTree

    places = points[["x", "y"]].to_numpy(np.float64)
    half = tiles[["width", "height"]].to_numpy(np.float64) / 2
    corners = tiles[["x", "y"]].to_numpy(np.float64)
    # On the edge of two tiles their centres are equally near; a nudge decides for the one that holds its left edge.
    _, nearest = cKDTree(corners + half).query(places + NUDGE, p=np.inf)
    off = places - corners[nearest]
    held = ((off >= 0) & (off < 2 * half[nearest])).all(axis=1)
    return np.where(held, nearest, -1)


def score_points(
    points: pd.DataFrame, tiles: pd.DataFrame, classes: list[str], resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Score the map of a slide against labels at points, as `score_tiles` does: a point has the scores of its tile.

    Points that no tile holds do not count: `n_tiles` are those that do.
    """
    at = tiles_at(points, tiles)
    held = points[at >= 0]
    there = tiles.iloc[at[at >= 0]].reset_index(drop=True).assign(x=held.x.to_numpy(), y=held.y.to_numpy())
    return score_tiles(held[classes].to_numpy(np.float64), there, classes, resamples, seed)
