import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.calibration import _sigmoid_calibration, calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import cross_entropy, from_probabilities
from histoclip_lib.evaluation.calibration import (
    ENSEMBLE,
    MEMBERS,
    Calibration,
    FoldCalibrations,
    apply_temperature,
    brier_score,
    calibration_table,
    chance_calibration_error,
    ensemble_note,
    expected_calibration_error,
    fit_calibration,
    fit_platt,
    fit_temperature,
    fit_thresholds,
    reliability,
    temperature_note,
    threshold_table,
)


def simulated(n_patches, n_classes=3, seed=0):
    """Logits, and labels that follow them exactly."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n_patches, n_classes)) * 2
    return (generator.random(logits.shape) < expit(logits)).astype(np.uint8), logits


@st.composite
def labelled(draw):
    """Labels and probabilities of a few patches, with ties, exact 0 and 1, and classes always or never present."""
    n_patches, n_classes = draw(st.integers(1, 14)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    labels = generator.random((n_patches, n_classes)) < draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    probabilities = np.round(generator.random(labels.shape), draw(st.sampled_from([0, 1, 3])))
    return labels.astype(np.uint8), probabilities.astype(draw(st.sampled_from([np.float32, np.float64])))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_simulated_logits_is_recovered(temperature):
    labels, logits = simulated(5000)
    assert fit_temperature(labels, expit(logits * temperature)) == pytest.approx(temperature, rel=0.06)


@given(labelled())
@settings(max_examples=60)
def test_no_other_temperature_fits_better(case):
    labels, probabilities = case
    usable = labels.any(axis=0) & ~labels.all(axis=0)
    fitted = fit_temperature(labels, probabilities)
    if not usable.any():
        assert fitted == 1
        return
    labels, probabilities = labels[:, usable], probabilities[:, usable]
    loss = cross_entropy(labels, apply_temperature(probabilities, fitted))
    for other in (1.0, 0.2, 20.0, fitted * 0.95, fitted * 1.05):
        if 0.2 <= other <= 20:
            assert loss <= cross_entropy(labels, apply_temperature(probabilities, other)) + 1e-5


def test_temperature_ignores_a_class_that_is_never_present():
    labels, logits = simulated(300)
    probabilities = expit(3 * logits)
    expected = fit_temperature(labels[:, :2], probabilities[:, :2])
    labels[:, 2] = 0
    assert fit_temperature(labels, probabilities) == expected


def test_temperature_is_one_where_all_probabilities_are_one_half():
    assert fit_temperature(np.array([[0], [1]]), np.full((2, 1), 0.5)) == 1


@given(labelled(), st.floats(0.2, 20))
@settings(max_examples=60)
def test_temperature_keeps_the_order_and_every_decision_at_one_half(case, temperature):
    _, probabilities = case
    calibrated = apply_temperature(probabilities, temperature)
    for before, after in zip(probabilities.T, calibrated.T, strict=True):
        order = np.argsort(before, kind="stable")
        steps_before, steps_after = np.diff(before[order]), np.diff(after[order])
        assert (steps_after >= 0).all()
        apart = (steps_before > 0) & (before[order][:-1] > 1e-3) & (before[order][1:] < 1 - 1e-3)
        assert (steps_after[apart] > 0).all()
    assert np.array_equal(calibrated >= 0.5, probabilities >= 0.5)


def test_temperature_divides_the_logits_even_of_a_probability_of_one():
    assert apply_temperature(expit(np.array([[3.0, -1.0]])), 2.0) == pytest.approx(expit(np.array([[1.5, -0.5]])))
    assert apply_temperature(np.array([[1.0]], dtype=np.float32), 4.0) == pytest.approx(0.985, abs=0.001)


def test_platt_scaling_equals_scikit_learn_and_keeps_classes_of_one_value():
    labels, logits = simulated(300)
    labels[:, 2] = 0
    found = fit_platt(labels, expit(3 * logits + 1))
    for k in range(2):
        slope, intercept = _sigmoid_calibration(3 * logits[:, k] + 1, labels[:, k])  # of 1 / (1 + exp(a f + b))
        assert found[k] == pytest.approx([-slope, -intercept], rel=1e-3)
    assert found[2].tolist() == [1, 0]
    assert np.isfinite(fit_platt(np.array([[0], [0], [1], [1]]), np.array([[0.1], [0.2], [0.8], [0.9]]))).all()


@pytest.mark.parametrize(("shift", "said"), [(-1.5, "lower than"), (1.5, "higher than"), (0, "not significantly")])
def test_the_ensemble_note_follows_the_interval(shift, said):
    labels, logits = simulated(200)
    methods = {ENSEMBLE: from_probabilities(expit(logits))}
    for seed, name in enumerate(MEMBERS):
        noise = np.random.default_rng(seed).normal(0, 0.01, logits.shape)
        methods[name] = from_probabilities(expit(logits + noise + abs(min(shift, 0))))
    if shift > 0:
        methods[ENSEMBLE] = from_probabilities(expit(logits + shift))
    note = ensemble_note(labels, methods, np.arange(200), 200, 0)
    assert note.count(said) == 2
    assert f"{log_loss(labels.ravel(), methods[ENSEMBLE].scores.ravel()):.3f}" in note


def quality(objective, labels, decisions):
    if objective == "accuracy":
        return accuracy_score(labels, decisions)
    return f1_score(labels, decisions, zero_division=0)


@given(labelled(), st.sampled_from(["accuracy", "f1"]))
@settings(max_examples=60)
def test_thresholds_equal_brute_force_over_all_cut_points(case, objective):
    labels, probabilities = case
    thresholds = fit_thresholds(labels, probabilities, objective)
    for k, threshold in enumerate(thresholds):
        truth, p = labels[:, k], probabilities[:, k].astype(np.float64)
        if objective == "f1" and not truth.any():
            assert threshold == 0.5
            continue
        cuts = np.unique([0, 0.5, 1, threshold, *p, *np.nextafter(p, 2)])
        reached = np.array([quality(objective, truth, p >= cut) for cut in cuts])
        best = reached >= reached.max() - 1e-12
        assert best[cuts == threshold].all()
        # an optimum as near to one half as any, with nothing worse between it and the threshold
        distance = np.abs(cuts - 0.5)
        nearest = cuts[best & (distance <= distance[best].min() + 1e-12)]
        assert any(best[(cuts >= min(cut, threshold)) & (cuts <= max(cut, threshold))].all() for cut in nearest)


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.4, 0.9], 0.3),  # the middle of the gap
        (
            [0, 1, 0, 1],
            [0.2, 0.4, 0.4, 0.8],
            0.5,
        ),  # the tie at 0.4 costs one either way
        (
            [1, 0, 0, 1, 0, 0],
            [0.05, 0.1, 0.3, 0.9, 0.95, 0.97],
            0.985,
        ),  # best never called
        ([0, 0], [0.3, 0.3], 0.65),
        ([1, 1], [0.3, 0.3], 0.15),
    ],
)
def test_threshold_by_hand(labels, probabilities, expected):
    fitted = fit_thresholds(np.array(labels)[:, None], np.array(probabilities)[:, None])
    assert fitted == pytest.approx([expected])


def test_threshold_exceeds_one_where_that_is_the_only_way_to_predict_absent():
    probabilities = np.ones((3, 1), dtype=np.float32)
    threshold = fit_thresholds(np.zeros((3, 1), dtype=np.uint8), probabilities)
    assert not (probabilities >= threshold).any()
    assert threshold == pytest.approx([1])


def test_threshold_for_f1_predicts_a_rare_class_where_accuracy_does_not():
    labels = np.array([[1], [0], [0], [0], [1], [0], [0], [0]])
    probabilities = np.array([[0.6], [0.7], [0.65], [0.62], [0.5], [0.3], [0.2], [0.1]])
    assert fit_thresholds(labels, probabilities, "accuracy")[0] > 0.7
    assert fit_thresholds(labels, probabilities, "f1") == pytest.approx([0.4])


def test_calibration_error_by_hand():
    labels = np.array([[0], [1], [1], [1], [0]])
    probabilities = np.array([[0.1], [0.2], [0.9], [0.7], [0.5]])
    # lower half: three patches (a bin holds its upper edge), mean 0.8 / 3 against 1 / 3; upper half: 0.8 against 1
    assert expected_calibration_error(labels, probabilities, 2) == pytest.approx([0.6 * (0.2 / 3) + 0.4 * 0.2])
    binned = reliability(labels, probabilities, 4)
    assert binned.counts.tolist() == [[2, 1, 1, 1]]
    assert binned.observed.tolist() == [[0.5, 0, 1, 1]]
    assert np.isnan(reliability(labels, probabilities, 20).observed[0, 10:13]).all()


def test_calibration_error_is_small_for_calibrated_and_large_for_overconfident_probabilities():
    labels, logits = simulated(20000)
    assert (expected_calibration_error(labels, expit(logits)) < 0.02).all()
    assert (expected_calibration_error(labels, expit(3 * logits)) > 0.06).all()


def test_chance_error_equals_the_error_of_calibrated_probabilities_on_few_patches():
    observed = [
        expected_calibration_error(simulated(100, 3, seed)[0], expit(simulated(100, 3, seed)[1])) for seed in range(60)
    ]
    expected = [chance_calibration_error(np.ones((100, 3)), expit(simulated(100, 3, seed)[1])) for seed in range(5)]
    half = np.where(np.arange(200) < 100, 1, np.nan)[:, None].repeat(3, axis=1)  # as few known labels in more patches
    expected += [chance_calibration_error(half, expit(simulated(200, 3, seed)[1])) for seed in range(5)]
    assert np.mean(expected) == pytest.approx(np.mean(observed), rel=0.1)
    assert np.mean(expected) > 0.05


@given(labelled(), st.integers(2, 15))
@settings(max_examples=60)
def test_reliability_equals_scikit_learn(case, bins):
    labels, probabilities = case
    binned = reliability(labels, probabilities, bins)
    assert (binned.counts.sum(axis=1) == len(labels)).all()
    for k in range(labels.shape[1]):
        observed, predicted = calibration_curve(
            labels[:, k], probabilities[:, k].astype(np.float64), n_bins=bins, pos_label=1
        )
        filled = binned.counts[k] > 0
        assert binned.observed[k, filled] == pytest.approx(observed)
        assert binned.predicted[k, filled] == pytest.approx(predicted, abs=1e-6)
        assert np.isnan(binned.observed[k, ~filled]).all()


def test_scores_equal_scikit_learn():
    labels, logits = simulated(200)
    probabilities = expit(logits)
    assert brier_score(labels, probabilities) == pytest.approx(
        [brier_score_loss(labels[:, k], probabilities[:, k]) for k in range(3)]
    )
    assert cross_entropy(labels, probabilities) == pytest.approx(log_loss(labels.ravel(), probabilities.ravel()))


def test_predictions_are_decided_at_the_thresholds_fitted_on_calibrated_probabilities():
    labels, logits = simulated(400)
    fit, other = fit_calibration(labels, expit(3 * logits)), expit(3 * simulated(50, 3, 1)[1])
    calibrated = apply_temperature(other, fit.temperature)
    for objective in ("accuracy", "f1"):
        predictions = fit.predict(other, objective)
        cuts = fit_thresholds(labels, apply_temperature(expit(3 * logits), fit.temperature), objective)
        assert np.array_equal(predictions.decisions, calibrated >= cuts)
        assert np.array_equal(predictions.scores, calibrated)
    assert not np.array_equal(fit.thresholds["accuracy"], fit.thresholds["f1"])
    exact = Calibration(1.0, {"accuracy": np.array([0.5])}, np.array([[1.0, 0.0]]))
    assert exact.predict(np.array([[0.49], [0.5], [0.51]])).decisions.ravel().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("probabilities", "complaint"),
    [
        (np.full((4, 2), 0.5), "Labels have shape (4, 3), probabilities (4, 2)"),
        (np.full((4, 3), -0.2), "-0.2 to -0.2 are not probabilities"),
        (np.full((4, 3), np.nan), "nan to nan are not probabilities"),
    ],
)
def test_values_outside_zero_to_one_are_refused(probabilities, complaint):
    with pytest.raises(HistoCLIPError) as error:
        fit_calibration(np.array([[0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 1]]), probabilities)
    assert complaint in str(error.value)


def test_tables_compare_before_and_after():
    labels = np.array([[0, 1], [1, 0], [1, 1], [0, 0]], dtype=np.uint8)
    probabilities = np.array([[0.1, 0.4], [0.3, 0.1], [0.8, 0.9], [0.2, 0.2]])
    thresholds, lines = {"accuracy": np.array([0.35, 0.5]), "f1": np.array([0.35, 0.4])}, np.array([[0.5, 0], [2, 1]])
    calibrations = {"linear_probe": Calibration(2.0, thresholds, lines)}
    methods = {name: from_probabilities(probabilities) for name in ("linear_probe", "knn")}
    table = threshold_table(labels, methods, calibrations, ["a", "b"])["Linear probe"]
    # at T = 2: column a becomes 0.25, 0.40, 0.67, 0.33, and column b 0.45, 0.25, 0.75, 0.33
    assert table.loc["mAcc"].tolist() == ["0.750", "0.875", "1.000"]
    assert table.loc["exact match"].tolist() == ["0.500", "0.750", "1.000"]
    assert table.loc["macro F1"].tolist() == ["0.667", "0.833", "1.000"]
    assert table.loc["threshold, b"].tolist() == ["0.50", "0.50", "0.40"]
    table = calibration_table(labels, methods, calibrations, ["a", "b"])
    assert list(table.columns) == [("Linear probe", stage) for stage in ("uncalibrated", "T = 2.00", "Platt")]
    platt = expit(logit(probabilities) * [0.5, 2] + [0, 1])
    for column, p in zip(table.columns, (probabilities, apply_temperature(probabilities, 2.0), platt), strict=True):
        assert table.loc["cross-entropy", column] == f"{log_loss(labels.ravel(), p.ravel()):.3f}"
        assert table.loc["Brier score, a", column] == f"{brier_score_loss(labels[:, 0], p[:, 0]):.3f}"
        assert table.loc["ECE", column] == f"{expected_calibration_error(labels, p).mean():.3f}"
        assert table.loc["ECE, b", column] == f"{expected_calibration_error(labels, p)[1]:.3f}"
    assert "Linear probe: T = 2.00" in temperature_note(calibrations)


def test_tables_hold_constant_scores_and_classes_that_are_never_present():
    labels = np.zeros((20, 2), dtype=np.uint8)
    labels[:5, 0] = 1
    methods = {"knn": from_probabilities(np.full((20, 2), 0.3, dtype=np.float32))}
    calibrations = {"knn": fit_calibration(labels, methods["knn"].scores)}
    assert threshold_table(labels, methods, calibrations, ["a", "b"]).loc["mAcc"].iloc[1] == "0.875"
    assert not calibration_table(labels, methods, calibrations, ["a", "b"]).isin(["nan"]).any(axis=None)


def test_thresholds_before_calibration_decide_alike():
    fitted = Calibration(2.5, {"accuracy": np.array([0.0, 0.3, 0.5, 1.01]), "f1": np.zeros(4)}, np.zeros((4, 2)))
    probabilities = np.random.default_rng(0).random((200, 4))
    np.testing.assert_array_equal(probabilities >= fitted.cut(), fitted.predict(probabilities).decisions)


def test_each_patch_is_calibrated_by_what_was_fitted_for_its_fold():
    fits = [
        Calibration(temperature, {name: np.full(2, cut) for name in ("accuracy", "f1")}, np.tile([1.0, 0.0], (2, 1)))
        for temperature, cut in ((0.5, 0.3), (2.0, 0.6))
    ]
    fold, probabilities = np.array([0, 1, 1, 0]), np.array([[0.4, 0.9], [0.4, 0.9], [0.7, 0.2], [0.7, 0.2]])
    joined = FoldCalibrations(fits, fold)
    for objective in ("accuracy", "f1"):
        found = joined.predict(probabilities, objective)
        for k, row in enumerate(probabilities):
            alone = fits[fold[k]].predict(row[None], objective)
            np.testing.assert_allclose(found.scores[k], alone.scores[0])
            assert np.array_equal(found.decisions[k], alone.decisions[0])
    assert joined.temperature == pytest.approx(1.0)
    np.testing.assert_allclose(joined.thresholds["f1"], 0.45)
