"""A saved model predicts what the run predicted, and refuses what it was not made for."""

import json

import numpy as np
import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models import bundle
from histoclip_lib.models.attention import attention_maps
from histoclip_lib.models.bundle import (
    CONFIG,
    fit_ood,
    load_model,
    ood_scores,
)
from histoclip_lib.models.training import predict


def test_saved_model_predicts_what_the_run_predicted_from_cached_features(saved_model, lite0):
    folder, patches, features, head = saved_model
    found = load_model(folder, device="cpu").predict([patches.image(i) for i in range(5)], batch_size=2)
    index = np.arange(5)
    of_run = predict(head, features, "patch", index, lite0.device)
    np.testing.assert_allclose(found.probabilities, of_run.scores, atol=1e-4)
    np.testing.assert_array_equal(found.decisions, of_run.decisions)
    maps = attention_maps(head, FeatureReader(features.tokens, lite0.device), index)
    np.testing.assert_allclose(found.attention, maps, atol=1e-3)


def test_glass_lies_outside_the_distribution_and_training_patches_inside(saved_model):
    folder, patches, _, _ = saved_model
    model = load_model(folder, device="cpu")
    glass = np.full((224, 224, 3), 240, dtype=np.uint8)
    ood = model.predict([patches.image(0), patches.image(1), glass]).ood
    assert ood[0] < model.config.ood_threshold and ood[1] < model.config.ood_threshold < ood[2]


def test_distance_is_the_mean_cosine_distance_to_the_nearest_training_patches():
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(0)
    train, new = generator.standard_normal((40, 8)), generator.standard_normal((6, 8))
    reference, threshold = fit_ood(train, [(np.arange(20), np.arange(20, 40)), (np.arange(20, 40), np.arange(20))], 0)
    expected, _ = NearestNeighbors(n_neighbors=5, metric="cosine").fit(train).kneighbors(new)
    np.testing.assert_allclose(ood_scores(new, reference), expected.mean(axis=1), atol=1e-6)
    held_out = [
        NearestNeighbors(n_neighbors=5, metric="cosine").fit(train[a]).kneighbors(train[b])[0].mean(axis=1)
        for a, b in ((slice(20), slice(20, 40)), (slice(20, 40), slice(20)))
    ]
    assert threshold == pytest.approx(np.quantile(np.concatenate(held_out), 0.99), abs=1e-6)


def test_as_many_patches_like_those_of_training_are_flagged_however_few_are_kept(monkeypatch):
    monkeypatch.setattr(bundle, "MOST_REFERENCES", 100)
    generator = np.random.default_rng(0)
    drawn = generator.standard_normal((400, 8))[generator.integers(0, 400, 5000)]
    drawn += 0.3 * generator.standard_normal(drawn.shape)
    train, new, fold = drawn[:2000], drawn[2000:], np.arange(2000) % 5
    folds = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(5)]
    reference, threshold = fit_ood(train, folds, 0)
    assert len(reference) == 100
    assert 0 < (ood_scores(new, reference) > threshold).mean() < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_digest": "0"}, "other weights"),
        ({"future": 1}, "unknown fields future"),
        ({"format": 2}, "format 2"),
        ({"format": "new"}, "format new"),
        ({"digests": []}, "is incomplete"),
        ({"digests": {"model.safetensors": "0", "reference.safetensors": "0"}}, "its digest differs"),
        ({"classes": ["a"]}, "do not fit together"),
    ],
)
def test_model_is_refused_where_it_is_not_what_it_says(saved_model, tmp_path, change, message):
    folder, patches, _, _ = saved_model
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / CONFIG).write_text(json.dumps(json.loads((copy / CONFIG).read_text()) | change))
    with pytest.raises(HistoCLIPError, match=message):
        load_model(copy, device="cpu").predict([patches.image(0)])


def test_no_image_is_an_error(saved_model):
    with pytest.raises(HistoCLIPError, match="none were given"):
        load_model(saved_model[0], device="cpu").predict([])
