import numpy as np
import pytest
from drawing import HOSTILE, draw

from histoclip_lib.evaluation.confusion import (
    co_occurrence_bias,
    errors_by_group,
    errors_by_label_set,
    multilabel_confusion,
)
from histoclip_lib.report import figures


def case(n_classes, n_patches=200):
    """Labels and decisions; the last class is never present, and the first 20 patches have no label."""
    generator = np.random.default_rng(n_classes)
    labels = generator.random((n_patches, n_classes)) < 0.4
    labels[:, -1] = labels[:20] = False
    return labels, generator.random(labels.shape) < np.where(labels, 0.8, 0.2)


def hostile(n_classes):
    return [HOSTILE[k % 4] + str(k // 4) for k in range(n_classes)]


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("n_classes", [2, 16])
def test_multilabel_confusion_map_says_every_count(n_classes):
    matrix, classes = multilabel_confusion(*case(n_classes)), hostile(n_classes)
    figure = figures.multilabel_confusion_map(matrix, classes, "row")
    alternative = draw(figure)
    assert f"{classes[0]}: {matrix[0, 0]} as {classes[0]}, {matrix[0, 1]} as {classes[1]}" in alternative
    assert f"{classes[-1]}: nothing; no true label: {matrix[-1, 0]} as {classes[0]}" in alternative
    shown = texts(figure.axes[0])[0]
    fraction = matrix[0, 0] / matrix[0].sum()
    assert shown == (f"{matrix[0, 0]}\n{fraction:.0%}" if n_classes <= 7 else f"{matrix[0, 0]}")


@pytest.mark.parametrize("n_groups", [1, 8, 200])
def test_group_error_plot_names_the_worst(n_groups):
    labels, decisions = case(4, 600)
    groups = np.array([f"$patient <b>{i % n_groups}" for i in range(600)])
    table = errors_by_group(labels, decisions, groups)
    figure = figures.group_error_plot(table)
    alternative = draw(figure)
    worst = table.iloc[0]
    assert f"{table.index[0]}: {worst['error rate']:.3f} ({worst['patches']:.0f} patches)" in alternative
    assert f"over all patches {(labels != decisions).mean():.3f}" in alternative
    assert alternative.count("patches)") == min(5, n_groups)
    assert len(figure.axes[0].collections[0].get_offsets()) == n_groups


def test_group_error_plot_draws_a_row_without_errors():
    labels, _ = case(4)
    assert "0.000" in draw(figures.group_error_plot(errors_by_group(labels, labels, np.arange(200) % 9)))


@pytest.mark.parametrize("n_classes", [2, 16])
def test_label_set_bars_show_the_most_frequent(n_classes):
    labels, decisions = case(n_classes)
    table = errors_by_label_set(labels, decisions, hostile(n_classes))
    figure = figures.label_set_bars(table)
    alternative = draw(figure)
    line = table.iloc[0]
    assert f"{table.index[0]} ({line['patches']} patches): exact match {line['exact match']:.2f}" in alternative
    assert len(figure.axes[0].get_yticklabels()) == min(12, len(table))
    assert (f"{len(table) - 12} rarer sets are not shown" in alternative) == (len(table) > 12)
    widths = [bar.get_width() for bar in figure.axes[0].containers[1]]
    assert widths == pytest.approx(table["exact match"].head(12).tolist())
    heights = [bar.get_y() for bar in figure.axes[0].containers[1]]
    assert heights == sorted(heights, reverse=True)  # the most frequent on top


@pytest.mark.parametrize("n_classes", [2, 4, 16])
def test_bias_map_marks_what_was_found_in_each_row(n_classes):
    labels, decisions = case(n_classes)
    biased = decisions.copy()
    biased[labels[:, 0] & ~labels[:, 1], 1] = True
    biased[~labels[:, 0] & ~labels[:, 1], 1] = False
    units, classes = np.arange(200), hostile(n_classes)
    biases = {
        "HistoCLIP": co_occurrence_bias(labels, biased, units, 200),
        "Linear probe": co_occurrence_bias(labels, decisions, units, 200),
    }
    figure = figures.co_occurrence_bias_map(biases, classes)
    alternative = draw(figure)
    assert f"HistoCLIP, false positives of {classes[1]} by {classes[0]} +1.00" in alternative
    marks = [sum("*" in text for text in texts(axes)) for axes in figure.axes[:4]]
    expected = [bias.found[t].sum() for t in (0, 1) for bias in biases.values()]
    assert marks == expected
    assert marks[0] >= 1
    if n_classes <= 7:
        assert "+1.00*" in texts(figure.axes[0])


def test_bias_map_without_anything_to_compare():
    labels = np.zeros((20, 3), dtype=bool)
    bias = co_occurrence_bias(labels, labels, np.arange(20), 50)
    assert "row, none" in draw(figures.co_occurrence_bias_map({"row": bias}, ["a", "b", "c"]))
