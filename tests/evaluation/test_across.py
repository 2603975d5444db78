"""Pooling over data sets: a published meta-analysis, published quantiles, and scipy's own tests."""

import numpy as np
import pytest
from scipy import stats

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.evaluation.across import (
    across_note,
    across_table,
    cliques,
    gaps_across,
    random_effects,
    rank_methods,
)
from histoclip_lib.evaluation.artifacts import ValidationPredictions

PROBE = "linear_probe"

BCG = np.array(  # 13 trials of BCG vaccine: cases and others, vaccinated and not (Colditz et al. 1994)
    [
        (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
        (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232),
        (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
    ]
)  # fmt: skip


def test_random_effects_reproduce_the_meta_analysis_of_bcg():
    a, b, c, d = BCG.T
    values, variances = np.log(a / (a + b)) - np.log(c / (c + d)), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    found = random_effects(values, variances)
    assert found.between == pytest.approx(0.3088, abs=1e-4)
    assert found.value == pytest.approx(-0.7141, abs=1e-4)
    weights = 1 / (variances + found.between)
    error = np.sqrt((weights * (values - found.value) ** 2).sum() / 12 / weights.sum())
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 12) * error)


def test_equal_variances_without_excess_give_the_t_test_s_interval_or_the_wider_one():
    values = np.array([0.010, 0.014, 0.006, 0.011])
    found = random_effects(values, np.full(4, 1e-8))
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-3)
    wide = random_effects(values, np.full(4, 1e-2))
    assert wide.between == 0
    assert wide.high - wide.value == pytest.approx(stats.t.ppf(0.975, 3) * 0.1 / 2)


def test_a_data_set_on_which_two_methods_decide_alike_does_not_outweigh_the_others():
    found = random_effects(np.array([0.0, 0.01, -0.005]), np.array([0.0, 4e-4, 1e-4]))
    assert found == random_effects(np.array([0.0, 0.01, -0.005]), np.array([1e-4, 4e-4, 1e-4]))
    assert found.high - found.low > 0.01
    assert random_effects(np.zeros(2), np.zeros(2)).high == pytest.approx(0, abs=1e-4)


def test_intervals_cover_the_mean_of_data_sets_that_differ():
    random, hits = np.random.default_rng(0), 0
    for _ in range(400):
        errors = random.uniform(0.005, 0.03, 5)
        values = 0.01 + random.normal(0, 0.02, 5) + random.normal(0, errors)
        found = random_effects(values, errors**2)
        hits += found.low <= 0.01 <= found.high
    assert hits / 400 == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("n_methods", "quantile"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_differences_are_demsar_s(n_methods, quantile):
    random = np.random.default_rng(0)
    ranks = rank_methods({str(k): random.random(14) for k in range(n_methods)})
    assert ranks.critical == pytest.approx(quantile * np.sqrt(n_methods * (n_methods + 1) / (6 * 14)), rel=1e-3)


def test_ranks_are_those_of_friedman_s_test_and_cliques_are_within_the_critical_difference():
    random = np.random.default_rng(1)
    scores = {name: random.random(12) + gain for name, gain in (("a", 0), ("b", 0.1), ("c", 2), ("d", 2.1))}
    ranks = rank_methods(scores)
    assert set(ranks.methods[:2]) == {"c", "d"}
    assert ranks.mean.sum() == pytest.approx(10)
    assert ranks.p == pytest.approx(stats.friedmanchisquare(*scores.values()).pvalue)
    assert cliques(ranks) == [(0, 1), (2, 3)]


def test_the_note_and_the_table_say_what_is_pooled():
    runs = {}
    for seed, name in enumerate(("one", "two", "three")):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 2, (80, 2)).astype(np.uint8)
        scores = {m: labels + s * random.normal(size=labels.shape) for m, s in (("histoclip_patch", 0.4), (PROBE, 1.0))}
        found = {m: Predictions(values, values > 0.5) for m, values in scores.items()}
        runs[name] = ValidationPredictions(np.arange(80).astype(str), ["a", "b"], labels, None, found)
    across = {metric: gaps_across(runs, PROBE, metric, dict.fromkeys(runs, 1), 200) for metric in ("mAcc", "mAP")}
    one = runs["two"]
    ours, probe = ((one.labels == one.methods[m].decisions).mean() for m in ("histoclip_patch", PROBE))
    assert across["mAcc"].gaps[1].value == pytest.approx(ours - probe)
    folded = gaps_across(runs, PROBE, "mAcc", dict.fromkeys(runs, 5), 200)
    single, wider = across["mAcc"].gaps[1], folded.gaps[1]
    assert wider.high - wider.low == pytest.approx(1.5 * (single.high - single.low))  # sqrt(1 + 5 / 4)
    table = across_table(across)
    assert list(table.index) == ["one", "two", "three", "mean over 3 data sets"]
    assert table.loc["two", "mAcc"].startswith(f"{ours - probe:+.3f} (")
    assert "in mAcc HistoCLIP with patch tokens is above it" in across_note(across, PROBE)
