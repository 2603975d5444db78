import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from histoclip_lib.baselines import PROBE_STRENGTHS, fit_linear_probe, tissue_prior, tissue_rows, trivial_rows
from histoclip_lib.datasets.base import PatchDataset
from histoclip_lib.features import ImageFeatures, Shards
from histoclip_lib.metrics import mean_accuracy


def make_patches(labels, groups=None, tissue=None):
    files = [f"{i}.png" for i in range(len(labels))]
    return PatchDataset("made", ["a", "b", "c"], files, labels, None, groups=groups, tissue=tissue)


@pytest.fixture(scope="module")
def probe_case():
    """300 patches of 30 groups in two views; three classes that are nearly linear in the features."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 2, 12)).astype(np.float32)
    weights = generator.normal(size=(12, 3))
    noise = generator.normal(size=(300, 3))
    labels = (features[:, 0] @ weights + 0.5 * noise > 0).astype(np.uint8)
    features[:, 1] = features[:, 0] + 0.05 * generator.normal(size=(300, 12))
    pooled = Shards([features[:256], features[256:]])
    groups = np.array([f"g{i % 30}" for i in range(300)])
    return ImageFeatures(pooled, pooled, 0), make_patches(labels, groups), np.arange(200), np.arange(200, 300)


def test_majority_equals_scikit_learn_most_frequent():
    labels = (np.random.default_rng(0).random((51, 3)) < [0.2, 0.5, 0.8]).astype(np.uint8)
    rows = trivial_rows(labels, 4)
    for k in range(3):
        expected = DummyClassifier(strategy="most_frequent").fit(labels, labels[:, k]).predict(np.zeros((4, 1)))
        assert rows["majority"].decisions[:, k].tolist() == expected.astype(bool).tolist()
    assert not rows["all_negative"].decisions.any()
    assert rows["all_positive"].decisions.all()


def test_trivial_rows_sum_to_one():
    labels = (np.random.default_rng(0).random((51, 3)) < 0.3).astype(np.uint8)
    rows = trivial_rows(labels, 51)
    negative, positive = (mean_accuracy(labels, rows[name].decisions) for name in ("all_negative", "all_positive"))
    assert negative + positive == pytest.approx(1)
    assert positive == pytest.approx(labels.mean())


def test_tissue_prior_is_the_prevalence_of_the_tissue():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], dtype=np.uint8)
    tissue = np.array(["skin", "skin", "lung", "lung"])
    prior = tissue_prior(labels, tissue, np.array(["lung", "skin", "liver"]))
    assert prior.scores.tolist() == [[0, 0.5, 0.5], [1, 0.5, 0], [0.5, 0.5, 0.25]]
    assert prior.decisions.tolist() == [[False, True, True], [True, True, False], [True, True, False]]


def test_tissue_row_stands_only_where_tissues_are_known():
    labels, rows = np.eye(3, dtype=np.uint8), np.arange(3)
    assert tissue_rows(make_patches(labels), rows, rows) == {}
    known = make_patches(labels, tissue=np.array(["skin", "lung", "skin"]))
    assert tissue_rows(known, rows, rows)["tissue_prior"].decisions.shape == (3, 3)


def test_probe_equals_one_logistic_regression_for_each_class(probe_case):
    features, patches, train, val = probe_case
    probe = fit_linear_probe(features, patches, train, seed=0)
    views = [features.pooled.take(train, view) for view in (0, 1)]
    scaler = StandardScaler().fit(np.concatenate(views))
    found = probe.predict(features, val)
    for k in range(3):
        labels = np.tile(patches.labels[train, k], 2)
        model = LogisticRegression(C=probe.strength / 2, max_iter=2000)
        model.fit(scaler.transform(np.concatenate(views)), labels)
        expected = np.mean(
            [model.predict_proba(scaler.transform(features.pooled.take(val, v)))[:, 1] for v in (0, 1)], axis=0
        )
        np.testing.assert_allclose(found.scores[:, k], expected, atol=1e-6)
    assert mean_accuracy(patches.labels[val], found.decisions) > 0.85


def test_probe_chooses_the_strength_with_the_lowest_loss(probe_case):
    features, patches, train, _ = probe_case
    probe = fit_linear_probe(features, patches, train, seed=0)
    assert set(probe.losses) == set(PROBE_STRENGTHS)
    assert probe.losses[probe.strength] == min(probe.losses.values())


def test_probe_never_sees_validation_labels(probe_case):
    features, patches, train, val = probe_case
    labels = patches.labels.copy()
    labels[val] = 1 - labels[val]
    other = make_patches(labels, patches.groups)
    first, second = (fit_linear_probe(features, p, train, seed=0).predict(features, val) for p in (patches, other))
    assert np.array_equal(first.scores, second.scores)


@pytest.mark.filterwarnings("error")
def test_probe_bears_a_class_with_a_single_positive(probe_case):
    features, patches, train, val = probe_case
    labels = patches.labels.copy()
    labels[:, 0] = 0
    labels[5, 0] = 1
    probe = fit_linear_probe(features, make_patches(labels, patches.groups), train, seed=0)
    assert np.isfinite(probe.predict(features, val).scores).all()
    assert f"C = {probe.strength:g}" in probe.about()
