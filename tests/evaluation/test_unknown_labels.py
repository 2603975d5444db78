"""Labels that are not known, which count nowhere, and folds, which widen intervals."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, f1_score, log_loss, roc_auc_score

from histoclip_lib.common.predictions import cross_entropy, from_probabilities, mean_accuracy
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.artifacts import read_predictions, save_predictions
from histoclip_lib.evaluation.calibration import (
    ENSEMBLE,
    MEMBERS,
    brier_score,
    calibration_table,
    ensemble_note,
    fit_calibration,
    reliability,
)
from histoclip_lib.evaluation.confusion import (
    co_occurrence_bias,
    confusion,
    errors_by_group,
    errors_by_label_set,
    multilabel_confusion,
    predicted_when_missed,
)
from histoclip_lib.evaluation.metrics import point_metrics
from histoclip_lib.evaluation.uncertainty import accuracy_gap, compare, evaluate, mean_gap_p, proper_scores, smallest_p

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def case():
    """Labels (90, 3) of which a third is not known, two methods' probabilities, and 18 groups."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (90, 3)).astype(np.float32)
    first, second = (np.clip(0.5 + 0.3 * (labels - 0.5) + generator.normal(0, 0.3, labels.shape), 0, 1) for _ in "12")
    labels[generator.random(labels.shape) < 1 / 3] = np.nan
    labels[4] = np.nan
    return labels, first, second, np.arange(90) // 5


def test_metrics_are_those_of_scikit_learn_on_the_known_cells(case):
    labels, scores, *_ = case
    found = point_metrics(labels, from_probabilities(scores), CLASSES)
    columns = [(labels[own, k], scores[own, k]) for k, own in enumerate((~np.isnan(labels)).T)]
    decided = [(truth, own >= 0.5) for truth, own in columns]
    for name, metric, pairs in (
        ("mAP", average_precision_score, columns),
        ("auroc", roc_auc_score, columns),
        ("mAcc", accuracy_score, decided),
        ("macro_f1", f1_score, decided),
    ):
        assert found[name] == pytest.approx(np.mean([metric(*pair) for pair in pairs]))
    truth, called = (np.concatenate(parts) for parts in zip(*decided, strict=True))
    assert found["micro_f1"] == pytest.approx(f1_score(truth, called))
    assert [values["n"] for values in found["per_class"].values()] == [len(truth) for truth, _ in columns]
    exact = [
        np.all((own >= 0.5)[~np.isnan(row)] == row[~np.isnan(row)]) for row, own in zip(labels, scores, strict=True)
    ]
    assert found["exact_match"] == pytest.approx(
        np.mean([x for x, row in zip(exact, labels, strict=True) if not np.isnan(row).all()])
    )
    everything = np.concatenate([own for _, own in columns])
    assert cross_entropy(labels, scores) == pytest.approx(log_loss(truth, everything.clip(2**-24, 1 - 2**-24)))
    assert brier_score(labels, scores)[0] == pytest.approx(brier_score_loss(*columns[0]))


def test_what_is_said_of_unknown_cells_changes_nothing(case):
    labels, first, second, units = case
    other = np.where(np.isnan(labels), 1 - first, first)
    assert evaluate(labels, from_probabilities(first), CLASSES, units, 50, 0) != {}
    for function in (
        lambda scores: (
            evaluate(labels, from_probabilities(scores), CLASSES, units, 50, 0)
            | {
                "per_class": [
                    (v["accuracy"], v["ap"], v["f1"])
                    for v in point_metrics(labels, from_probabilities(scores), CLASSES)["per_class"].values()
                ]
            }
        ),
        lambda scores: compare(labels, from_probabilities(scores), from_probabilities(second), units, 50, 0),
        lambda scores: fit_calibration(labels, scores).temperature,
        lambda scores: list(fit_calibration(labels, scores).thresholds["f1"]),
        lambda scores: np.nan_to_num(reliability(labels, scores).observed).tolist(),
        lambda scores: confusion(labels, scores >= 0.5).tolist(),
        lambda scores: multilabel_confusion(labels, scores >= 0.5).tolist(),
        lambda scores: predicted_when_missed(labels, scores >= 0.5)[0].tolist(),
        lambda scores: np.nan_to_num(co_occurrence_bias(labels, scores >= 0.5, units, 50).low).tolist(),
        lambda scores: errors_by_group(labels, scores >= 0.5, units).to_dict(),
    ):
        assert function(first) == function(other)


def test_a_class_without_a_known_label_is_left_out_of_all_means(case):
    labels, first, _, units = case
    more = np.column_stack([labels, np.full(len(labels), np.nan, np.float32)])
    scores = np.column_stack([first, first[:, 0]])
    alone = evaluate(labels, from_probabilities(first), CLASSES, units, 50, 0, folds=5)
    found = evaluate(more, from_probabilities(scores), [*CLASSES, "d"], units, 50, 0, folds=5)
    unknown = found["per_class"].pop("d")
    assert found == alone
    assert unknown.pop("n") == 0
    assert set(unknown.values()) == {None}

    fitted = fit_calibration(more, scores)
    assert fitted.thresholds["accuracy"][3] == fitted.thresholds["f1"][3] == 0.5
    assert fitted.temperature == fit_calibration(labels, first).temperature
    methods = {"knn": from_probabilities(scores)}
    table = calibration_table(more, methods, {"knn": fitted}, [*CLASSES, "d"])
    assert set(table.loc["ECE, d"]) == {"—"}
    assert "—" not in set(table.loc["ECE"]) | set(table.loc["ECE by chance"])


def test_errors_by_group_and_by_label_set_count_known_labels_alike(case):
    labels, first, _, units = case
    decisions = first >= 0.5
    table = errors_by_group(labels, decisions, units)
    wrong = (labels != decisions) & ~np.isnan(labels)
    for unit in table.index:
        own = units == unit
        assert table.loc[unit, "mAcc"] == pytest.approx(mean_accuracy(labels[own], decisions[own]))
        assert table.loc[unit, "share of errors"] == pytest.approx(wrong[own].sum() / wrong.sum())
    none = (labels != 1).all(axis=1)
    by_set = errors_by_label_set(labels, decisions, CLASSES)
    assert by_set.loc["none", "mAcc"] == pytest.approx(mean_accuracy(labels[none], decisions[none]))


def test_every_known_label_counts_alike_in_the_cross_entropy(case):
    labels, first, second, units = case
    found = proper_scores(labels, first, units, 200, 0)
    assert found["cross_entropy"] == pytest.approx(cross_entropy(labels, first))
    assert found["cross_entropy_ci"][0] < found["cross_entropy"] < found["cross_entropy_ci"][1]
    methods = {ENSEMBLE: (first + second) / 2, **dict(zip(MEMBERS, (first, second), strict=True))}
    note = ensemble_note(labels, {name: from_probabilities(p) for name, p in methods.items()}, units, 50, 0)
    assert f"gives a cross-entropy of {cross_entropy(labels, methods[ENSEMBLE]):.3f}" in note


def test_without_a_gap_the_interval_holds_and_the_difference_is_that_of_the_means(case):
    labels, first, second, units = case
    found = compare(labels, from_probabilities(first), from_probabilities(second), units, 50, 0)
    expected = mean_accuracy(labels, first >= 0.5) - mean_accuracy(labels, second >= 0.5)
    assert found.macc.value == pytest.approx(expected)
    assert found.macc.low < found.macc.value < found.macc.high


def test_unknown_labels_come_back_from_the_file(case, tmp_path):
    labels, first, *_ = case
    patches = PatchDataset("made", CLASSES, [f"{k:02d}.png" for k in range(90)], labels, None)
    save_predictions(tmp_path / "p.parquet", {"knn": from_probabilities(first)}, patches, np.arange(90))
    np.testing.assert_array_equal(read_predictions(tmp_path / "p.parquet").labels, labels)


def test_folds_stretch_intervals_and_raise_p(case):
    labels, first, second, units = case
    alone, folded = (
        compare(labels, from_probabilities(first), from_probabilities(second), units, 200, 0, folds).map
        for folds in (1, 5)
    )
    assert folded.value == alone.value
    assert folded.high - folded.value == pytest.approx(1.5 * (alone.high - alone.value))
    assert folded.value - folded.low == pytest.approx(1.5 * (alone.value - alone.low))
    assert folded.p > alone.p


@pytest.mark.parametrize("n_units", [4, 8, 10])
def test_no_p_is_below_the_smallest(n_units):
    labels, units = np.ones((n_units, 1)), np.arange(n_units)
    right, wrong = (from_probabilities(np.full((n_units, 1), p)) for p in (0.9, 0.1))
    assert accuracy_gap(labels, right, wrong, units, 10, 0).p == pytest.approx(smallest_p(units))
    for sizes in (np.ones(n_units), np.where(np.arange(n_units) < 3, 0.17, 0.098)):  # alike, and a few large ones
        assert mean_gap_p(sizes[:, None], units, 0, folds=5) >= smallest_p(units)
