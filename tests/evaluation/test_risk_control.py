"""Thresholds keep what they promise: equal to brute force, and within the theory's bounds in simulation."""

import numpy as np
import pytest
from scipy.special import expit

from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.evaluation.risk_control import (
    LEVELS,
    missed_shares,
    promise_kept,
    risk_note,
    risk_table,
    risk_thresholds,
)
from histoclip_lib.evaluation.uncertainty import draw_units


def simulated(n_units, seed, per_unit=6, n_classes=2):
    """Labels and probabilities of patches whose units differ in how hard they are."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, (n_units * per_unit, n_classes))
    hardness = np.repeat(random.normal(0, 1, (n_units, n_classes)), per_unit, axis=0)
    scores = expit(3 * (labels - 0.5) + hardness + random.normal(0, 1, labels.shape))
    return labels, scores, np.repeat(np.arange(n_units), per_unit)


def test_shares_and_thresholds_equal_brute_force():
    labels, probabilities, units = simulated(25, 0)
    labels[units == 3, 0] = 0  # a unit without the class does not count
    shares = missed_shares(labels, probabilities, units)
    assert np.isnan(shares[3, 0]).all()
    for k in range(2):
        allowed = []
        for cut in np.arange(LEVELS + 1) / LEVELS:
            lost = [
                np.mean(probabilities[(units == u) & (labels[:, k] == 1), k] < cut)
                for u in np.unique(units[labels[:, k] == 1])
            ]
            if (sum(lost) + 1) / (len(lost) + 1) <= 0.2:
                allowed.append(cut)
        assert risk_thresholds(shares, 0.2)[k] == pytest.approx(max(allowed))


def test_expected_share_missed_is_within_the_bounds_of_the_theorem():
    """At most alpha, and at least alpha - 2 / (n + 1) for losses without jumps (Angelopoulos et al., theorems 1, 2)."""
    alpha, n_units, missed = 0.15, 19, []
    new_shares = missed_shares(*simulated(1000, 10**6))
    for seed in range(120):
        cuts = risk_thresholds(missed_shares(*simulated(n_units, seed)), alpha)
        at = np.round(cuts * LEVELS).astype(int)
        missed.append(np.nanmean(new_shares[:, [0, 1], at], axis=0).mean())
    error = np.std(missed) / np.sqrt(len(missed))
    assert np.mean(missed) < alpha + 2 * error
    assert np.mean(missed) > alpha - 2 / (n_units + 1) - 0.01
    kept = promise_kept(missed_shares(*simulated(40, 5)), alpha)
    assert (kept < alpha + 0.04).all()


def test_too_few_units_predict_the_class_always():
    labels, probabilities, units = simulated(8, 1)
    assert risk_thresholds(missed_shares(labels, probabilities, units), 0.1).tolist() == [0, 0]
    assert "only 8 groups a class must always be predicted; 9 or more" in risk_note(0.1, 8)
    assert "must always" not in risk_note(0.1, 9)
    assert risk_thresholds(np.zeros((9, 1, LEVELS + 1)), 0.1) == 1


def test_table_shows_what_is_missed_and_what_it_costs():
    labels, probabilities, units = simulated(20, 2)
    new_labels, new, new_units = simulated(10, 3)
    table = risk_table(
        (labels, units), {"knn": probabilities}, new_labels, {"knn": from_probabilities(new)}, ["a", "b"],
        draw_units(new_units, 100, 0), 0.1, 0,
    )  # fmt: skip
    line = table.loc[("k-nearest neighbours", "b")]
    cut = risk_thresholds(missed_shares(labels, probabilities, units), 0.1)[1]
    lost = [np.mean(new[(new_units == u) & (new_labels[:, 1] == 1), 1] < cut) for u in range(10)]
    assert line["threshold"] == f"{cut:.3f}"
    assert line["FNR"].startswith(f"{np.mean(lost):.3f} (")
    called = [np.mean(new[(new_units == u) & (new_labels[:, 1] == 0), 1] >= 0.5) for u in range(10)]
    assert line["FPR at 0.5"].startswith(f"{np.mean(called):.3f} (")
