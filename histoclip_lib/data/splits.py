"""Which patches train and which validate: the paper's random 8:2, one by group, or the one given."""

from __future__ import annotations

import warnings

import numpy as np

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.base import PatchDataset

SPLITS = ("random", "grouped", "given")


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
        `given` follows the official parts: `train` against `test`, or against `val` where there is no `test`.
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
    """Return the fold of scikit-learn's StratifiedGroupKFold that is most like the whole set."""
    from sklearn.model_selection import StratifiedGroupKFold

    if dataset.groups is None:
        raise HistoCLIPError(
            f"split: {dataset.name} has no groups, so it cannot be split by group. Add a column `group` to labels.csv, "
            "or use split: random."
        )
    groups, labels = dataset.groups[order], dataset.labels[order]
    n_folds = max(2, round(1 / val_fraction))
    if len(np.unique(groups)) < n_folds:
        raise HistoCLIPError(
            f"split: {dataset.name} has {len(np.unique(groups))} groups, fewer than the {n_folds} that "
            f"val_fraction {val_fraction} needs. Use a larger val_fraction, or split: random."
        )
    _, label_set = np.unique(labels, axis=0, return_inverse=True)
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # label sets rarer than the folds are expected
        candidates = [val for _, val in folds.split(labels, label_set.ravel(), groups)]

    def imbalance(val: np.ndarray) -> float:
        size = abs(len(val) / len(order) - val_fraction)
        return size + np.abs(labels[val].mean(axis=0) - labels.mean(axis=0)).mean()

    return order[min(candidates, key=imbalance)]


def _given_validation(dataset: PatchDataset) -> np.ndarray:
    if dataset.parts is None:
        raise HistoCLIPError(
            f"split: {dataset.name} has no official split. Add a column `split` (train or val) to labels.csv, or use "
            "split: grouped or random."
        )
    held_out = "test" if (dataset.parts == "test").any() else "val"
    return np.flatnonzero(dataset.parts == held_out)


def _require_positives(dataset: PatchDataset, train: np.ndarray, val: np.ndarray, method: str) -> None:
    if not len(train) or not len(val):
        raise HistoCLIPError(
            f"split: {method} leaves {len(train)} patches to train and {len(val)} to validate. Both are needed."
        )
    missing = [c for c, n in zip(dataset.classes, dataset.labels[train].sum(axis=0), strict=True) if n == 0]
    if missing:
        raise HistoCLIPError(
            f"{dataset.name}: no training patch shows {', '.join(missing)}. Remove the class, add patches, or use "
            "another split or seed."
        )
