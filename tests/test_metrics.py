import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    hamming_loss,
    roc_auc_score,
)

from histoclip_lib.metrics import (
    bootstrap_interval,
    confusion,
    evaluate,
    from_probabilities,
    mean_accuracy,
    predicted_when_missed,
)


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
@settings(max_examples=60, deadline=None)
def test_metrics_equal_scikit_learn(case):
    labels, logits = case
    predictions, classes = from_probabilities(expit(logits)), [f"c{k}" for k in range(labels.shape[1])]
    row = evaluate(labels, predictions, classes, np.arange(len(labels)), 50, 0)
    assert row["mAcc"] == pytest.approx(1 - hamming_loss(labels, predictions.decisions))
    assert row["exact_match"] == pytest.approx(accuracy_score(labels, predictions.decisions))
    for average in ("macro", "micro"):
        expected = f1_score(labels, predictions.decisions, average=average, zero_division=0)
        assert row[f"{average}_f1"] == pytest.approx(expected)
    with_positive = [k for k in range(labels.shape[1]) if labels[:, k].any()]
    with_both = [k for k in with_positive if not labels[:, k].all()]
    for key, usable, reference in (
        ("mAP", with_positive, average_precision_score),
        ("auroc", with_both, roc_auc_score),
    ):
        if usable:
            expected = np.mean([reference(labels[:, k], predictions.scores[:, k]) for k in usable])
            assert row[key] == pytest.approx(expected)
        else:
            assert row[key] is None
    low, high = row["mAcc_ci"]
    assert 0 <= low <= high <= 1
    assert set(row["per_class"]) == set(classes)


def test_mean_accuracy_is_the_mean_over_classes():
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 1]])
    decisions = np.array([[1, 0], [1, 1], [1, 1], [1, 1]], dtype=bool)
    assert mean_accuracy(labels, decisions) == pytest.approx((3 / 4 + 2 / 4) / 2)


def test_decision_is_sigma_at_least_one_half():
    predictions = from_probabilities(np.array([[0.0, 0.499, 0.5, 0.501, 1.0]]))
    assert predictions.decisions.tolist() == [[False, False, True, True, True]]


def test_interval_of_identical_values_is_a_point():
    assert bootstrap_interval(np.full(20, 0.3), np.arange(20)) == pytest.approx((0.3, 0.3))


def test_interval_equals_the_normal_one_for_many_independent_patches():
    values = np.random.default_rng(0).random(4000)
    low, high = bootstrap_interval(values, np.arange(4000), 2000, 1)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_interval_widens_when_patches_of_a_group_are_copies():
    values, groups = np.repeat(np.random.default_rng(0).random(30), 20), np.repeat(np.arange(30), 20)
    by_group, by_patch = bootstrap_interval(values, groups), bootstrap_interval(values, np.arange(600))
    assert np.ptp(by_group) > 3 * np.ptp(by_patch)


def test_interval_resamples_groups_with_their_sizes():
    """Against a plain loop that draws groups and pools their patches."""
    generator = np.random.default_rng(3)
    groups = np.repeat(np.arange(8), [1, 2, 3, 4, 5, 6, 7, 30])
    values = generator.random(len(groups)) + groups / 8
    means = []
    for _ in range(4000):
        drawn = generator.integers(0, 8, 8)
        means.append(np.concatenate([values[groups == g] for g in drawn]).mean())
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values, groups, 4000, 0) == pytest.approx(expected, abs=0.03)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Groups with their own level: 95 % intervals should hold the true mean in about 95 of 100 data sets."""
    generator, covered = np.random.default_rng(0), 0
    for seed in range(300):
        levels = generator.normal(size=40)
        values = (levels[:, None] + generator.normal(size=(40, 10))).ravel()
        low, high = bootstrap_interval(values, np.repeat(np.arange(40), 10), 400, seed)
        covered += low <= 0 <= high
    assert 0.90 < covered / 300 < 0.98


def test_interval_is_the_same_for_the_same_seed():
    values, groups = np.random.default_rng(0).random(50), np.arange(50) % 7
    assert bootstrap_interval(values, groups, seed=4) == bootstrap_interval(values, groups, seed=4)
    assert bootstrap_interval(values, groups, seed=4) != bootstrap_interval(values, groups, seed=5)


@given(labelled())
@settings(max_examples=40, deadline=None)
def test_confusion_equals_scikit_learn(case):
    labels, logits = case
    expected = [confusion_matrix(labels[:, k], logits[:, k] >= 0, labels=[0, 1]) for k in range(labels.shape[1])]
    assert np.array_equal(confusion(labels, logits >= 0), expected)


def test_predicted_when_missed_counts_by_hand():
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    decisions = np.array([[0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)
    rates, misses = predicted_when_missed(labels, decisions)
    assert misses.tolist() == [2, 0, 0]
    assert rates[0].tolist() == [0, 0.5, 0, 0.5]  # class 0 was missed twice: once for class 1, once for nothing
    assert np.isnan(rates[1:]).all()


@given(labelled())
@settings(max_examples=40, deadline=None)
def test_predicted_when_missed_equals_a_plain_loop(case):
    labels, logits = case
    decisions = logits >= 0
    rates, misses = predicted_when_missed(labels, decisions)
    for i in range(labels.shape[1]):
        rows = [b for b in range(len(labels)) if labels[b, i] and not decisions[b, i]]
        assert misses[i] == len(rows)
        for j in range(labels.shape[1]):
            if rows:
                expected = np.mean([decisions[b, j] and not labels[b, j] for b in rows])
                assert rates[i, j] == pytest.approx(expected)
        if rows:
            nothing = np.mean([not any(decisions[b] & (labels[b] == 0)) for b in rows])
            assert rates[i, -1] == pytest.approx(nothing)
