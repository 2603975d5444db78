import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import from_probabilities, mean_accuracy
from histoclip_lib.common.registry import METHODS
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.features.store import ImageFeatures, Shards
from histoclip_lib.models.baselines import (
    BASELINES,
    DEFAULT_STRENGTH,
    FURTHER_STRENGTHS,
    NEIGHBOURS,
    PROBE_STRENGTHS,
    baseline,
    ensemble,
    fit_baselines,
    fit_blended_probe,
    fit_gaussian_with_text,
    fit_knn,
    fit_linear_probe,
    load_baselines,
    metadata_method,
    save_baselines,
    tissue_prior_method,
    uninformative,
)


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


@pytest.fixture(scope="module")
def fitted_probe(probe_case):
    """The linear probe of `probe_case`."""
    features, patches, train, _ = probe_case
    return fit_linear_probe(features, patches, train, seed=0)


def test_majority_equals_scikit_learn_most_frequent():
    labels = (np.random.default_rng(0).random((51, 3)) < [0.2, 0.5, 0.8]).astype(np.uint8)
    methods = uninformative(labels, 4)
    for k in range(3):
        expected = DummyClassifier(strategy="most_frequent").fit(labels, labels[:, k]).predict(np.zeros((4, 1)))
        assert methods["majority"].decisions[:, k].tolist() == expected.astype(bool).tolist()
    assert not methods["all_negative"].decisions.any()
    assert methods["all_positive"].decisions.all()


def test_the_ensemble_is_the_mean_of_both_probabilities():
    members = {
        "linear_probe": from_probabilities(np.array([[0.2, 0.6]])),
        "histoclip_patch": from_probabilities(np.array([[0.9, 0.3]])),
    }
    found = ensemble(members)["histoclip_ensemble"]
    np.testing.assert_allclose(found.scores, [[0.55, 0.45]])
    assert found.decisions.tolist() == [[True, False]]


def test_tissue_prior_is_the_prevalence_in_the_tissue():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], *[[0, 0, 0]] * 3], dtype=np.uint8)
    tissue = np.array(["skin", "skin", "lung", "lung", "lung", "skin", "liver"])
    patches, train, val = make_patches(labels, tissue=tissue), np.arange(4), np.arange(4, 7)
    prior = tissue_prior_method(patches, train, val)["tissue_prior"]
    assert prior.scores.tolist() == [[0, 0.5, 0.5], [1, 0.5, 0], [0.5, 0.5, 0.25]]
    assert prior.decisions.tolist() == [[False, True, True], [True, True, False], [True, True, False]]
    assert tissue_prior_method(make_patches(labels), train, val) == {}


def test_metadata_alone_find_what_a_site_says():
    labels = np.zeros((60, 3), dtype=np.uint8)
    sites = np.array(["a", "b", "c"])[np.arange(60) % 3]
    labels[:, 0], labels[:, 1] = sites == "b", 1
    patches = dataclasses.replace(make_patches(labels), meta={"site": sites, "sex": np.full(60, "f")})
    patches.meta["site"][45] = "never seen"
    found = metadata_method(patches, np.arange(40), np.arange(40, 60))["metadata_only"]
    known = np.arange(40, 60) != 45
    assert np.array_equal(found.decisions[known, 0], labels[40:][known, 0] == 1)
    assert found.decisions[:, 1].all()
    assert not found.decisions[:, 2].any()
    assert metadata_method(make_patches(labels), np.arange(40), np.arange(40, 60)) == {}


def test_a_registered_baseline_is_fitted_kept_and_is_a_method(probe_case, monkeypatch, tmp_path):
    features, patches, train, val = probe_case
    for registry in (BASELINES, METHODS):
        monkeypatch.setattr(registry, "_entries", dict(registry.load()))

    @baseline("constant", label="Constant")
    def fit_constant(features, patches, train, seed):
        prevalence = patches.labels[train].mean(axis=0)
        predict = lambda features, index: from_probabilities(np.tile(prevalence, (len(index), 1)))  # noqa: E731
        return SimpleNamespace(predict=predict, about=lambda: "")

    fitted = fit_baselines(features, patches, [(train[:30], val), (val, train[:30])], 0, np.eye(3, 12), workers=1)
    save_baselines(tmp_path / "baselines.npz", fitted)
    fitted = load_baselines(tmp_path / "baselines.npz")
    assert list(fitted) == ["linear_probe", "knn", "gaussian_text", "blended_probe", "constant"]
    for first, second in fitted.values():
        assert first.predictions.scores.shape == (100, 3)
        assert second.predictions.scores.shape == (30, 3)
    alone = fit_linear_probe(features, patches, train[:30], 0)
    np.testing.assert_array_equal(fitted["linear_probe"][0].inside, alone.out_of_fold)
    np.testing.assert_array_equal(fitted["linear_probe"][0].predictions.scores, alone.predict(features, val).scores)
    np.testing.assert_array_equal(fitted["linear_probe"][0].directions, alone.directions)
    assert fitted["constant"][0].directions is None
    (tmp_path / "baselines.npz").write_bytes(b"PK")
    with pytest.raises(HistoCLIPError, match=r"baselines.npz cannot be read .*03_train"):
        load_baselines(tmp_path / "baselines.npz")
    assert (METHODS["constant"].label, METHODS["constant"].family) == ("Constant", "baseline")


def test_the_probe_of_a_class_is_that_of_the_patches_whose_label_is_known(probe_case):
    features, patches, train, val = probe_case
    labels = patches.labels.astype(np.float32)
    labels[train[::3], 1] = np.nan
    few = dataclasses.replace(patches, labels=labels)
    probe = fit_linear_probe(features, few, train[:15], 0)  # few patches: C is the default
    whole = fit_linear_probe(features, patches, train[:15], 0)
    np.testing.assert_array_equal(probe.weights[:, [0, 2]], whole.weights[:, [0, 2]])
    own = train[:15][~np.isnan(labels[train[:15], 1])]
    views = np.concatenate([(features.pooled.take(own, view) - probe.mean) / probe.scale for view in (0, 1)])
    model = LogisticRegression(C=probe.strength / 2, max_iter=2000).fit(views, np.tile(labels[own, 1], 2))
    np.testing.assert_allclose(probe.weights[:, 1], model.coef_[0], atol=1e-4)
    assert np.isfinite(fit_linear_probe(features, few, train, 0).predict(features, val).scores).all()


def test_neighbours_without_a_label_have_no_vote(probe_case):
    features, patches, train, val = probe_case
    labels = patches.labels.astype(np.float32)
    labels[train[::2], 0] = np.nan
    model = fit_knn(features, dataclasses.replace(patches, labels=labels), train, 0)
    views = np.stack([features.pooled.take(val, view) for view in (0, 1)], axis=1) - model.mean
    views /= np.linalg.norm(views, axis=2, keepdims=True)
    expected = 0
    for view in range(2):
        nearest = np.argsort(
            -(views[0, view] @ model.examples.reshape(-1, views.shape[2]).T).reshape(-1, 2).max(axis=1)
        )
        votes = labels[train][nearest[: model.k], 0]
        expected += (np.nansum(votes) + 1) / ((~np.isnan(votes)).sum() + 2) / 2
    assert model.predict(features, val[:1]).scores[0, 0] == pytest.approx(expected)


def test_probe_equals_one_logistic_regression_for_each_class(probe_case, fitted_probe):
    features, patches, train, val = probe_case
    probe = fitted_probe
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


def test_out_of_fold_comes_from_regressions_of_the_other_folds(probe_case, fitted_probe):
    features, patches, train, _ = probe_case
    probe = fitted_probe
    views = [features.pooled.take(train, view) for view in (0, 1)]
    labels = patches.labels[train]
    expected = np.empty(labels.shape)
    for inside, outside in GroupKFold(5, shuffle=True, random_state=0).split(train, groups=patches.groups[train]):
        scaler = StandardScaler().fit(np.concatenate([view[inside] for view in views]))
        examples = scaler.transform(np.concatenate([view[inside] for view in views]))
        for k in range(3):
            model = LogisticRegression(C=probe.strength / 2, max_iter=2000).fit(examples, np.tile(labels[inside, k], 2))
            said = [model.predict_proba(scaler.transform(view[outside]))[:, 1] for view in views]
            expected[outside, k] = np.mean(said, axis=0)
    np.testing.assert_allclose(probe.out_of_fold, expected, atol=2e-5)  # as near as the solver comes
    loss = np.mean([log_loss(labels[:, k], probe.out_of_fold[:, k]) for k in range(3)])
    assert probe.losses[probe.strength] == pytest.approx(loss)


def test_probe_chooses_the_strength_with_the_lowest_loss(fitted_probe):
    probe = fitted_probe
    assert set(probe.losses) >= set(PROBE_STRENGTHS)
    assert list(probe.losses) == sorted(probe.losses)
    assert probe.losses[probe.strength] == min(probe.losses.values())


@pytest.mark.parametrize(("edge", "signs"), [(min, [1, 1, -1, -1]), (max, [1, 1, 1, 1])])
def test_probe_looks_further_where_the_best_strength_is_at_the_edge(edge, signs):
    """Where each group contradicts most of the others the weakest probe is best, where all agree the strongest."""
    groups = np.arange(120) % 4
    labels = np.random.default_rng(0).integers(0, 2, (120, 3)).astype(np.uint8)
    features = ((2.0 * labels - 1) * np.array(signs)[groups, None]).astype(np.float32)[:, None]
    shards = Shards([features])
    patches = make_patches(labels, groups.astype(str))
    probe = fit_linear_probe(ImageFeatures(shards, shards, 0), patches, np.arange(120), seed=0)
    assert probe.strength in FURTHER_STRENGTHS[edge]
    assert list(probe.losses) == sorted({*PROBE_STRENGTHS, *FURTHER_STRENGTHS[edge]})


def test_out_of_fold_stays_off_zero_and_one():
    """A patch far out on its side is certain to the last digit; its logarithm is finite all the same."""
    labels = np.tile(np.uint8([[0], [1]]), (60, 3))
    features = np.random.default_rng(0).normal(2.0 * labels - 1, 1).astype(np.float32)[:, None]
    features[1] = 1e4
    shards = Shards([features])
    probe = fit_linear_probe(ImageFeatures(shards, shards, 0), make_patches(labels), np.arange(120), seed=0)
    assert probe.out_of_fold[1].max() == 1 - 1e-6
    assert all(np.isfinite(loss) for loss in probe.losses.values())


@pytest.mark.filterwarnings("error")
def test_probe_is_fitted_to_a_class_with_a_single_positive(probe_case):
    features, patches, train, val = probe_case
    labels = patches.labels.copy()
    labels[:, 0] = 0
    labels[5, 0] = 1
    probe = fit_linear_probe(features, make_patches(labels, patches.groups), train, seed=0)
    assert np.isfinite(probe.predict(features, val).scores).all()
    assert f"C = {probe.strength:g}" in probe.about()


FITS = pytest.mark.parametrize("fit", [fit_linear_probe, fit_knn])


@FITS
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_patches", [1, 2, 5, 19, 20])
def test_few_training_patches_are_enough(probe_case, fit, n_patches):
    features, patches, _, val = probe_case
    for seed in range(2):
        train = np.random.default_rng(seed).permutation(200)[:n_patches]
        model = fit(features, patches, train, seed=0)
        probabilities = model.predict(features, val).scores
        assert ((probabilities > 0) & (probabilities < 1)).all()
        if not model.losses:
            assert "is the default" in model.about()


@FITS
@pytest.mark.filterwarnings("error")
def test_one_group_or_classes_of_one_value_leave_the_default(probe_case, fit):
    features, patches, train, val = probe_case
    one_group = make_patches(patches.labels, np.full(300, "g"))
    one_value = make_patches(np.broadcast_to(np.uint8([0, 1, 1]), (300, 3)), patches.groups)
    for odd in (one_group, one_value):
        model = fit(features, odd, train, seed=0)
        assert model.losses == {}
        assert (model.strength if fit is fit_linear_probe else model.k) == (
            DEFAULT_STRENGTH if fit is fit_linear_probe else 11
        )
    expected = np.array([1, 201, 201]) / 202 if fit is fit_linear_probe else np.array([1, 12, 12]) / 13
    np.testing.assert_allclose(model.predict(features, val).scores, np.tile(expected, (100, 1)), rtol=1e-6)
    if fit is fit_linear_probe:
        assert model.out_of_fold is None


def test_a_class_of_one_value_does_not_disturb_the_others(probe_case, fitted_probe):
    features, patches, train, val = probe_case
    labels = patches.labels.copy()
    labels[:, 0] = 1
    probe, usual = fit_linear_probe(features, make_patches(labels, patches.groups), train, 0), fitted_probe
    assert probe.strength == usual.strength
    np.testing.assert_allclose(probe.predict(features, val).scores[:, 1:], usual.predict(features, val).scores[:, 1:])
    np.testing.assert_allclose(probe.out_of_fold[:, 0], 161 / 162, atol=0.001)


def single_view(features):
    pooled = Shards([piece[:, :1] for piece in features.pooled.pieces])
    return ImageFeatures(pooled, pooled, 0)


def test_neighbours_of_a_single_view_are_scikit_learn_s(probe_case):
    features, patches, train, val = probe_case
    features = single_view(features)
    knn = fit_knn(features, patches, train, seed=0)
    inside, outside = features.pooled.take(train), features.pooled.take(val)
    model = KNeighborsClassifier(knn.k).fit(normalize(inside - inside.mean(axis=0)), patches.labels[train])
    found = knn.predict(features, val)
    positives = np.stack([p[:, 1] for p in model.predict_proba(normalize(outside - inside.mean(axis=0)))], axis=1)
    np.testing.assert_allclose(found.scores, (positives * knn.k + 1) / (knn.k + 2))
    assert np.array_equal(found.decisions, positives >= 0.5)


def test_k_is_chosen_by_the_cross_entropy_of_the_other_folds(probe_case):
    features, patches, train, _ = probe_case
    features = single_view(features)
    knn = fit_knn(features, patches, train, seed=0)
    pooled, labels = features.pooled.take(train), patches.labels[train]
    pooled = normalize(pooled - pooled.mean(axis=0))
    for k in (1, 7, knn.k):
        said = np.empty(labels.shape)
        for inside, outside in GroupKFold(5, shuffle=True, random_state=0).split(train, groups=patches.groups[train]):
            model = KNeighborsClassifier(k).fit(pooled[inside], labels[inside])
            said[outside] = np.stack([p[:, 1] for p in model.predict_proba(pooled[outside])], axis=1)
        said = (said * k + 1) / (k + 2)
        assert knn.losses[k] == pytest.approx(np.mean([log_loss(labels[:, c], said[:, c]) for c in range(3)]))
    assert knn.losses[knn.k] == min(knn.losses.values())
    assert tuple(knn.losses) == NEIGHBOURS  # all fit into a fold of 160
    assert f"k = {knn.k}, was chosen" in knn.about()


def test_a_patch_votes_once_by_its_nearest_view():
    """Patch 0 stands near the question in both views, 1 and 2 in one view, 3 half near in both, 4 opposite."""
    here, near, middle, far = [1, 0, 0], [0.9, 0.1, 0], [0.5, 0.5, 0], [-0.9, 0.1, 0.1]
    views = np.array([[here, near], [near, far], [far, near], [middle, middle]])
    views = np.concatenate([views, [[-views.sum(axis=(0, 1)) / 2] * 2], [[here, here]]]).astype(np.float32)
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]], dtype=np.uint8)
    shards = Shards([views])
    features = ImageFeatures(shards, shards, 0)
    knn = fit_knn(features, make_patches(labels), np.arange(5), seed=0)
    np.testing.assert_allclose(knn.mean, 0, atol=1e-6)
    three = dataclasses.replace(knn, k=3).predict(features, np.array([5])).scores
    np.testing.assert_allclose(three[0], np.array([1 + 1, 2 + 1, 0 + 1]) / 5)


def test_neighbours_predict_many_patches_as_each_alone(probe_case, monkeypatch):
    features, patches, train, val = probe_case
    knn = fit_knn(features, patches, train, seed=0)
    expected = np.concatenate([knn.predict(features, val[[i]]).scores for i in range(len(val))])
    monkeypatch.setattr("histoclip_lib.models.baselines.CHUNK", 7)
    np.testing.assert_allclose(knn.predict(features, val).scores, expected)
    assert mean_accuracy(patches.labels[val], knn.predict(features, val).decisions) > 0.7


def test_k_is_chosen_on_some_of_many_patches(probe_case, monkeypatch):
    features, patches, train, _ = probe_case
    whole = fit_knn(features, patches, train, seed=0)
    monkeypatch.setattr("histoclip_lib.models.baselines.CHOOSING", 150)
    part = fit_knn(features, patches, train, seed=0)
    assert part.losses.keys() == whole.losses.keys()
    assert part.losses != whole.losses
    assert part.losses[7] == pytest.approx(whole.losses[7], rel=0.1)


@FITS
def test_validation_labels_are_never_seen(probe_case, fit):
    features, patches, train, val = probe_case
    train = train[:60]
    labels = patches.labels.copy()
    labels[val] = 1 - labels[val]
    other = make_patches(labels, patches.groups)
    first, second = (fit(features, p, train, seed=0).predict(features, val) for p in (patches, other))
    assert np.array_equal(first.scores, second.scores)


# With text


def planted_text(seed, n_patches=220, width=24):
    """Patches whose classes are directions that the words point to, less than exactly; a few of them to learn from."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, (n_patches, 3)).astype(np.uint8)
    axes = np.linalg.qr(random.normal(size=(width, width)))[0][:3]
    embeddings = (labels @ axes + 0.35 * random.normal(size=(n_patches, width))).astype(np.float32)
    words = normalize(axes + 0.1 * random.normal(size=axes.shape))
    pooled = Shards([embeddings[start : start + 256, None] for start in range(0, n_patches, 256)])
    return ImageFeatures(pooled, pooled, 0), make_patches(labels, np.arange(n_patches).astype(str)), words


@pytest.mark.parametrize("fit", [fit_gaussian_with_text, fit_blended_probe])
def test_words_help_where_labels_are_few(fit):
    gains = []
    for seed in range(6):
        features, patches, words = planted_text(seed)
        few, rest = np.arange(20, 34), np.arange(40, 220)
        plain = fit_linear_probe(features, patches, few, 0).predict(features, rest)
        found = fit(features, patches, few, 0, words).predict(features, rest)
        gains.append(mean_accuracy(patches.labels[rest], found.decisions))
        gains[-1] -= mean_accuracy(patches.labels[rest], plain.decisions)
    assert np.mean(gains) > 0.03


def test_gaussians_are_the_linear_discriminant_of_scikit_learn():
    """Its direction with many patches; the shrunken inverse of Wang et al. scales it by d / (T - 1)."""
    features, patches, words = planted_text(0, n_patches=5000)
    train = np.arange(5000)
    fitted = fit_gaussian_with_text(features, patches, train, 0, words)
    embeddings = normalize(features.pooled.take(train)).astype(float)
    for k in range(3):
        known = LinearDiscriminantAnalysis(solver="lsqr").fit(embeddings, patches.labels[:, k])
        cosine = normalize(known.coef_)[0] @ normalize(fitted.weights[:, [k]], axis=0)[:, 0]
        assert cosine > 0.999
        middle = np.mean([embeddings[patches.labels[:, k] == value].mean(axis=0) for value in (0, 1)], axis=0)
        assert middle @ fitted.weights[:, k] + fitted.intercepts[k] == pytest.approx(0, abs=1e-6)
    losses = fitted.losses
    assert losses[fitted.chosen] == min(losses.values())


def test_the_blended_probe_is_a_regression_with_the_text_score_as_a_feature():
    features, patches, words = planted_text(1)
    train, rest = np.arange(120), np.arange(120, 220)
    fitted = fit_blended_probe(features, patches, train, 0, words)
    embeddings = normalize(features.pooled.take(np.arange(220)))
    for k in range(3):
        x = np.concatenate([embeddings, embeddings @ words[[k]].T], axis=1)
        x = StandardScaler().fit(x[train]).transform(x) * ([1] * 24 + [10])
        known = LogisticRegression(C=fitted.strength, max_iter=2000).fit(x[train], patches.labels[train, k])
        found = fitted.predict(features, rest).scores[:, k]
        np.testing.assert_allclose(found, known.predict_proba(x[rest])[:, 1], atol=2e-3)


@pytest.mark.parametrize("fit", [fit_gaussian_with_text, fit_blended_probe])
@pytest.mark.parametrize("n_patches", [2, 3, 25])
def test_any_number_of_patches_gives_probabilities(fit, n_patches):
    features, patches, words = planted_text(2)
    patches.labels[:25, 1] = 0  # a class that no training patch has
    found = fit(features, patches, np.arange(n_patches), 0, words)
    scores = found.predict(features, np.arange(30, 60)).scores
    assert ((scores > 0) & (scores < 1)).all()
    assert found.about()
