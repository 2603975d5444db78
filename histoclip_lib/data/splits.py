"""Which patches train and which validate: cross-validation, or one split: random 8:2, by group, or the one given."""

from __future__ import annotations

import re
import warnings

import numpy as np

from histoclip_lib.common.arrays import nan_mean
from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown
from histoclip_lib.data.base import PatchDataset

SPLITS = ("random", "grouped", "given")
PROTOCOLS = ("cv", "split")
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "tuning"), "val"),
    **dict.fromkeys(("test", "testing", "holdout", "heldout"), "test"),
}


def part_of(text: str) -> str:
    """Return `train`, `val` or `test` for what people call these; an empty text for anything else."""
    return PARTS.get(re.sub(r"[^a-z]", "", text.casefold()), "")


def groups_by_pattern(pattern: str, texts: list[str], option: str) -> list[str]:
    """Return what a regular expression finds in each text: its first group, or all of it.

    Raises
    ------
    HistoCLIPError
        Naming `option`, for an invalid regular expression, and listing the texts in which it finds nothing.
    """
    try:
        matches = [re.search(pattern, text) for text in texts]
    except re.error as error:
        raise HistoCLIPError(f"{option}: {shown(pattern)} is not a regular expression ({error}).") from error
    groups = ["" if match is None else (match[1] if match.re.groups else match[0]) or "" for match in matches]
    if missed := [text for text, group in zip(texts, groups, strict=True) if not group]:
        raise HistoCLIPError(
            f"{option}: {shown(pattern)} finds nothing in {len(missed):,} of {len(texts):,}:\n{bullet_list(missed)}"
        )
    return groups


def split_dataset(
    dataset: PatchDataset, method: str, seed: int, val_fraction: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a data set into a training and a validation part.

    Parameters
    ----------
    dataset : PatchDataset
        B patches.
    method : {"random", "grouped", "given"}
        `random` shuffles patches, as the paper does; patches of one patient are then on both sides.
        `grouped` keeps each group on one side and the class prevalences as equal as groups allow.
        `given` follows the official parts: `train` against `test`, or against `val` where there is no `test`. Beside a
        `test` part, `val` is left out: nothing is chosen by it.
    seed : int
        Decides `random` and `grouped` together with the set of file names, whatever their order.
    val_fraction : float
        Fraction of patches (`random`) or about that fraction (`grouped`) to validate on.

    Returns
    -------
    train, val : ndarray of int
        Indices into `dataset.files`, ascending.

    Raises
    ------
    HistoCLIPError
        For an unknown method, groups or parts that the data set lacks, or a class that has no positive
        patch in the training part.

    Examples
    --------
    >>> from histoclip_lib import load_dataset, split_dataset
    >>> train, val = split_dataset(load_dataset("synthetic", n_patches=20), "random", seed=0)
    >>> len(train), len(val)
    (16, 4)
    """
    if method not in SPLITS:
        raise HistoCLIPError(f"split: {method!r} is not known. Use one of {', '.join(SPLITS)}.")
    if not 0 < val_fraction < 1:
        raise HistoCLIPError(f"val_fraction: {val_fraction} must lie between 0 and 1.")
    order = np.argsort(np.asarray(dataset.files, dtype=object))  # so that the order of the files does not matter
    if method == "random":
        n_val = round(val_fraction * len(order))
        val = np.random.default_rng(seed).permutation(order)[:n_val]
    elif method == "grouped":
        val = _grouped_validation(dataset, order, seed, val_fraction)
    else:
        val = _given_validation(dataset)
    is_val = np.zeros(len(dataset), dtype=bool)
    is_val[val] = True
    is_train = ~is_val if method != "given" else dataset.parts == "train"
    train, val = np.flatnonzero(is_train), np.flatnonzero(is_val)
    _require_positives(dataset, train, val, method)
    return train, val


def make_folds(
    dataset: PatchDataset, protocol: str, split: str, seed: int, val_fraction: float = 0.2, n_folds: int = 5
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide a data set into the parts that models are fitted on and tried on.

    Parameters
    ----------
    dataset : PatchDataset
        B patches.
    protocol : {"cv", "split"}
        `cv` is cross-validation: each patch is held out once. `split` is the single division of `split_dataset`, and so
        is `cv` with the official parts, `split: given`.
    split, seed, val_fraction
        As for `split_dataset`; `val_fraction` is that of the single division.
    n_folds : int
        Of the cross-validation, at least 3. With `grouped`, each group is in one fold, and label sets are spread over
        the folds as evenly as groups allow; there the seed decides only between groups that are alike.

    Returns
    -------
    list of (ndarray, ndarray)
        For each fold the patches to fit on and those to hold out, as ascending indices into `dataset.files`.

    Raises
    ------
    HistoCLIPError
        For an unknown protocol, fewer than 3 folds, fewer groups or patches than folds, a class that no patch shows,
        and what `split_dataset` refuses.

    Examples
    --------
    >>> from histoclip_lib import load_dataset
    >>> from histoclip_lib.data import make_folds
    >>> folds = make_folds(load_dataset("synthetic", n_patches=20), "cv", "random", seed=0)
    >>> [(len(train), len(val)) for train, val in folds]
    [(16, 4), (16, 4), (16, 4), (16, 4), (16, 4)]
    """
    if protocol not in PROTOCOLS:
        raise HistoCLIPError(f"protocol: {protocol!r} is not known. Use one of {', '.join(PROTOCOLS)}.")
    if protocol == "split" or split == "given" or split not in SPLITS:
        return [split_dataset(dataset, split, seed, val_fraction)]
    order = np.argsort(np.asarray(dataset.files, dtype=object))
    if not 3 <= n_folds <= len(order):
        raise HistoCLIPError(f"folds: {n_folds} must be at least 3 and at most the number of patches, {len(order)}.")
    if split == "random":
        held_out = np.array_split(np.random.default_rng(seed).permutation(order), n_folds)
    else:
        held_out = _stratified_folds(dataset, order, seed, n_folds, "folds")
    positives = (dataset.labels == 1).sum(axis=0)
    if missing := [name for name, count in zip(dataset.classes, positives, strict=True) if not count]:
        raise HistoCLIPError(f"{dataset.name}: no patch shows {', '.join(missing)}. Remove the class or add patches.")
    return [(np.setdiff1d(order, val), np.sort(val)) for val in held_out]


def grouped_folds(
    dataset: PatchDataset, index: np.ndarray, n_folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide some patches into folds for cross-validation, each group in one fold.

    Parameters
    ----------
    dataset : PatchDataset
        Its groups are kept together; where it has none, each patch is its own.
    index : ndarray of int, shape (T,)
        Which patches.
    n_folds : int
        At most this many; as many as there are groups where these are fewer.
    seed : int
        Of the shuffling.

    Returns
    -------
    list of (ndarray, ndarray)
        Positions in `index` to fit on and to hold out. Empty where a single group leaves nothing to hold out.
    """
    from sklearn.model_selection import GroupKFold

    groups = index if dataset.groups is None else dataset.groups[index]
    n_folds = min(n_folds, len(np.unique(groups)))
    if n_folds < 2:
        return []
    return list(GroupKFold(n_folds, shuffle=True, random_state=seed).split(index, groups=groups))


def _grouped_validation(dataset: PatchDataset, order: np.ndarray, seed: int, val_fraction: float) -> np.ndarray:
    """Return the fold, or all folds but one, that is most like the whole set."""
    n_folds = max(2, round(1 / min(val_fraction, 1 - val_fraction)))
    candidates = _stratified_folds(dataset, order, seed, n_folds, f"folds of val_fraction {val_fraction}")
    if val_fraction > 0.5:
        candidates = [np.setdiff1d(order, fold) for fold in candidates]
    whole = nan_mean(dataset.labels, axis=0)

    def imbalance(val: np.ndarray) -> float:
        size = abs(len(val) / len(order) - val_fraction)
        return size + float(nan_mean(np.abs(nan_mean(dataset.labels[val], axis=0) - whole)))

    return min(candidates, key=imbalance)


def _stratified_folds(
    dataset: PatchDataset, order: np.ndarray, seed: int, n_folds: int, wanted: str
) -> list[np.ndarray]:
    """Return scikit-learn's StratifiedGroupKFold with label sets as strata; `wanted` names the folds in an error.

    Where groups of very different size make it leave a fold empty, the folds are those of GroupKFold.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    if dataset.groups is None:
        raise HistoCLIPError(
            f"split: {dataset.name} has no groups, so it cannot be split by group. {_remedy(dataset, 'groups')}use "
            "split: random."
        )
    groups, labels = dataset.groups[order], dataset.labels[order]
    if len(np.unique(groups)) < n_folds:
        raise HistoCLIPError(
            f"split: {dataset.name} has {len(np.unique(groups))} groups, fewer than the {n_folds} {wanted}. Use fewer "
            "folds or a larger val_fraction, or split: random."
        )
    _, label_set = np.unique(labels == 1, axis=0, return_inverse=True)
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # label sets rarer than the folds are expected
        held_out = [order[val] for _, val in folds.split(labels, label_set.ravel(), groups)]
    if all(map(len, held_out)):
        return held_out
    return [order[val] for _, val in GroupKFold(n_folds).split(labels, groups=groups)]


def _remedy(dataset: PatchDataset, lacking: str) -> str:
    """Return how to get what a data set lacks, and the beginning of the alternative."""
    return f"{dataset.remedies[lacking]} Or " if lacking in dataset.remedies else "Instead "


def _given_validation(dataset: PatchDataset) -> np.ndarray:
    if dataset.parts is None:
        raise HistoCLIPError(
            f"split: {dataset.name} has no official split. {_remedy(dataset, 'parts')}use split: "
            f"{'random' if dataset.groups is None else 'grouped or random'}."
        )
    held_out = "test" if (dataset.parts == "test").any() else "val"
    return np.flatnonzero(dataset.parts == held_out)


def _require_positives(dataset: PatchDataset, train: np.ndarray, val: np.ndarray, method: str) -> None:
    if not len(train) or not len(val):
        raise HistoCLIPError(
            f"split: {method} leaves {len(train)} patches to train and {len(val)} to validate. Both are needed."
        )
    missing = [c for c, n in zip(dataset.classes, (dataset.labels[train] == 1).sum(axis=0), strict=True) if n == 0]
    if missing:
        raise HistoCLIPError(
            f"{dataset.name}: no training patch shows {', '.join(missing)}. Remove the class, add patches, or use "
            "another split or seed."
        )
