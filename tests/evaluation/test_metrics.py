import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    hamming_loss,
    roc_auc_score,
)

from histoclip_lib.common.predictions import Predictions, from_probabilities, mean_accuracy
from histoclip_lib.evaluation.metrics import auroc, average_precision, cut_counts, point_metrics, ranking_note


@st.composite
def labelled(draw):
    """Labels, scores and decisions of a few patches; some classes may be always or never present."""
    n_patches, n_classes = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    seed, prevalence = draw(st.integers(0, 10**6)), draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    generator = np.random.default_rng(seed)
    labels = (generator.random((n_patches, n_classes)) < prevalence).astype(np.uint8)
    logits = np.round(generator.normal(size=labels.shape), draw(st.sampled_from([0, 3])))  # ties too
    return labels, logits


@given(labelled())
@settings(max_examples=30)
def test_point_metrics_equal_scikit_learn(case):
    labels, logits = case
    predictions, classes = from_probabilities(expit(logits)), [f"c{k}" for k in range(labels.shape[1])]
    found = point_metrics(labels, predictions, classes)
    assert found["mAcc"] == pytest.approx(1 - hamming_loss(labels, predictions.decisions))
    assert found["exact_match"] == pytest.approx(accuracy_score(labels, predictions.decisions))
    by_class = [f1_score(*pair, zero_division=0) for pair in zip(labels.T, predictions.decisions.T, strict=True)]
    assert found["macro_f1"] == pytest.approx(np.mean(by_class))
    if len(classes) > 1:  # scikit-learn takes a single column for a question of two classes
        for average in ("macro", "micro"):
            expected = f1_score(labels, predictions.decisions, average=average, zero_division=0)
            assert found[f"{average}_f1"] == pytest.approx(expected)
    with_positive = [k for k in range(labels.shape[1]) if labels[:, k].any()]
    with_both = [k for k in with_positive if not labels[:, k].all()]
    for key, usable, reference in (
        ("mAP", with_positive, average_precision_score),
        ("auroc", with_both, roc_auc_score),
    ):
        if usable:
            expected = np.mean([reference(labels[:, k], predictions.scores[:, k]) for k in usable])
            assert found[key] == pytest.approx(expected)
        else:
            assert found[key] is None
    assert set(found["per_class"]) == set(classes)


def test_mean_accuracy_is_the_mean_over_classes():
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 1]])
    decisions = np.array([[1, 0], [1, 1], [1, 1], [1, 1]], dtype=bool)
    assert mean_accuracy(labels, decisions) == pytest.approx((3 / 4 + 2 / 4) / 2)


def test_decision_is_sigma_at_least_one_half():
    predictions = from_probabilities(np.array([[0.0, 0.499, 0.5, 0.501, 1.0]]))
    assert predictions.decisions.tolist() == [[False, False, True, True, True]]


WEIGHTED = {"average precision": (average_precision, average_precision_score), "AUROC": (auroc, roc_auc_score)}


@pytest.mark.parametrize("metric", WEIGHTED)
@given(labelled())
@settings(max_examples=30)
def test_ranking_of_many_weightings_equals_scikit_learn_one_by_one(metric, case):
    """With ties, zero weights, and weightings that leave no positive or no negative patch."""
    labels, scores = case
    ours, reference = WEIGHTED[metric]
    weights = np.random.default_rng(labels.size).integers(0, 4, (6, len(labels)), dtype=np.int32)
    weights[0] = 1
    for k in range(labels.shape[1]):
        found = ours(*cut_counts(labels[:, k], scores[:, k], weights))
        for value, weight in zip(found, weights, strict=True):
            positives, negatives = weight @ labels[:, k], weight @ (1 - labels[:, k])
            if positives and (negatives or metric == "average precision"):
                expected = reference(labels[:, k], scores[:, k], sample_weight=weight)
                assert value == pytest.approx(expected, abs=1e-12)
            else:
                assert np.isnan(value)


def test_large_counts_do_not_overflow():
    """Pairs of a positive and a negative patch outnumber what 32 bits hold."""
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.5, 0.5, 0.1])
    counts = cut_counts(labels, scores, np.full((1, 4), 10**8, dtype=np.int32))
    assert auroc(*counts)[0] == pytest.approx(roc_auc_score(labels, scores))
    assert average_precision(*counts)[0] == pytest.approx(average_precision_score(labels, scores))


def test_classes_ranked_below_chance_are_named_with_the_strategies_that_do_so():
    truth = np.array([[1, 1], [0, 0], [1, 1], [0, 0]])
    reversed_second = Predictions(np.stack([truth[:, 0], -truth[:, 1]], axis=1).astype(float), truth.astype(bool))
    right = Predictions(truth.astype(float), truth.astype(bool))
    said = ranking_note({"baseline": reversed_second, "top_k": right}, truth, ["tumor", "stroma"])
    assert "stroma" in said and "(Baseline 0.00)" in said
    assert "tumor" not in said
    assert "No strategy ranks" in ranking_note({"top_k": right}, truth, ["tumor", "stroma"])
