"""Maps scored as weakly supervised segmentation: thresholds fitted in train, IoU and Dice at the mask's resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from histoclip_lib.common.arrays import nan_mean
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.text import number_text, value_text
from histoclip_lib.evaluation.uncertainty import SHARE, Difference, Draws, percentile_interval, unit_sums
from histoclip_lib.models.attention import MAP_LABELS, bilinear_weights, square_crop

ONE_CLASS = "one_class"
LABELS = MAP_LABELS | {ONE_CLASS: "One class everywhere"}
MEASURES = {"miou": "mIoU", "fwiou": "fwIoU", "dice": "Dice"}
LEVELS = 200  # thresholds that are tried, evenly from 0 to 1
GUIDED_SIDE, GUIDED_EPS = 31, 1e-3  # pixels of the guided filter's window; its regularisation, for colours from 0 to 1
STEP = 4  # every fourth pixel of a mask in each direction is enough to fit thresholds on


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Pixels of n patches and N classes counted for R sets of maps, and the thresholds (R, N) that were fitted.

    Attributes
    ----------
    maps : list of str
        Names of the R sets, the last of them ONE_CLASS.
    thresholds : ndarray of shape (R, N)
        Of the scaled maps, see `segment`; NaN for ONE_CLASS.
    confusion : ndarray of shape (R, n, N, N + 1)
        Pixels by true and by predicted class, the last column those for which no class was predicted. Only pixels that
        the mask gives to a class are counted, as in the literature on BCSS-WSSS and LUAD-HistoSeg.
    binary : ndarray of shape (R, n, N, 3)
        For each class by itself and over all pixels: found, predicted, and true ones.
    """

    maps: list[str]
    thresholds: np.ndarray
    confusion: np.ndarray
    binary: np.ndarray


def segment(
    fitting: dict[str, np.ndarray],
    train: np.ndarray,
    maps: dict[str, np.ndarray],
    val: np.ndarray,
    decisions: np.ndarray,
    patches: PatchDataset,
    refine: bool = False,
) -> Segmentation:
    """Turn maps into segmentations, and count their pixels.

    A map is divided by its highest value, enlarged to the mask (bilinear), and is 0 where its class is not predicted
    for the patch: that is the same for all sets, so that only the maps are compared. A pixel has a class where the
    map reaches the class's threshold, the one with the highest IoU on training patches, whose labels are known. Where
    each pixel gets one class, it is the one with the highest ratio of map to threshold.

    Parameters
    ----------
    fitting : dict of str to ndarray of shape (t, N, g, g)
        Maps of training patches, by name.
    train : ndarray of int, shape (t,)
        These patches.
    maps : dict of str to ndarray of shape (n, N, g, g)
        Maps of the patches to score, under the same names.
    val : ndarray of int, shape (n,)
        These patches.
    decisions : ndarray of shape (n, N), bool
        The classes that are predicted for them.
    patches : PatchDataset
        With masks; a patch that has none is passed over.
    refine : bool
        Whether enlarged maps are refined by a guided filter (He et al., Guided image filtering, TPAMI 2013), so that
        they follow the edges of the image.

    Raises
    ------
    HistoCLIPError
        If maps are to be refined and kornia, whose filter it is, is not installed.
    """
    names, n_classes = list(maps), len(patches.classes)
    enlarged = partial(_enlarged, patches=patches if refine else None)
    thresholds, most_common = _fit([fitting[name] for name in names], train, patches, enlarged)
    confusion = np.zeros((len(names) + 1, len(val), n_classes, n_classes + 1), dtype=np.int64)
    binary = np.zeros((len(names) + 1, len(val), n_classes, 3), dtype=np.int64)
    for i, patch in enumerate(val):
        if (mask := patches.mask(patch)) is None:
            continue
        truth = square_crop(mask).ravel()
        inside = np.bincount(truth, minlength=n_classes + 1)[1:]
        for number, name in enumerate(names):
            scores = enlarged(maps[name][i], len(square_crop(mask)), patch) * decisions[i][:, None]  # (N, S * S)
            ratio = scores / thresholds[number][:, None]
            for k in range(n_classes):
                called = ratio[k] >= 1
                binary[number, i, k] = (called & (truth == k + 1)).sum(), called.sum(), inside[k]
            predicted = np.where(decisions[i].any(), ratio.argmax(axis=0), n_classes)
            _count(confusion[number, i], truth, predicted)
        _count(confusion[-1, i], truth, np.full(len(truth), most_common))
        binary[-1, i, :, 2] = inside
        binary[-1, i, most_common, :2] = inside[most_common], len(truth)
    one_class = np.full((1, n_classes), np.nan)
    return Segmentation([*names, ONE_CLASS], np.concatenate([thresholds, one_class]), confusion, binary)


def join_segmentations(parts: list[Segmentation], order: np.ndarray) -> Segmentation:
    """Join what was counted for different patches, brought into `order` (n,); thresholds are the mean."""
    confusion = np.concatenate([part.confusion for part in parts], axis=1)
    binary = np.concatenate([part.binary for part in parts], axis=1)
    thresholds = np.mean([part.thresholds for part in parts], axis=0)
    return Segmentation(parts[0].maps, thresholds, confusion[:, order], binary[:, order])


def _count(confusion: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Add the pixels of a patch to its confusion (N, N + 1); `truth` is 0 for none, `predicted` N."""
    width = confusion.shape[1]
    known = truth > 0
    cells = (truth[known].astype(np.int64) - 1) * width + predicted[known]
    confusion += np.bincount(cells, minlength=confusion.size).reshape(confusion.shape)


def _fit(
    fitting: list[np.ndarray], train: np.ndarray, patches: PatchDataset, enlarged: Callable[..., np.ndarray]
) -> tuple[np.ndarray, int]:
    """Return thresholds (R, N) by the IoU on training patches, and the class with the most pixels there."""
    n_classes = len(patches.classes)
    counts = np.zeros((2, len(fitting), n_classes, LEVELS + 1))  # true and all pixels by level
    area = np.zeros(n_classes)
    for i, patch in enumerate(train):
        if (mask := patches.mask(patch)) is None:
            continue
        side, truth = len(square_crop(mask)), square_crop(mask)[STEP // 2 :: STEP, STEP // 2 :: STEP].ravel()
        area += np.bincount(truth, minlength=n_classes + 1)[1:]
        for number, maps in enumerate(fitting):
            fine = enlarged(maps[i], side, patch, STEP)
            for k in np.flatnonzero(patches.labels[patch] == 1):
                level = (fine[k] * LEVELS).astype(int)
                counts[0, number, k] += np.bincount(level[truth == k + 1], minlength=LEVELS + 1)
                counts[1, number, k] += np.bincount(level, minlength=LEVELS + 1)
    hits, called = counts[..., ::-1].cumsum(axis=-1)[..., ::-1]  # at or above each level
    iou = hits / np.maximum(called + area[:, None] - hits, 1)
    return np.maximum(iou.argmax(axis=-1), 1) / LEVELS, int(area.argmax())


def _enlarged(
    maps: np.ndarray, size: int, patch: int, step: int = 1, patches: PatchDataset | None = None
) -> np.ndarray:
    """Return maps (N, g, g) at the pixels of a patch, or at every `step`-th, their highest value 1, (N, S * S).

    They are refined where `patches` are given.
    """
    places = np.arange(size) if patches else np.arange(step // 2, size, step)
    weights = bilinear_weights(maps.shape[-1], places, size).astype(np.float32)
    fine = weights @ maps.astype(np.float32) @ weights.T
    if patches:
        fine = _guided(fine, square_crop(patches.image(patch)))[:, step // 2 :: step, step // 2 :: step]
    fine = fine.reshape(len(maps), -1)
    return np.minimum(fine / fine.max(axis=1, keepdims=True), 1)


def _guided(maps: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return maps (N, S, S) that follow the edges of an image (S, S, 3)."""
    import torch

    try:
        from kornia.filters import guided_blur
    except ImportError as error:
        raise HistoCLIPError("refine_maps: kornia is not installed. Run: pip install kornia") from error
    guide = torch.from_numpy(image.astype(np.float32) / 255).movedim(2, 0)[None]
    return guided_blur(guide, torch.from_numpy(maps)[None], GUIDED_SIDE, GUIDED_EPS)[0].clamp(min=1e-12).numpy()


def measures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return the MEASURES (...) and `iou` (..., N) of pixels counted by true and predicted class (..., N, N + 1).

    A class without a true pixel is left out of the means. fwIoU weighs the IoU of each class by its true pixels.
    """
    true, called = confusion.sum(axis=-1), confusion[..., :-1].sum(axis=-2)
    hits = np.diagonal(confusion[..., :-1], axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        iou, dice = hits / (true + called - hits), 2 * hits / (true + called)
        iou, dice = (np.where(true > 0, values, np.nan) for values in (iou, dice))
        weighted = np.nansum(iou * true, axis=-1) / true.sum(axis=-1)
    return {"iou": iou, "miou": nan_mean(iou), "fwiou": weighted, "dice": nan_mean(dice)}


def segmentation_table(found: Segmentation, classes: list[str], draws: Draws) -> pd.DataFrame:
    """Return each set of maps as a segmentation, as text.

    MEASURES where every pixel gets one class, mIoU with its interval, then the IoU of each class, and `alone` of each
    class by itself over all pixels. Pixels of all patches are pooled; `draws` are bootstrap samples of the n patches.
    """
    lines = {}
    for number, name in enumerate(found.maps):
        pooled = measures(found.confusion[number].sum(axis=0))
        sums = unit_sums(found.confusion[number].reshape(len(draws.unit), -1), draws.unit)
        drawn = (draws.counts @ sums).reshape(-1, *found.confusion.shape[2:])
        line = {}
        for key, label in MEASURES.items():
            value = float(pooled[key])
            interval = percentile_interval(measures(drawn)[key], value, draws.folds, SHARE)
            line[label] = value_text(Difference(value, *interval))
        line |= {f"IoU, {c}": number_text(value) for c, value in zip(classes, pooled["iou"], strict=True)}
        hits, called, true = found.binary[number].sum(axis=0).T
        alone = hits / np.maximum(called + true - hits, 1)
        line |= {f"alone, {c}": number_text(value) for c, value in zip(classes, alone, strict=True)}
        lines[LABELS[name]] = line
    return pd.DataFrame.from_dict(lines, orient="index")
