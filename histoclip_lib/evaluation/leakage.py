"""Whether the training set holds copies of held-out patches: features find the pair, pixels decide.

Features alone cannot separate copies from similar patches. With the offline encoder, on CoNSeP and on the synthetic
set, cosines of patches that merely show the same tissue go up to 0.94 and 0.996, while those of a copy shifted by 16
pixels go down to 0.4. So for each held-out patch the training patch with the nearest features is looked up, and the
two are compared pixel by pixel, in all eight flips and rotations.

What we saw: nearest patches of different groups (1,256 pairs, and those within the training set of random splits)
correlated by 0.3 in the median and 0.89 at most; of 548 nearest pairs of one group a single one passed 0.9, two
neighbours that are nearly white. Copies of 60 patches of either set, flipped, turned, brightened, compressed (JPEG
quality 30) or shifted by up to 32 of 256 pixels, all came to 0.9 or more but for one blank patch. Enlarged by a
twentieth 98% and 62% did, by a tenth hardly any. The nearest features led to the original of every flipped or turned
copy with eight views; with one view, of 55 to 75% of the turned ones. Of copies shifted by 4 pixels they found 98%,
by 16 pixels 75 to 82%, by 32 pixels 37 to 52%: what is flagged is a lower bound.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from histoclip_lib.common.executors import n_cores
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.comparisons import BETTER, WORSE, finding
from histoclip_lib.evaluation.methods import in_table_order, label_of
from histoclip_lib.evaluation.text import signed_text, value_text
from histoclip_lib.evaluation.uncertainty import (
    SHARE,
    Difference,
    draw_units,
    percentile_interval,
    resampled_metrics,
    stretch,
    whole_and_drawn,
)
from histoclip_lib.features.store import Shards

SAME_PIXELS = 0.9  # correlation from which on two patches count as copies
SIDE, MARGIN = 64, 10  # pixels: the side at which patches are compared, and the largest shift that is tried
BLUR = 1.0  # pixels: without it a shift by half a pixel would hide a copy
PLAIN = 2.0  # grey levels: with a lower standard deviation there is nothing to compare
REFERENCE = 500  # training patches that show how similar unrelated patches are


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """The nearest training patch of each held-out patch, and how similar the two are.

    Attributes
    ----------
    val, nearest : ndarray of int, shape (B,)
        Positions in the data set: the held-out patches, and for each its nearest training patch.
    similarity, correlation : ndarray of shape (B,)
        Cosine of their centred features and correlation of their pixels; see the functions below.
    same_bytes : ndarray of shape (B,), bool
        Whether both have the same digest. (PanNuke's arrays have one for each place, so there only pixels tell.)
    reference_similarity, reference_correlation : ndarray of shape (R,)
        The same of training patches and the nearest one of another group, or of all others where groups are not known.
        Empty where there is one group only.
    """

    val: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray
    correlation: np.ndarray
    same_bytes: np.ndarray
    reference_similarity: np.ndarray
    reference_correlation: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        """Which held-out patches have a copy in the training set, shape (B,), bool."""
        return self.same_bytes | (self.correlation >= SAME_PIXELS)

    @property
    def worst_first(self) -> np.ndarray:
        """Positions in `val`: first those with the same bytes, then by falling correlation of the pixels."""
        return np.lexsort([-self.similarity, -np.nan_to_num(self.correlation, nan=-1), ~self.same_bytes])


def find_near_duplicates(
    pooled: Shards,
    patches: PatchDataset,
    folds: list[tuple[np.ndarray, np.ndarray]],
    seed: int = 0,
    progress: bool = True,
) -> NearDuplicates:
    """Look for copies of held-out patches in the training set, in each fold.

    Takes about 10 ms for each held-out patch.

    Parameters
    ----------
    pooled : Shards of shape (B, V, d)
        Pooled features of all patches; with V = 8 a flipped or turned copy is found as surely as a plain one.
    patches : PatchDataset
        The data set.
    folds : list of (ndarray, ndarray)
        For each fold its training patches and those that it holds out.
    seed : int
        Decides which REFERENCE training patches are compared with the nearest one of another group.
    progress : bool
        Whether to draw a bar.
    """
    val = np.concatenate([held_out for _, held_out in folds])
    found = [nearest_training_patches(pooled, held_out, train) for train, held_out in folds]
    nearest, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    digests = {int(index): patches.source.digest(int(index)) for index in np.unique(np.concatenate(sum(folds, ())))}
    twins = []
    for train, held_out in folds:
        by_digest = {digests[int(index)]: index for index in reversed(train)}
        twins += [by_digest.get(digests[int(index)], -1) for index in held_out]
    same_bytes = np.array(twins) >= 0
    nearest = np.where(same_bytes, twins, nearest)

    train = folds[0][0]
    sample = np.random.default_rng(seed).permutation(train)[:REFERENCE]
    like, like_similarity = nearest_training_patches(pooled, sample, train, patches.groups)
    sample, like, like_similarity = (values[like >= 0] for values in (sample, like, like_similarity))

    pairs = [*zip(val, nearest, strict=True), *zip(sample, like, strict=True)]
    with threadpool_limits(1), ThreadPoolExecutor(n_cores()) as pool:  # decoding and products leave Python
        compared = pool.map(lambda pair: pixel_correlation(*(patches.image(index) for index in pair)), pairs)
        correlation = np.array(
            list(tqdm(compared, total=len(pairs), desc="comparing pixels", unit="pair", disable=not progress))
        )
    return NearDuplicates(
        val, nearest, similarity, correlation[: len(val)], same_bytes, like_similarity, correlation[len(val) :]
    )


def nearest_training_patches(
    pooled: Shards, queries: np.ndarray, train: np.ndarray, groups: np.ndarray | None = None, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each query the training patch with the highest cosine of centred features.

    Features are centred on the mean of the training set: the raw ones share one large component, and their cosines are
    all near 1. View 0 of the query is compared with every view of the training patch, since a flipped copy is a copy.

    Parameters
    ----------
    pooled : Shards of shape (B, V, d)
        Pooled features.
    queries, train : ndarray of int, shapes (Q,) and (T,)
        Positions in it. A patch is never its own neighbour.
    groups : ndarray of shape (B,), optional
        If given, only neighbours of another group count.
    chunk : int
        Training patches that are compared at once; memory grows with Q times as much.

    Returns
    -------
    nearest : ndarray of int, shape (Q,)
        -1 where there is no neighbour.
    similarity : ndarray of shape (Q,)
        Cosine, -inf where there is no neighbour.
    """
    group = np.arange(pooled.shape[0]) if groups is None else np.unique(groups, return_inverse=True)[1]
    centre = pooled.take(train).mean(axis=0)
    directions = _directions(pooled.take(queries), centre)
    nearest, best = np.full(len(queries), -1), np.full(len(queries), -np.inf, dtype=np.float32)
    for start in range(0, len(train), chunk):
        part = train[start : start + chunk]
        similarity = np.full((len(queries), len(part)), -np.inf, dtype=np.float32)
        for view in range(pooled.shape[1]):
            np.maximum(similarity, directions @ _directions(pooled.take(part, view), centre).T, out=similarity)
        similarity[group[queries][:, None] == group[part]] = -np.inf
        place = similarity.argmax(axis=1)
        highest = similarity[np.arange(len(queries)), place]
        better = highest > best
        nearest[better], best[better] = part[place[better]], highest[better]
    return nearest, best


def _directions(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    centred = features - centre
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def pixel_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the highest correlation of two patches' grey values over flips, rotations and small shifts.

    Both are reduced to 64 x 64 pixels and blurred; the middle of the second, in each of the eight flips and rotations,
    is slid over the first by up to 10 of these pixels each way.

    Parameters
    ----------
    first, second : ndarray of shape (H, W, 3), uint8
        The patches.

    Returns
    -------
    float
        NaN where a patch is too plain to compare.

    References
    ----------
    Lewis, Fast normalized cross-correlation, Vision Interface 1995, eq. 2.
    """
    first, second = _reduced(first), _reduced(second)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    if min(first.std(), second.std()) < PLAIN:
        return float("nan")
    windows = np.lib.stride_tricks.sliding_window_view(first - first.mean(), second.shape).reshape(-1, second.size)
    turned = np.stack([np.rot90(view, quarter).ravel() for view in (second, second[:, ::-1]) for quarter in range(4)])
    turned = (turned - turned.mean()) / (turned.std() * second.size)  # (8, pixels), zero mean
    spread = np.maximum(windows.std(axis=1), 1e-9)
    return min(float((windows @ turned.T / spread[:, None]).max()), 1.0)


def _reduced(image: np.ndarray) -> np.ndarray:
    grey = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return gaussian_filter(np.asarray(grey, dtype=np.float32), BLUR)


def near_duplicate_table(patches: PatchDataset, found: NearDuplicates, count: int = 10) -> pd.DataFrame:
    """Return the pairs of validation and training patches that are most similar, the worst first, as text."""
    lines = []
    for place in found.worst_first[:count]:
        index, other = found.val[place], found.nearest[place]
        line = {
            "held-out patch": patches.files[index],
            "training patch": patches.files[other],
            "cosine of features": f"{found.similarity[place]:.3f}",
            "correlation of pixels": correlation_text(found.correlation[place]),
            "same bytes": _yes(found.same_bytes[place]),
            "near-duplicate": _yes(found.flagged[place]),
            "same labels": _yes(np.array_equal(*(patches.labels[k] for k in (index, other)), equal_nan=True)),
        }
        if patches.groups is not None:
            line["same group"] = _yes(patches.groups[index] == patches.groups[other])
        lines.append(line)
    return pd.DataFrame(lines, index=range(1, len(lines) + 1))


def correlation_text(correlation: float) -> str:
    """Return the correlation of two patches' pixels as text."""
    return "too plain" if np.isnan(correlation) else f"{correlation:.3f}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def near_duplicate_note(patches: PatchDataset, found: NearDuplicates) -> str:
    """Say in Markdown how many held-out patches have a copy in the training set, and how certain that is."""
    flagged, groups = found.flagged, patches.groups
    note = (
        f"**{flagged.sum()} of {len(found.val)} held-out patches ({flagged.mean():.1%}) have a near-duplicate in the "
        f"training set**: {found.same_bytes.sum()} with the same bytes, {(flagged & ~found.same_bytes).sum()} whose "
        f"pixels correlate by {SAME_PIXELS} or more with those of the training patch with the nearest features, "
        "flipped, turned or slightly shifted."
    )
    if plain := int(np.isnan(found.correlation).sum()):
        note += f" {plain} pair{' is' if plain == 1 else 's are'} too uniform to compare."
    if groups is not None:
        same = groups[found.val] == groups[found.nearest]
        note += f" {(flagged & same).sum()} of these pairs come from one group." if flagged.any() else ""
        note += f" {same.mean():.1%} of all nearest training patches come from the group of the held-out patch."
    if len(found.reference_similarity):
        others = "(groups are not known)" if groups is None else "of another group"
        alarms = int((found.reference_correlation >= SAME_PIXELS).sum())
        note += (
            f" For comparison, the same rule flags {alarms} of {len(found.reference_similarity)} training patches and "
            f"their nearest training patch {others}, with a highest correlation of "
            f"{np.nanmax(found.reference_correlation, initial=-1):.2f}. The median cosine of centred features is "
            f"{np.median(found.similarity):.2f} for held-out patches and {np.median(found.reference_similarity):.2f} "
            "for these."
        )
    return note


METRICS = ("mAcc", "mAP")


@dataclass(frozen=True, eq=False)
class SplitScores:
    """What models trained under one split predict for its validation set, by method.

    `labels` (B, N) are 0 or 1; `units` (B,) is what the bootstrap draws, see `uncertainty.bootstrap_units`;
    `folds` are those of a cross-validation, 1 for a single split.
    """

    labels: np.ndarray
    units: np.ndarray
    methods: dict[str, Predictions]
    folds: int = 1


@dataclass(frozen=True)
class SplitGap:
    """A metric of one method under both splits, and the difference, random minus grouped; NaN where not defined."""

    method: str
    metric: str
    random: Difference
    grouped: Difference
    gap: Difference


def split_gaps(random: SplitScores, grouped: SplitScores, resamples: int = 1000, seed: int = 0) -> list[SplitGap]:
    """Compare mAcc and mAP of each method that both splits have, in the order of the table.

    The two validation sets are different patches, of which some may be the same, so nothing is paired: each part is
    resampled by itself, and the percentiles of the difference of the two give the 95% interval of the gap. It is wider
    than a paired one would be. It holds the chance of which units were validated on, not that of the training's seed.

    Parameters
    ----------
    random, grouped : SplitScores
        Under either split.
    resamples, seed : int
        Of the bootstrap; the second part is drawn with seed + 1.
    """
    parts = (random, grouped)
    draws = [whole_and_drawn(draw_units(part.units, resamples, seed + k)) for k, part in enumerate(parts)]
    gaps = []
    for method in in_table_order(random.methods.keys() & grouped.methods.keys()):
        found = [
            resampled_metrics(part.labels, part.methods[method], drawn)
            for part, drawn in zip(parts, draws, strict=True)
        ]
        for metric in METRICS:
            one, other = (
                own[metric][0] + stretch(part.folds) * (own[metric] - own[metric][0])
                for part, own in zip(parts, found, strict=True)
            )
            columns = ((one, SHARE), (other, SHARE), (one - other, (-1.0, 1.0)))
            shown = (
                Difference(float(drawn[0]), *percentile_interval(drawn[1:], bounds=bounds)) for drawn, bounds in columns
            )
            gaps.append(SplitGap(method, metric, *shown))
    return gaps


def split_gap_table(gaps: list[SplitGap]) -> pd.DataFrame:
    """Return what `split_gaps` found as text, with 95% intervals."""
    lines = [
        {
            "metric": found.metric,
            "random split": value_text(found.random),
            "grouped split": value_text(found.grouped),
            "random minus grouped": signed_text(found.gap),
        }
        for found in gaps
    ]
    return pd.DataFrame(lines, index=[label_of(found.method) for found in gaps])


def split_gap_note(gaps: list[SplitGap]) -> str:
    """Say in Markdown whether the random split is optimistic for each method."""
    words = {BETTER: "the random split is **optimistic**", WORSE: "the random split is **pessimistic**"}
    lines = []
    for found in gaps:
        place = f"- {label_of(found.method)}, {found.metric}"
        if np.isnan(found.gap.value):
            lines.append(f"{place}: not defined, since no class has a positive patch.")
            continue
        said = words.get(finding(found.gap), "the two splits are **not significantly different**")
        lines.append(f"{place}: {said}, {signed_text(found.gap)}.")
    return "\n".join(
        [
            *lines,
            "",
            "Brackets hold the 95% interval of random minus grouped. The two splits do not score the same patches, so "
            "a gap also reflects the choice of patches.",
        ]
    )
