"""Splits: the paper's 8:2, by group, and the official one; none depends on the order of the files."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.splits import make_folds, split_dataset


def make(n_groups=40, seed=0, per_group=(5, 25)):
    """A set whose groups differ in size and in what they show, as patients do."""
    random = np.random.default_rng(seed)
    sizes = random.integers(*per_group, n_groups)
    groups = np.repeat([f"patient {index:02d}" for index in range(n_groups)], sizes)
    rates = np.repeat(random.beta([2, 1, 0.5], [2, 3, 4], (n_groups, 3)), sizes, axis=0)
    labels = (random.random(rates.shape) < rates).astype(np.uint8)
    files = [f"{index:04d}.png" for index in range(len(labels))]
    return PatchDataset("made", ["a", "b", "c"], files, labels, None, groups=groups)


def reordered(dataset, order):
    parts = None if dataset.parts is None else dataset.parts[order]
    return replace(
        dataset,
        files=[dataset.files[index] for index in order],
        labels=dataset.labels[order],
        groups=dataset.groups[order],
        parts=parts,
    )


def with_parts(dataset, *names):
    return replace(dataset, parts=np.array(names)[np.arange(len(dataset)) % len(names)])


DATASET = make()


@pytest.mark.parametrize("method", ["random", "grouped"])
def test_the_two_parts_are_disjoint_ascending_and_everything(method):
    train, val = split_dataset(DATASET, method, 0)
    assert sorted([*train, *val]) == list(range(len(DATASET)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()


@pytest.mark.parametrize("method", ["random", "grouped"])
def test_the_seed_decides(method):
    validation = [tuple(split_dataset(DATASET, method, seed)[1]) for seed in (0, 0, 1, 2)]
    assert validation[0] == validation[1]
    assert len(set(validation)) == 3


@pytest.mark.parametrize("method", ["random", "grouped", "given"])
@given(order=st.permutations(range(len(DATASET))))
@settings(max_examples=15)
def test_the_order_of_the_files_does_not_matter(method, order):
    dataset = with_parts(DATASET, "train", "val", "train", "test")
    other = reordered(dataset, list(order))
    for part, again in zip(split_dataset(dataset, method, 3), split_dataset(other, method, 3), strict=True):
        assert {dataset.files[index] for index in part} == {other.files[index] for index in again}


@given(n=st.integers(10, 400), seed=st.integers(0, 2**31))
@settings(max_examples=50)
def test_random_is_8_to_2(n, seed):
    dataset = PatchDataset("made", ["a"], [f"{index}" for index in range(n)], np.ones((n, 1)), None)
    train, val = split_dataset(dataset, "random", seed)
    assert len(val) == round(n / 5)
    assert len(train) == n - round(n / 5)


def test_random_draws_every_patch_equally_often():
    dataset = PatchDataset("made", ["a"], [f"{index:02d}" for index in range(20)], np.ones((20, 1)), None)
    counts = np.zeros(20)
    for seed in range(1000):
        counts[split_dataset(dataset, "random", seed)[1]] += 1
    assert counts.sum() == 4000
    assert abs(counts - 200).max() < 5 * np.sqrt(1000 * 0.2 * 0.8)


@pytest.mark.parametrize("seed", range(5))
def test_grouped_keeps_each_group_on_one_side_and_the_prevalences_near(seed):
    dataset = make(seed=seed)
    train, val = split_dataset(dataset, "grouped", seed)
    assert not set(dataset.groups[train]) & set(dataset.groups[val])
    assert 0.15 < len(val) / len(dataset) < 0.25
    assert abs(dataset.labels[val].mean(axis=0) - dataset.prevalence).max() < 0.06
    chance = np.random.default_rng(seed).permutation(np.unique(dataset.groups))
    far = [np.isin(dataset.groups, chance[start : start + 8]) for start in range(0, 40, 8)]
    typical = np.mean([abs(dataset.labels[rows].mean(axis=0) - dataset.prevalence).mean() for rows in far])
    assert abs(dataset.labels[val].mean(axis=0) - dataset.prevalence).mean() < typical


def test_grouped_is_a_fold_of_stratified_group_k_fold():
    _, label_set = np.unique(DATASET.labels, axis=0, return_inverse=True)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=7)
    expected = [set(val) for _, val in folds.split(DATASET.labels, label_set.ravel(), DATASET.groups)]
    assert set(split_dataset(DATASET, "grouped", 7)[1]) in expected


def test_no_fold_is_empty_where_groups_differ_much_in_size():
    """StratifiedGroupKFold leaves one of these folds empty."""
    sizes = [26, 39, 17, 32, 24]
    groups = np.repeat([f"patient {k}" for k in range(5)], sizes)
    labels = np.repeat(np.uint8([[0, 0], [1, 0], [1, 0], [1, 1], [1, 0]]), sizes, axis=0)
    dataset = PatchDataset("made", ["a", "b"], [f"{k:03d}" for k in range(len(groups))], labels, None, groups=groups)
    folds = make_folds(dataset, "cv", "grouped", 0, n_folds=5)
    assert sorted(len(val) for _, val in folds) == sorted(sizes)


def test_grouped_follows_val_fraction():
    sizes = [
        len(split_dataset(DATASET, "grouped", 0, fraction)[1]) / len(DATASET) for fraction in (0.1, 0.25, 0.5, 0.8)
    ]
    assert sizes == pytest.approx([0.1, 0.25, 0.5, 0.8], abs=0.05)


def test_given_follows_the_parts():
    train, val = split_dataset(with_parts(DATASET, "train", "val", "train"), "given", 0)
    assert (train % 3 != 1).all()
    assert (val % 3 == 1).all()
    assert len(train) + len(val) == len(DATASET)


def test_given_validates_on_test_where_there_is_one_and_leaves_val_out():
    train, val = split_dataset(with_parts(DATASET, "train", "val", "test"), "given", 0)
    assert (train % 3 == 0).all()
    assert (val % 3 == 2).all()


# What is refused


@pytest.mark.parametrize(
    ("dataset", "method", "fraction", "reason"),
    [
        (DATASET, "patient", 0.2, "'patient' is not known. Use one of random, grouped, given"),
        (DATASET, "random", 0.0, "val_fraction: 0.0 must lie between 0 and 1"),
        (DATASET, "random", 1.0, "val_fraction: 1.0 must lie between 0 and 1"),
        (DATASET, "random", float("nan"), "val_fraction: nan"),
        (replace(DATASET, groups=None), "grouped", 0.2, "has no groups.*Instead use split: random"),
        (make(4), "grouped", 0.2, "4 groups, fewer than the 5"),
        (DATASET, "given", 0.2, "has no official split.*Instead use split: grouped or random"),
        (with_parts(DATASET, "train"), "given", 0.2, "to train and 0 to validate"),
        (with_parts(DATASET, "val"), "given", 0.2, "leaves 0 patches to train"),
        (DATASET, "random", 1e-6, "0 to validate"),
    ],
)
def test_a_split_that_cannot_be_made_says_why(dataset, method, fraction, reason):
    with pytest.raises(HistoCLIPError, match=reason):
        split_dataset(dataset, method, 0, fraction)


def test_every_class_without_a_positive_in_train_is_named():
    labels = DATASET.labels.copy()
    labels[:, [0, 2]] = 0
    dataset = with_parts(replace(DATASET, labels=labels), "train", "val")
    with pytest.raises(HistoCLIPError, match=r"no training patch shows a, c\. Remove the class"):
        split_dataset(dataset, "given", 0)


def test_a_class_that_only_val_shows_is_refused():
    labels = DATASET.labels.copy()
    labels[:, 1] = np.arange(len(labels)) % 2
    dataset = with_parts(replace(DATASET, labels=labels), "train", "val")
    with pytest.raises(HistoCLIPError, match="no training patch shows b"):
        split_dataset(dataset, "given", 0)


# Cross-validation


@pytest.mark.parametrize("split", ["random", "grouped"])
def test_each_patch_is_held_out_once_by_models_that_have_not_seen_its_group(split):
    folds = make_folds(DATASET, "cv", split, 3, n_folds=4)
    assert len(folds) == 4
    assert sorted(np.concatenate([val for _, val in folds])) == list(range(len(DATASET)))
    for train, val in folds:
        assert sorted([*train, *val]) == list(range(len(DATASET)))
        both = set(DATASET.groups[train]) & set(DATASET.groups[val])
        assert bool(both) == (split == "random")


@pytest.mark.parametrize("split", ["random", "grouped"])
def test_folds_do_not_follow_the_order_of_the_files(split):
    order = np.random.default_rng(1).permutation(len(DATASET))
    other = reordered(DATASET, order)
    for (_, val), (_, again) in zip(
        make_folds(DATASET, "cv", split, 0), make_folds(other, "cv", split, 0), strict=True
    ):
        assert {DATASET.files[i] for i in val} == {other.files[i] for i in again}


def test_random_folds_follow_the_seed():
    first, again, other = (make_folds(DATASET, "cv", "random", seed)[0][1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_official_parts_and_the_protocol_split_are_one_division():
    dataset = with_parts(DATASET, "train", "train", "val")
    for protocol, split in (("cv", "given"), ("split", "given"), ("split", "grouped")):
        ((train, val),) = make_folds(dataset, protocol, split, 0)
        expected = split_dataset(dataset, split, 0)
        assert np.array_equal(train, expected[0])
        assert np.array_equal(val, expected[1])


@pytest.mark.parametrize(
    ("dataset", "protocol", "split", "folds", "named"),
    [
        (DATASET, "loo", "random", 5, "protocol: 'loo'"),
        (DATASET, "cv", "random", 2, "folds: 2"),
        (make(4), "cv", "grouped", 5, "4 groups, fewer than the 5 folds"),
        (replace(DATASET, labels=DATASET.labels * np.uint8([1, 1, 0])), "cv", "grouped", 5, "no patch shows c"),
    ],
)
def test_what_no_cross_validation_can_be_made_of_is_named(dataset, protocol, split, folds, named):
    with pytest.raises(HistoCLIPError, match=named):
        make_folds(dataset, protocol, split, 0, n_folds=folds)
