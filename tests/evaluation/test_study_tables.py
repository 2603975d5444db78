"""Tables of studies: each value against the predictions that it comes from."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation import studies as study_tables
from histoclip_lib.evaluation.metrics import point_metrics
from histoclip_lib.models.studies import Finished


def made(purpose, name, method, test, scores, n_train=9):
    return Finished(purpose, name, method, n_train, test, from_probabilities(scores))


@pytest.fixture(scope="module")
def case():
    """60 patches of 12 groups with 2 classes."""
    labels = np.random.default_rng(0).integers(0, 2, (60, 2)).astype(np.uint8)
    files, groups = [f"{i}.png" for i in range(60)], np.array([f"g{i % 12}" for i in range(60)])
    patches = PatchDataset("made", ["a", "b"], files, labels, None, groups=groups)
    train = np.flatnonzero(np.arange(60) % 12 < 9)
    return SimpleNamespace(patches=patches, train=train, val=np.setdiff1d(np.arange(60), train))


@pytest.fixture(scope="module")
def scores(case):
    """Probabilities (V, 2) of the validation patches, from worse to better."""
    generator = np.random.default_rng(1)
    truth = case.patches.labels[case.val]
    return [
        np.clip(0.5 + weight * (truth - 0.5) + 0.3 * generator.normal(size=truth.shape), 0, 1)
        for weight in (0, 0.3, 0.6, 1)
    ]


def test_out_of_fold_puts_each_patch_back(case):
    halves = case.train[::2], case.train[1::2]
    finished = [
        made("fold", str(i), "histoclip_patch", half, np.full((len(half), 2), 0.1 + i)) for i, half in enumerate(halves)
    ]
    index, found = study_tables.out_of_fold(finished, [(case.train, case.val)], 0)
    assert sorted(index) == list(case.train)
    assert (found[np.isin(index, halves[0])] == 0.1).all()
    assert (found[np.isin(index, halves[1])] == 1.1).all()
    assert study_tables.out_of_fold([], [(case.train, case.val)], 0) is None


@pytest.mark.parametrize(("split", "first"), [("random", "this"), ("grouped", "other"), ("given", "other")])
def test_two_splits_come_random_first(case, scores, split, first):
    methods = {name: from_probabilities(scores[3]) for name in ("majority", "linear_probe", "histoclip_patch")}
    test = np.arange(20, 35)
    finished = [made("split", "x", method, test, scores[1]) for method in ("linear_probe", "histoclip_patch")]
    random, grouped = study_tables.two_splits(finished, methods, case.patches, split, case.val)
    this, other = (random, grouped) if first == "this" else (grouped, random)
    assert np.array_equal(this.labels, case.patches.labels[case.val])
    assert np.array_equal(other.labels, case.patches.labels[test])
    assert np.array_equal(other.units, case.patches.groups[test])
    assert set(this.methods) == set(other.methods) == {"majority", "linear_probe", "histoclip_patch"}
    rest = np.delete(case.patches.labels, test, axis=0)
    np.testing.assert_allclose(other.methods["majority"].scores[0], rest.mean(axis=0))
    assert study_tables.two_splits([], methods, case.patches, split, case.val) is None


def test_seed_metrics_hold_the_method_as_reported_and_the_other_seeds(case, scores):
    methods = {"mlp": from_probabilities(scores[0]), "histoclip_patch": from_probabilities(scores[3])}
    finished = [
        made("seed", "seed 4", "histoclip_patch", case.val, scores[2]),
        made("seed", "seed 11", "histoclip_patch", case.val, scores[1]),
        made("seed", "seed 4", "mlp", case.val, scores[1]),
    ]
    found = study_tables.seed_metrics(finished, methods, case.patches, case.val, seed=0)
    assert {method: set(by_seed) for method, by_seed in found.items()} == {"histoclip_patch": {0, 4, 11}, "mlp": {0, 4}}
    expected = point_metrics(case.patches.labels[case.val], from_probabilities(scores[2]), ["a", "b"])
    assert found["histoclip_patch"][4] == expected


def test_design_table_says_what_each_change_costs(case, scores):
    methods = {
        "histoclip_patch": from_probabilities(scores[3]),
        "histoclip_global": from_probabilities(scores[2]),
        "histoclip_text_free": from_probabilities(scores[1]),
    }
    finished = [made("design", "post-norm", "histoclip_patch", case.val, scores[0])]
    scored, table = study_tables.design_metrics(finished, methods, case.patches, case.val, 200, 0)
    assert list(table.index) == list(scored)
    assert table.index[0] == "as reported"
    labels = case.patches.labels[case.val]
    best, worst = (point_metrics(labels, from_probabilities(scores[k]), ["a", "b"]) for k in (3, 0))
    assert table.loc["as reported", "mAcc"] == f"{best['mAcc']:.3f}"
    assert table.loc["post-norm", "mAcc, change"].startswith(f"{worst['mAcc'] - best['mAcc']:+.3f} (")
    assert table.loc["post-norm", "mAP, change"].startswith(f"{worst['mAP'] - best['mAP']:+.3f} (")
    assert scored["post-norm"]["mAcc_ci"][0] < worst["mAcc"] < scored["post-norm"]["mAcc_ci"][1]


def test_size_frame_ends_with_the_whole_training_part(case, scores):
    methods = {"linear_probe": from_probabilities(scores[2]), "histoclip_patch": from_probabilities(scores[3])}
    finished = [
        made("size", "2 patches, draw 1", method, case.val, scores[0], n_train=2)
        for method in ("linear_probe", "histoclip_patch")
    ]
    frame = study_tables.size_frame(finished, methods, 45, case.patches, case.val)
    assert frame[["method", "n_train"]].to_numpy().tolist() == [
        ["linear_probe", 2],
        ["histoclip_patch", 2],
        ["linear_probe", 45],
        ["histoclip_patch", 45],
    ]
    assert (
        frame["mAcc"].iloc[3]
        == point_metrics(case.patches.labels[case.val], methods["histoclip_patch"], ["a", "b"])["mAcc"]
    )


def test_the_study_of_the_head_is_shown_whole():
    table = study_tables.head_study()
    assert table.index[0] == "as chosen"
    assert table.index[-1] == "linear probe"
    assert (table.map(float) > 0).all(axis=None)
    lines = json.loads(study_tables.HEAD_STUDY.read_text())
    [line] = [line for line in lines if line["choice"] == "no mixup" and line["data"] == "synthetic H&E"]
    assert table.loc["no mixup", "synthetic H&E, mAP"] == f"{line['mAP']:.3f}"
