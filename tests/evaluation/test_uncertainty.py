"""Intervals and tests: equal to scikit-learn and scipy on each sample, with nominal coverage and error rates."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test, rankdata
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, f1_score, log_loss, roc_auc_score

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation import uncertainty
from histoclip_lib.evaluation.uncertainty import (
    bootstrap_interval,
    compare,
    draw_units,
    evaluate,
    holm,
    mean_gap_p,
    proper_scores,
    resampled_metrics,
)


def ranked(labels, noise, seed, level=0.0):
    """A method whose scores hold the labels, noise of its own, and a `level` (B, N) that patches may share."""
    scores = labels + level + noise * np.random.default_rng(seed).normal(size=labels.shape)
    return Predictions(scores, scores > 0.5)


@st.composite
def cases(draw):
    """Labels, predictions with ties, and units; some classes may be always or never present."""
    n_patches, n_classes = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    prevalence = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    labels = (random.random((n_patches, n_classes)) < prevalence).astype(np.uint8)
    scores = np.round(random.normal(size=labels.shape), draw(st.sampled_from([0, 3])))
    return labels, Predictions(scores, random.random(labels.shape) < 0.5), random.integers(0, 6, n_patches)


# Draws


def test_every_sample_draws_as_many_units_as_there_are_with_all_their_patches():
    units = np.array(["b", "a", "b", "c", "c"])
    draws = draw_units(units, 50, 0)
    assert draws.counts.shape == (50, 3)
    assert (draws.counts.sum(axis=1) == 3).all()
    assert (draws.unit[units == "b"] == draws.unit[0]).all()
    assert len(np.unique(draws.unit)) == 3


def test_the_draws_depend_on_the_seed_alone():
    units = np.arange(50) % 7
    assert (draw_units(units, 20, 4).counts == draw_units(units, 20, 4).counts).all()
    assert (draw_units(units, 20, 4).counts != draw_units(units, 20, 5).counts).any()
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values, units, seed=4) == bootstrap_interval(values, units, seed=4)
    assert bootstrap_interval(values, units, seed=4) != bootstrap_interval(values, units, seed=5)


# The interval of a mean


def test_interval_of_identical_values_is_a_point():
    assert bootstrap_interval(np.full(20, 0.3), np.arange(20)) == pytest.approx((0.3, 0.3))


def test_interval_equals_the_normal_one_for_many_independent_patches():
    values = np.random.default_rng(0).random(4000)
    low, high = bootstrap_interval(values, np.arange(4000), 2000, 1)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_interval_resamples_groups_with_their_sizes():
    """Against a plain loop that draws groups and pools their patches."""
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(8), [1, 2, 3, 4, 5, 6, 7, 30])
    values = random.random(len(groups)) + groups / 8
    means = []
    for _ in range(4000):
        drawn = random.integers(0, 8, 8)
        means.append(np.concatenate([values[groups == g] for g in drawn]).mean())
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values, groups, 4000, 0) == pytest.approx(expected, abs=0.03)


# Every metric in every sample


@given(cases())
@settings(max_examples=20)
def test_metrics_of_each_sample_equal_scikit_learn(case):
    labels, predictions, units = case
    decisions, n_classes = predictions.decisions.astype(int), labels.shape[1]
    draws = draw_units(units, 4, 1)
    found = resampled_metrics(labels, predictions, draws)
    for r in range(4):
        weight = draws.counts[r, draws.unit]

        def per_class(metric, against, weight=weight):
            return [metric(labels[:, k], against[:, k], sample_weight=weight) for k in range(n_classes)]

        positives, total = weight @ labels, weight.sum()
        f1 = [f1_score(labels[:, k], decisions[:, k], sample_weight=weight, zero_division=0) for k in range(n_classes)]
        flat = f1_score(labels.ravel(), decisions.ravel(), sample_weight=np.repeat(weight, n_classes), zero_division=0)
        exact = accuracy_score((labels == decisions).all(axis=1), np.ones(len(labels)), sample_weight=weight)
        assert found["accuracy"][r] == pytest.approx(per_class(accuracy_score, decisions))
        assert found["mAcc"][r] == pytest.approx(np.mean(per_class(accuracy_score, decisions)))
        assert found["macro_f1"][r] == pytest.approx(np.mean(f1))
        assert found["micro_f1"][r] == pytest.approx(flat)
        assert found["exact_match"][r] == pytest.approx(exact)
        for key, metric, defined in (
            ("mAP", average_precision_score, positives > 0),
            ("auroc", roc_auc_score, (positives > 0) & (positives < total)),
        ):
            values = [
                metric(labels[:, k], predictions.scores[:, k], sample_weight=weight) for k in np.flatnonzero(defined)
            ]
            assert found[key][r] == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True)
            if key == "mAP":
                assert found["ap"][r, defined] == pytest.approx(values)
                assert np.isnan(found["ap"][r, ~defined]).all()


def test_block_size_does_not_change_results(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 2, (60, 3), dtype=np.uint8)
    one, other, units = ranked(labels, 1, 1), ranked(labels, 2, 2), np.arange(60) // 4
    draws = draw_units(units, 50, 0)
    whole, compared = resampled_metrics(labels, one, draws), compare(labels, one, other, units, 99, 0)
    monkeypatch.setattr(uncertainty, "BLOCK_CELLS", 7 * 60)
    by_seven = resampled_metrics(labels, one, draws)
    for key, values in whole.items():
        assert by_seven[key] == pytest.approx(values, nan_ok=True)
    again = compare(labels, one, other, units, 99, 0)
    assert vars(again.macc) == pytest.approx(vars(compared.macc))
    assert vars(again.map) == pytest.approx(vars(compared.map))


# What metrics.json holds of a method


def test_intervals_stand_beside_their_metrics():
    random = np.random.default_rng(0)
    labels, units = random.integers(0, 2, (200, 3), dtype=np.uint8), np.arange(200) // 5
    scored = evaluate(labels, ranked(labels, 0.8, 1), ["a", "b", "c"], units, 400, 0)
    for key in uncertainty.HEADLINES:
        low, high = scored[f"{key}_ci"]
        assert 0 < low < scored[key] < high < 1, key
    right = labels == ranked(labels, 0.8, 1).decisions
    for k, values in enumerate(scored["per_class"].values()):
        for key in ("accuracy", "ap"):
            assert 0 < values[f"{key}_ci"][0] < values[key] < values[f"{key}_ci"][1] < 1
        assert values["accuracy_ci"] == pytest.approx(bootstrap_interval(right[:, k], units, 400, 0))
    correct = right.mean(axis=1)
    assert scored["mAcc_ci"] == pytest.approx(bootstrap_interval(correct, units, 400, 0))
    assert json.loads(json.dumps(scored, allow_nan=False)) == scored


@pytest.mark.parametrize("present", [0, 1])
def test_what_is_undefined_has_no_interval(present):
    labels = np.full((20, 2), present)
    scored = evaluate(labels, ranked(labels, 1, 0), ["a", "b"], np.arange(20), 30, 0)
    json.dumps(scored, allow_nan=False)
    assert scored["auroc_ci"] is None
    assert (scored["mAP_ci"] is None) == (scored["per_class"]["a"]["ap_ci"] is None) == (present == 0)
    assert scored["mAcc_ci"] is not None


def test_a_rare_class_counts_in_the_samples_that_hold_it():
    """One positive patch in forty is left out of more than a third of the samples."""
    labels = np.zeros((40, 2), dtype=int)
    labels[0, 0], labels[::2, 1] = 1, 1
    scored = evaluate(labels, ranked(labels, 0.5, 0), ["rare", "common"], np.arange(40), 200, 0)
    assert scored["per_class"]["rare"]["ap_ci"][0] > 0
    assert np.isnan(resampled_metrics(labels, ranked(labels, 0.5, 0), draw_units(np.arange(40), 200, 0))["ap"]).any()


# Coverage


def test_interval_has_nominal_coverage_and_less_when_patches_are_drawn():
    """Groups with their own level, 300 data sets: 95% intervals should hold the true mean in about 95 of 100."""
    random, by_group, by_patch = np.random.default_rng(0), 0, 0
    groups = np.repeat(np.arange(40), 10)
    for seed in range(300):
        values = (random.normal(size=(40, 1)) + random.normal(size=(40, 10))).ravel()
        low, high = bootstrap_interval(values, groups, 400, seed)
        by_group += low <= 0 <= high
        if seed < 100:
            low, high = bootstrap_interval(values, np.arange(400), 200, seed)
            by_patch += low <= 0 <= high
    assert 0.90 < by_group / 300 < 0.98
    assert by_patch / 100 < 0.70


def patients(n, per_patient, random, noise=1.0):
    """Labels and scores of n patients, each with its own prevalence and its own shift of the scores, one class."""
    prevalence = np.repeat(random.beta(1, 2, n), per_patient)
    labels = (random.random(n * per_patient) < prevalence).astype(int)[:, None]
    shift = np.repeat(random.normal(size=n), per_patient)[:, None]
    scores = 1.5 * labels + shift + noise * random.normal(size=labels.shape)
    return labels, Predictions(scores, scores > 0.75)


def test_intervals_of_map_and_f1_cover_the_value_in_a_large_population():
    random = np.random.default_rng(0)
    labels, method = patients(100_000, 4, random)
    truth = {
        "mAP": average_precision_score(labels, method.scores),
        "macro_f1": f1_score(labels, method.decisions),
        "auroc": roc_auc_score(labels, method.scores),
    }
    by_group, by_patch = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    groups = np.repeat(np.arange(60), 10)
    for seed in range(120):
        labels, method = patients(60, 10, random)
        for units, hits in ((groups, by_group), (np.arange(600), by_patch)):
            found = resampled_metrics(labels, method, draw_units(units, 200, seed))
            for key, value in truth.items():
                low, high = np.nanquantile(found[key], [0.025, 0.975])
                hits[key] += low <= value <= high
    for key in truth:
        assert 0.89 < by_group[key] / 120 < 0.985, key
        assert by_patch[key] < by_group[key] - 10, key
    assert by_patch["mAP"] / 120 < 0.80


# Two methods


def few_units(seed=0, n=8):
    labels = np.random.default_rng(seed).integers(0, 2, (30, 2), dtype=np.uint8)
    return labels, ranked(labels, 0.7, seed + 1), ranked(labels, 1.2, seed + 2), np.arange(30) % n


@pytest.mark.parametrize("seed", range(4))
def test_with_few_units_the_p_of_macc_equals_the_exact_p_of_scipy(seed):
    labels, one, other, units = few_units(seed)
    sums = [
        np.bincount(units, weights=(labels == method.decisions).mean(axis=1)) for method in (one, other)
    ]  # units differ in size: their sums, not their means, make up mAcc
    expected = permutation_test(sums, lambda x, y: np.sum(x - y), permutation_type="samples", n_resamples=np.inf)
    assert compare(labels, one, other, units, 50, 0).macc.p == pytest.approx(expected.pvalue)


def test_with_few_units_the_p_of_map_is_that_of_swapping_ranks_by_hand():
    labels, one, other, units = few_units(n=6)
    ranks = [rankdata(method.scores, axis=0) for method in (one, other)]
    gaps = []
    for pattern in range(2**6):
        swap = (pattern >> units & 1).astype(bool)[:, None]
        mine, theirs = np.where(swap, ranks[1], ranks[0]), np.where(swap, ranks[0], ranks[1])
        gaps.append(
            average_precision_score(labels, mine, average="macro")
            - average_precision_score(labels, theirs, average="macro")
        )
    found = compare(labels, one, other, units, 50, 0).map
    assert found.value == pytest.approx(gaps[0])
    assert found.p == pytest.approx(np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-12))
    assert found.p < 1


def test_drawn_permutations_come_close_to_all_of_them(monkeypatch):
    labels, one, other, units = few_units(n=10)
    exact = compare(labels, one, other, units, 50, 0)
    monkeypatch.setattr(uncertainty, "EXACT_UNITS", 0)
    drawn = compare(labels, one, other, units, 4000, 0)
    assert drawn.macc.p == pytest.approx(exact.macc.p, abs=0.03)
    assert drawn.map.p == pytest.approx(exact.map.p, abs=0.04)
    assert drawn.macc.p != exact.macc.p


def test_difference_changes_sign_with_the_order_of_the_methods():
    labels, one, other, _ = few_units()
    units = np.arange(30)
    forth, back = compare(labels, one, other, units, 300, 0), compare(labels, other, one, units, 300, 0)
    classes = ["a", "b"]
    scored = [evaluate(labels, method, classes, units, 10, 0) for method in (one, other)]
    for gap, reverse, key in ((forth.macc, back.macc, "mAcc"), (forth.map, back.map, "mAP")):
        assert gap.value == pytest.approx(scored[0][key] - scored[1][key])
        assert gap.low <= gap.value <= gap.high
        assert (reverse.value, reverse.low, reverse.high) == pytest.approx((-gap.value, -gap.high, -gap.low))
        assert reverse.p == gap.p


def test_the_interval_of_a_difference_pairs_the_samples():
    """Two methods that differ a little on hard and easy patients alike: paired, the difference is significant."""
    labels = np.random.default_rng(0).integers(0, 2, (400, 2), dtype=np.uint8)
    units = np.arange(400) // 10
    hard = np.repeat(np.random.default_rng(1).normal(size=40), 10)[:, None] * (1 - 2.0 * labels)
    one = ranked(labels, 0.1, 2, hard)
    worse = Predictions(one.scores - 0.3 * (2.0 * labels - 1), one.decisions)
    gap = compare(labels, one, worse, units, 300, 0).map
    alone = evaluate(labels, one, ["a", "b"], units, 300, 0)["mAP_ci"]
    assert gap.low > 0
    assert gap.high - gap.low < (alone[1] - alone[0]) / 2
    draws = draw_units(units, 300, 0)
    by_hand = resampled_metrics(labels, one, draws)["mAP"] - resampled_metrics(labels, worse, draws)["mAP"]
    assert (gap.low, gap.high) == pytest.approx(np.quantile(by_hand, [0.025, 0.975]))


def test_scale_of_the_scores_does_not_matter():
    labels, one, other, _ = few_units()
    stretched = Predictions(1000 * np.exp(one.scores), one.decisions)
    units = np.arange(30)
    assert compare(labels, stretched, other, units, 100, 0) == compare(labels, one, other, units, 100, 0)


def test_a_method_is_not_different_from_itself():
    labels, one, _, _ = few_units()
    for gap in vars(compare(labels, one, one, np.arange(30), 100, 0)).values():
        assert (gap.value, gap.low, gap.high, gap.p) == (0, 0, 0, 1)


def test_absent_classes_are_left_out_of_the_difference():
    labels, one, other, units = few_units()
    wide = [Predictions(np.hstack([r.scores, r.scores]), np.hstack([r.decisions, r.decisions])) for r in (one, other)]
    with_absent = compare(np.hstack([labels, np.zeros_like(labels)]), *wide, units, 100, 0)
    assert with_absent.map == compare(labels, one, other, units, 100, 0).map
    nothing = compare(np.zeros_like(labels), one, other, units, 100, 0)
    assert np.isnan([nothing.map.value, nothing.map.low, nothing.map.high, nothing.map.p]).all()
    assert 0 < nothing.macc.p <= 1


def test_constant_scores_can_be_compared():
    labels = np.random.default_rng(0).integers(0, 2, (100, 3), dtype=np.uint8)
    constant = Predictions(np.zeros(labels.shape), np.zeros(labels.shape, bool))
    gap = compare(labels, ranked(labels, 0.5, 1), constant, np.arange(100), 200, 0).map
    assert gap.value == pytest.approx(average_precision_score(labels, ranked(labels, 0.5, 1).scores) - labels.mean())
    assert gap.p == pytest.approx(1 / 201)


# Error rate of the test


def with_its_own_errors(labels, noise, random):
    """Twenty patients: each method finds some of them hard, whichever."""
    hard = np.repeat(random.normal(0, 0.5, (20, 1)), len(labels) // 20, axis=0)
    return ranked(labels, noise, random.integers(2**32), (1 - 2.0 * labels) * hard)


def test_p_of_macc_is_uniform_under_the_null_if_whole_groups_are_swapped():
    random, by_group, by_patch = np.random.default_rng(1), [], []
    for seed in range(400):
        labels = (random.random((200, 1)) < 0.4).astype(int)
        one, other = (with_its_own_errors(labels, 0.4, random).decisions for _ in range(2))
        gaps = (1.0 * (labels == one)) - (labels == other)
        by_group.append(mean_gap_p(gaps, np.arange(200) // 10, seed)[0])
        if seed % 4 == 0:
            by_patch.append(mean_gap_p(gaps, np.arange(200), seed)[0])
    by_group, by_patch = np.array(by_group), np.array(by_patch)
    assert 0.025 < (by_group <= 0.05).mean() < 0.075
    assert 0.42 < (by_group <= 0.5).mean() < 0.54  # ties make it a little too large
    assert (by_patch <= 0.05).mean() > 0.15


def test_p_of_map_is_uniform_under_the_null_and_small_otherwise():
    random, alike, different = np.random.default_rng(1), [], []
    for seed in range(120):
        labels = (random.random((200, 1)) < 0.4).astype(int)
        one, other, blurred = (with_its_own_errors(labels, noise, random) for noise in (0.4, 0.4, 30))
        alike.append(compare(labels, one, other, np.arange(200) // 10, 99, seed).map.p)
        different.append(compare(labels, one, blurred, np.arange(200) // 10, 99, seed))
    assert 0.01 < np.mean(np.array(alike) <= 0.05) < 0.10
    assert 0.40 < np.mean(np.array(alike) <= 0.5) < 0.60
    for key in ("macc", "map"):
        assert np.mean([getattr(comparison, key).p <= 0.05 for comparison in different]) > 0.9, key


def test_many_gaps_are_tested_like_each_alone():
    gaps = np.random.default_rng(0).normal(0.1, 1, (60, 4))
    units = np.arange(60) // 3
    together = mean_gap_p(gaps, units, 0)
    assert together.tolist() == [mean_gap_p(gaps[:, [k]], units, 0)[0] for k in range(4)]
    assert (together >= 1 / (1 + uncertainty.PERMUTATIONS)).all()


# Holm


def test_holm_by_hand():
    assert holm(np.array([0.04, 0.01, 0.03, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.9, 0.6])) == pytest.approx([1, 1])
    assert holm(np.array([np.nan, 0.01, 0.03])) == pytest.approx([np.nan, 0.02, 0.03], nan_ok=True)
    assert holm(np.array([])).shape == (0,)


@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=20))
@settings(max_examples=60)
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(values):
    p = np.array(values)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(len(p) * p, 1)).all()
    assert adjusted[p.argmin()] == pytest.approx(min(len(p) * p.min(), 1))
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


# What the intervals resample


def grouped_patches(n, groups=True):
    units = np.array([f"patient {index // 4}" for index in range(n)]) if groups else None
    return PatchDataset("made", ["a"], [f"{k}.png" for k in range(n)], np.zeros((n, 1), np.uint8), None, groups=units)


@pytest.mark.parametrize(
    ("n_groups", "says", "says_not"),
    [
        (1, "only 1 group: they are probably too narrow", "over the"),
        (4, "only 4 groups: they are probably too narrow", "over the"),
        (5, "below 0.062.", "patches"),
        (20, "too narrow", "below"),
        (40, "over the 40 groups", "too narrow"),
    ],
)
def test_groups_are_resampled_where_there_are_enough(n_groups, says, says_not):
    """One group alone would give an interval without width."""
    patches, index = grouped_patches(160), np.arange(4 * n_groups)
    units = uncertainty.bootstrap_units(patches, index)
    assert units.tolist() == (patches.groups[index] if n_groups >= 5 else index).tolist()
    note = uncertainty.interval_note(patches, index)
    assert says in note
    assert says_not not in note


def test_patches_are_resampled_where_groups_are_not_known():
    patches, index = grouped_patches(60, groups=False), np.arange(3, 60, 5)
    assert uncertainty.bootstrap_units(patches, index).tolist() == index.tolist()
    assert "groups are not known" in uncertainty.interval_note(patches, index)


def test_proper_scores_equal_scikit_learn_with_the_interval_of_a_mean():
    random = np.random.default_rng(0)
    labels, probabilities, units = random.integers(0, 2, (40, 3)), random.random((40, 3)), np.arange(40) // 4
    found = proper_scores(labels, probabilities, units, 200, 3)
    assert found["cross_entropy"] == pytest.approx(log_loss(labels.ravel(), probabilities.ravel()))
    assert found["brier"] == pytest.approx(brier_score_loss(labels.ravel(), probabilities.ravel()))
    squares = ((probabilities - labels) ** 2).mean(axis=1)
    assert found["brier_ci"] == pytest.approx(bootstrap_interval(squares, units, 200, 3))
