import numpy as np
import pytest
from drawing import HOSTILE, draw
from scipy.special import expit
from sklearn.metrics import average_precision_score

from histoclip_lib.common.predictions import Predictions, from_probabilities
from histoclip_lib.evaluation.calibration import expected_calibration_error, fit_calibration
from histoclip_lib.report import figures

NAMES = {"linear_probe": "Linear probe", "histoclip_patch": "HistoCLIP, patch keys", "top_k": "Zero-shot: Top-k"}
WIDEST = 8.0  # inches; a page is 7.2 wide at 100 dpi


def case(n_classes, n_patches=60):
    """Probabilities of two rows, constant scores of a third; the last class is never present."""
    generator = np.random.default_rng(n_classes)
    labels = generator.integers(0, 2, (n_patches, n_classes)).astype(np.uint8)
    labels[:, -1] = 0
    rows = {
        name: from_probabilities(expit(generator.normal(size=labels.shape) + 2 * labels - 1).astype(np.float32))
        for name in ("linear_probe", "histoclip_patch")
    }
    rows["top_k"] = Predictions(np.full(labels.shape, -0.3), np.zeros(labels.shape, dtype=bool))
    fits = {name: fit_calibration(labels, rows[name].scores) for name in ("linear_probe", "histoclip_patch")}
    return labels, rows, fits, [HOSTILE[k % 4] + str(k // 4) for k in range(n_classes)]


@pytest.mark.parametrize("n_classes", [2, 16])
def test_reliability_diagrams_say_the_error_before_and_after(n_classes):
    labels, rows, fits, classes = case(n_classes)
    figure = figures.reliability_diagrams(labels, rows, fits, classes, NAMES)
    alternative = draw(figure)
    assert figure.get_figwidth() <= WIDEST
    for row, fit in fits.items():
        before = expected_calibration_error(labels, rows[row].scores)
        after = expected_calibration_error(labels, fit.calibrate(rows[row].scores))
        for k, name in enumerate(classes):
            assert f"{name}, {NAMES[row]}: {before[k]:.3f} and {after[k]:.3f}" in alternative


def test_reliability_diagrams_pair_each_class_with_each_row():
    labels, rows, fits, classes = case(3)
    figure = figures.reliability_diagrams(labels, rows, fits, classes, NAMES)
    titles = [axes.get_title().splitlines() for axes in figure.axes if axes.axison]
    assert [title[1] for title in titles] == ["Linear probe", "HistoCLIP, patch keys"] * 3
    assert [title[0] for title in titles[::2]] == [title[0] for title in titles[1::2]]
    before = expected_calibration_error(labels, rows["histoclip_patch"].scores)
    assert titles[3][2].startswith(f"ECE {before[1]:.2f} →")


@pytest.mark.parametrize("n_classes", [2, 16])
def test_precision_recall_curves_say_the_average_precision(n_classes):
    labels, rows, fits, classes = case(n_classes)
    figure = figures.precision_recall_curves(labels, rows, fits, classes, NAMES)
    alternative = draw(figure)
    assert figure.get_figwidth() <= WIDEST
    for name, row in rows.items():
        assert f"{NAMES[name]} {average_precision_score(labels[:, 0], row.scores[:, 0]):.3f}" in alternative
    assert f"{classes[0]} (prevalence {labels[:, 0].mean():.2f})" in alternative
    assert f"{classes[-1]}: no positive patch" in alternative


def test_points_stand_at_the_decisions_as_they_are_and_at_the_fitted_thresholds():
    labels, rows, fits, classes = case(2)
    figure = figures.precision_recall_curves(labels, rows, fits, classes, NAMES)
    points = {
        (line.get_marker(), tuple(np.round(line.get_xydata()[0], 6)))
        for line in figure.axes[0].lines
        if line.get_marker() in ("o", "X") and len(line.get_xydata())
    }
    expected = set()
    for name, fit in fits.items():
        scores = rows[name].scores
        for marker, decisions in (("o", rows[name].decisions), ("X", fit.predict(scores).decisions)):
            called, truth = decisions[:, 0], labels[:, 0] == 1
            hits = (called & truth).sum()
            expected.add((marker, (round(hits / truth.sum(), 6), round(hits / called.sum(), 6))))
    assert points == expected  # Top-k calls nothing here, and has no precision


def test_rows_may_all_be_without_a_calibration():
    labels, rows, _, classes = case(2)
    assert "Zero-shot: Top-k" in draw(figures.precision_recall_curves(labels, rows, {}, classes, NAMES))
