"""Agreement of maps with the masks, and whether trained attention agrees better than the maps to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoclip_lib.common.arrays import nan_mean
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.comparisons import finding
from histoclip_lib.evaluation.text import number_text, signed_text, value_text
from histoclip_lib.evaluation.uncertainty import SHARE, Difference, Draws, percentile_interval, resampled_means
from histoclip_lib.models.attention import MAP_LABELS, PROBE, TRAINED, bilinear_weights, square_crop

MEASURES = {"pointing": "pointing game", "mass": "mass in the mask", "ap": "per-pixel AP"}
FINE = 56  # cells on a side of the grid on which maps are scored


@dataclass(frozen=True, eq=False)
class MapScores:
    """How R sets of maps agree with the masks of n patches and N classes.

    A pair of patch and class counts where the class is present and its mask covers some of the patch, but not all of
    it: there every map would be right. All else is NaN.

    Attributes
    ----------
    maps : list of str
        Names of the R sets, such as MAP_LABELS has.
    pointing : ndarray of shape (R, n, N)
        Whether the brightest point lies in the mask (the pointing game, Zhang et al. 2018). Where several cells of the
        fine grid are brightest, or the mask covers a part of the cell: how likely a point drawn from them lies there.
    mass : ndarray of shape (R, n, N)
        Fraction of the map inside the mask.
    ap : ndarray of shape (R, n, N)
        Average precision of the pixels, the map as score and the mask as truth; pixels of equal score share a step, as
        in scikit-learn.
    area : ndarray of shape (n, N)
        Fraction of the patch that the mask covers: what a uniform map scores in all three.
    """

    maps: list[str]
    pointing: np.ndarray
    mass: np.ndarray
    ap: np.ndarray
    area: np.ndarray

    def gain(self) -> np.ndarray:
        """Return average precision minus area, shape (n, N): how far trained attention is above chance."""
        return self.ap[self.maps.index(TRAINED)] - self.area


def score_maps(maps: dict[str, np.ndarray], patches: PatchDataset, index: np.ndarray) -> MapScores:
    """Compare maps with the masks, for each class of each patch in which it is present.

    A map is enlarged to FINE x FINE cells, bilinear between the centres of its own, and counts as constant within
    each. Mask pixels are counted in these cells, so no small region is lost, and all scores are exact for that map.

    Parameters
    ----------
    maps : dict of str to ndarray of shape (n, N, g, g)
        Not negative, each set with a grid of its own; see `attention.maps_to_compare`.
    patches : PatchDataset
        With masks; a patch that has none is passed over.
    index : ndarray of int, shape (n,)
        The patches that the maps belong to.
    """
    shape = (len(index), len(patches.classes))
    pointing, mass, ap = (np.full((len(maps), *shape), np.nan) for _ in range(3))
    area = np.full(shape, np.nan)
    for i, patch in enumerate(index):
        mask = patches.mask(patch)
        if mask is None:
            continue
        mask = square_crop(mask)
        cell = np.arange(len(mask)) * FINE // len(mask)
        cell = (cell[:, None] * FINE + cell).ravel()
        pixels = np.bincount(cell, minlength=FINE * FINE)
        for k in np.flatnonzero(patches.labels[patch] == 1):
            inside = (mask == k + 1).ravel()
            if inside.any() and not inside.all():
                fine = np.concatenate([_enlarged(values[i, k][None]) for values in maps.values()])
                positives = np.bincount(cell[inside], minlength=FINE * FINE)
                area[i, k] = inside.mean()
                pointing[:, i, k], mass[:, i, k], ap[:, i, k] = _agreement(fine, positives, pixels)
    return MapScores(list(maps), pointing, mass, ap, area)


def _enlarged(maps: np.ndarray) -> np.ndarray:
    """Return maps (R, g, g) on the fine grid, shape (R, FINE * FINE), their highest value 1.

    Rounded, since equal cells differ in their last digit after the interpolation and would not be ties.
    """
    weights = bilinear_weights(maps.shape[-1], np.arange(FINE), FINE)
    fine = (weights @ maps.astype(float) @ weights.T).reshape(len(maps), -1)
    return (fine / fine.max(axis=1, keepdims=True)).round(6)


def _agreement(fine: np.ndarray, positives: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return pointing, mass and average precision (R,) of maps (R, C) whose C cells hold so many (positive) pixels."""
    fine, positives, pixels = fine[:, pixels > 0], positives[pixels > 0], pixels[pixels > 0]
    brightest = fine == fine.max(axis=1, keepdims=True)
    pointing = (brightest @ positives) / (brightest @ pixels)
    mass = (fine @ positives) / (fine @ pixels)
    order = np.argsort(-fine, axis=1)
    falls = np.diff(np.take_along_axis(fine, order, axis=1), axis=1, append=-1) < 0  # at the last cell of a tie
    hits, called = positives[order].cumsum(axis=1), pixels[order].cumsum(axis=1)
    ends = np.where(falls, np.arange(fine.shape[1]), fine.shape[1])
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]  # the end of the tie that each cell belongs to
    precision = np.take_along_axis(hits / called, ends, axis=1)
    return pointing, mass, (positives[order] * precision).sum(axis=1) / positives.sum()


def class_means(values: np.ndarray) -> np.ndarray:
    """Return the mean over the patches of values (..., n, N), shape (..., N); NaN for a class without patches."""
    return nan_mean(values, axis=-2)


def agreement_by_class(scores: MapScores, classes: list[str], measure: str, draws: Draws) -> pd.DataFrame:
    """Return one of the MEASURES as text: sets of maps against classes, and the number of patches that count.

    Each mean over patches has the 95% interval of bootstrap samples of the n patches, see `uncertainty.draw_units`.
    """
    lines = {}
    for name, values in zip(scores.maps, getattr(scores, measure), strict=True):
        lines[MAP_LABELS[name]] = [value_text(gap) for gap in _by_class(values, draws, SHARE)]
    table = pd.DataFrame.from_dict(lines, orient="index", columns=classes)
    table.loc["Patches"] = (~np.isnan(scores.area)).sum(axis=0).astype(str)
    return table


def _by_class(values: np.ndarray, draws: Draws, bounds: tuple[float, float] = (-np.inf, np.inf)) -> list[Difference]:
    """Return the mean over the patches of values (n, N), NaN left out, of each class, with its bootstrap interval."""
    means = zip(class_means(values).tolist(), resampled_means(values, draws).T, strict=True)
    return [Difference(mean, *percentile_interval(drawn, mean, draws.folds, bounds)) for mean, drawn in means]


def _over_classes(values: np.ndarray, draws: Draws) -> Difference:
    """Return the mean over the classes of these means, with its bootstrap interval."""
    mean = float(nan_mean(class_means(values)))
    return Difference(mean, *percentile_interval(nan_mean(resampled_means(values, draws)), mean, draws.folds))


def deletion_table(falls: dict[str, np.ndarray], labels: np.ndarray, classes: list[str], draws: Draws) -> pd.DataFrame:
    """Return the deletion test of each set of maps as text, over the patches in which a class is present.

    Parameters
    ----------
    falls : dict of str to ndarray of shape (n, N)
        As `attention.deletion_test` returns.
    labels : ndarray of shape (n, N)
        0 or 1.
    classes : list of str
        N names.
    draws : Draws
        Bootstrap samples of these patches.
    """
    lines = {}
    for name, values in falls.items():
        values = np.where(labels == 1, values, np.nan)
        gaps = [_over_classes(values, draws), *_by_class(values, draws)]
        lines[MAP_LABELS[name]] = {c: value_text(gap) for c, gap in zip(["all classes", *classes], gaps, strict=True)}
    return pd.DataFrame.from_dict(lines, orient="index")


def agreement_table(scores: MapScores, draws: Draws) -> pd.DataFrame:
    """Return the MEASURES of each set of maps, and how far trained attention is above it, as text.

    Under each measure its mean over the classes of the mean over patches, and `trained_minus` this set. `draws` are
    bootstrap samples of the n patches, see `uncertainty.draw_units`.
    """
    lines = {}
    for number, name in enumerate(scores.maps):
        line = {}
        for measure, label in MEASURES.items():
            line[label, "mean"] = number_text(nan_mean(class_means(getattr(scores, measure)[number])))
            gap = trained_minus(scores, name, measure, draws)
            line[label, "trained minus this"] = "" if name == TRAINED else signed_text(gap)
        lines[MAP_LABELS[name]] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def trained_minus(scores: MapScores, name: str, measure: str, draws: Draws) -> Difference:
    """Return by how much trained attention is above another set of maps in one of the MEASURES.

    The value is the mean over the classes of the mean over patches, paired; the interval comes from resampling whole
    units (`uncertainty.draw_units`), where a sample leaves out a class that it lacks. NaN where no patch counts.
    """
    values = getattr(scores, measure)
    gaps = values[scores.maps.index(TRAINED)] - values[scores.maps.index(name)]
    return _over_classes(gaps, draws)


def attention_verdict(scores: MapScores, draws: Draws) -> str:
    """Say in Markdown whether trained attention agrees with the masks better than each reference.

    `comparisons.finding` decides, on the 95% interval of the difference in average precision.
    """
    if np.isnan(scores.area).all():
        return "All masks are empty or cover whole patches, so attention cannot be scored."
    area = nan_mean(class_means(scores.area))
    ap = nan_mean(class_means(scores.ap[scores.maps.index(TRAINED)]))
    probe = ""
    if PROBE in scores.maps:
        reached = nan_mean(class_means(scores.ap[scores.maps.index(PROBE)]))
        gap = trained_minus(scores, PROBE, "ap", draws)
        probe = f", which {finding(gap)} that of the linear probe applied to single tokens ({reached:.3f})"
    lines = [
        f"Per-pixel average precision of the trained head's attention is {ap:.3f}{probe}; chance is {area:.3f}, the "
        "fraction of the patch that the mask covers. All are means over the classes.",
        "",
    ]
    for name in scores.maps:
        if name == TRAINED:
            continue
        gaps = {measure: trained_minus(scores, name, measure, draws) for measure in MEASURES}
        ap, pointing, mass = (signed_text(gaps[measure]) for measure in ("ap", "pointing", "mass"))
        lines.append(
            f"- In AP, the trained head **{finding(gaps['ap'])}** *{MAP_LABELS[name].lower()}* ({ap}). The pointing "
            f"game differs by {pointing}, the mass in the mask by {mass}."
        )
    return "\n".join(lines)


def best_and_worst(values: np.ndarray, count: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the (patch, class) positions of the highest and of the lowest values, the most extreme first.

    Parameters
    ----------
    values : ndarray of shape (n, N)
        Such as `MapScores.gain`: average precision alone is highest where the mask covers nearly everything. NaN where
        a pair does not count.
    count : int
        At most so many of each; no pair is in both lists.
    """
    order = np.argsort(values, axis=None, kind="stable")[: (~np.isnan(values)).sum()]  # NaN sorts last
    best = order[::-1][: min(count, -(-len(order) // 2))]
    worst = order[: min(count, len(order) - len(best))]
    n_classes = values.shape[1]
    return tuple([(int(i) // n_classes, int(i) % n_classes) for i in chosen] for chosen in (best, worst))
