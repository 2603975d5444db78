"""Figures: what they draw, and what their text alternatives say, for any number of classes under any name."""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawing import HOSTILE, draw, hostile
from IPython.core.formatters import DisplayFormatter
from matplotlib import colors
from matplotlib import pyplot as plt
from PIL import Image
from scipy.special import expit
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from histoclip_lib.common.predictions import Predictions, from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation import confusion
from histoclip_lib.evaluation.calibration import expected_calibration_error, fit_calibration
from histoclip_lib.evaluation.localisation import best_and_worst, class_means, score_maps
from histoclip_lib.evaluation.methods import labels as method_labels
from histoclip_lib.evaluation.text import p_clause
from histoclip_lib.models.attention import MAP_LABELS
from histoclip_lib.prompting.sensitivity import AS_REPORTED, SINGLE_TEMPLATE, SYNONYMS
from histoclip_lib.report import figures
from histoclip_lib.report.figures import base
from histoclip_lib.report.figures.attention import GAP, SIZE, heat_over, side_by_side

WIDEST = 8.0  # inches; a page is 7.2 wide at 100 dpi


class Source:
    """Noise, with a mask that shows the first two classes."""

    def image(self, index):
        return np.random.default_rng(index).integers(0, 255, (40, 48, 3), dtype=np.uint8)

    def mask(self, index):
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[:20, :24], mask[20:, 24:] = 1, 2
        return mask


def masked(n_classes=4, n_patches=12):
    """Patches with masks, and probabilities."""
    generator, classes = np.random.default_rng(0), hostile(n_classes)
    labels = generator.integers(0, 2, (n_patches, n_classes)).astype(np.uint8)
    files = [f"{i}$_{classes[0]}" for i in range(n_patches)]
    return PatchDataset("made", classes, files, labels, Source(), has_masks=True), generator.random(labels.shape)


def texts(axes):
    return [text.get_text() for text in axes.texts]


# What all share


def test_drawing_and_showing_change_no_setting_and_leave_no_figure_open():
    before = dict(matplotlib.rcParams)
    figures.as_image(figures.similarity_map(np.eye(2), ["a", "b"]))
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_a_figure_needs_an_alternative_and_a_caption():
    @figures.figure
    def bare():
        return figures.described(plt.figure(), "An empty figure.", "")

    with pytest.raises(ValueError, match="bare: a figure needs a text alternative and a caption"):
        bare()


def test_a_shown_figure_is_a_double_resolution_png_with_its_alternative_and_caption(monkeypatch):
    shown = []
    monkeypatch.setattr(base, "display", shown.append)
    figures.show(None)
    figure = figures.similarity_map(np.eye(2), ["a", "b"])
    figures.show(figure)
    [image] = shown
    data, metadata = DisplayFormatter().format(image)
    assert metadata["image/png"]["alt"] == figure.alternative
    assert metadata["image/png"]["caption"] == figure.caption
    assert metadata["image/png"]["width"] == Image.open(io.BytesIO(image.data)).width // 2
    assert "image/png" in data


def test_photographs_are_shown_as_jpeg():
    """A gallery as PNG takes several times as many bytes."""
    shown = []
    for pixels in (np.zeros((400, 400)), np.random.default_rng(0).random((400, 400, 3))):
        figure, axes = plt.subplots(figsize=(6, 6))
        axes.imshow(pixels, interpolation="nearest")
        shown.append(figures.as_image(figures.described(figure, "Pixels.", "Pixels.")))
    assert [Image.open(io.BytesIO(image.data)).format for image in shown] == ["PNG", "JPEG"]
    assert shown[0].width == pytest.approx(shown[1].width, abs=1)


def test_a_chart_is_half_its_size_or_less_and_looks_the_same():
    figure = figures.similarity_map(np.random.default_rng(0).random((8, 8)), list("abcdefgh"))
    whole = base._rendered(figure)
    shown = figures.as_image(figure).data
    assert len(shown) < len(base.encoded(whole, "png")) / 2
    before, after = (np.asarray(own.convert("RGB"), dtype=float) for own in (whole, Image.open(io.BytesIO(shown))))
    assert np.sqrt(((before - after) ** 2).mean()) < base.SEEN
    assert Image.open(io.BytesIO(shown)).mode == "P"


def test_names_in_chinese_are_drawn_where_a_font_has_them(recwarn):
    if len(base.installed_fonts()) == 1:
        pytest.skip("no font for Chinese is installed")
    draw(figures.similarity_map(np.eye(2), ["肿瘤", "間質"]))
    assert [str(warning.message) for warning in recwarn if "missing from" in str(warning.message)] == []


def test_names_of_up_to_three_lines_are_not_cut():
    label = "HistoCLIP with patch tokens and queries without any text, trained twice"
    assert figures.wrapped(label).split() == label.split()
    for name in HOSTILE:
        assert len(figures.short(name)) <= base.MAX_NAME and "\n" not in figures.short(name)
        lines = figures.wrapped(name).splitlines()
        assert len(lines) <= base.MAX_LINES and all(len(line) <= base.MAX_NAME for line in lines)


def test_a_method_has_one_colour_and_no_two_have_the_same():
    coloured = [base.method_colour(name) for name in method_labels()]
    assert coloured[:4] == [base.UNCOLOURED] * 4
    assert len(set(coloured[4:])) == len(coloured[4:])
    assert base.method_colour("not registered") == base.UNCOLOURED


# The data


def test_data_figures_say_the_numbers():
    patches, _ = masked()
    index = np.arange(12)
    bars = draw(figures.prevalence_bars(patches.labels, {"train": index[:8], "validation": index[8:]}, patches.classes))
    assert f"{patches.classes[0]} {patches.labels[:8, 0].mean():.2f}" in bars
    pairs = draw(figures.co_occurrence_map(patches.labels, patches.classes))
    both = patches.labels[:, 0] & patches.labels[:, 1]
    assert f"given {patches.classes[0]}: {patches.classes[1]} {both.sum() / patches.labels[:, 0].sum():.2f}" in pairs


# Zero-shot


def spread(kinds=(SINGLE_TEMPLATE, SYNONYMS), strategies=("Baseline", "Top-k")):
    lines = [(s, AS_REPORTED, "a; b", 0.5 + k / 10, 0.6) for k, s in enumerate(strategies)]
    lines += [(s, kind, f"$x^{{$ {k}", k / 8, 0.3 + k / 20) for s in strategies for kind in kinds for k in range(4)]
    return pd.DataFrame(lines, columns=["strategy", "kind", "prompt", "mAcc", "mAP"])


def test_prompt_spread_puts_a_diamond_on_the_line_of_its_strategy_and_says_the_ranges():
    figure = figures.prompt_spread(spread())
    alternative = draw(figure)
    assert figure.get_figwidth() <= WIDEST
    assert "Baseline, as reported: mAcc 0.500, mAP 0.600" in alternative
    assert "Top-k, synonyms: mAcc 0.000 to 0.375 (4), mAP 0.300 to 0.450 (4)" in alternative
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["Baseline", "Top-k"]
    for axes, expected in zip(figure.axes, [[0.5, 0.6], [0.6, 0.6]], strict=True):
        [diamonds] = axes.lines
        np.testing.assert_allclose(diamonds.get_xdata(), expected)
        np.testing.assert_array_equal(diamonds.get_ydata(), [0, 1])
        dots = np.concatenate([dots.get_offsets() for dots in axes.collections])
        assert len(dots) == 16
        assert not np.isin(dots[:, 1], (0, 1)).any()  # beside the diamonds, not under them


@pytest.mark.parametrize("kinds", [(SINGLE_TEMPLATE,), ()])
def test_prompt_spread_without_synonyms_variants_or_a_defined_map(kinds):
    figure = figures.prompt_spread(spread(kinds).assign(mAP=np.nan))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [AS_REPORTED, *kinds]
    assert "mAP 0" not in draw(figure)


@pytest.mark.parametrize("n_classes", [1, 16])
def test_similarities_fit_a_page_and_are_all_said(n_classes):
    figure = figures.similarity_map(np.eye(n_classes), hostile(n_classes))
    assert draw(figure).count(" and ") == n_classes * (n_classes - 1) // 2
    assert figure.get_figwidth() < 9
    assert len(figure.axes[0].texts) == n_classes**2


def test_score_distributions_are_titled_by_strategy_and_the_legend_lies_outside_of_them():
    labels = np.random.default_rng(0).integers(0, 2, (30, 3))
    scores = Predictions(labels - 0.5, labels > 0)
    figure = figures.score_distributions(
        dict.fromkeys(["One-vs-Rest", "Top-k", HOSTILE[0]], scores), labels, list("abc")
    )
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["One-vs-Rest", "Top-k", HOSTILE[0]]
    alternative = draw(figure)
    assert "One-vs-Rest: a present 0.500" in alternative and "b absent -0.500" in alternative
    assert {axes.get_legend() for axes in figure.axes} == {None}
    [legend] = figure.legends
    assert [text.get_text() for text in legend.texts] == ["absent", "present"]
    assert not any(legend.get_window_extent().overlaps(axes.get_tightbbox()) for axes in figure.axes[:3])


# Training


def test_hidden_labels_are_drawn_where_map_is_not_defined():
    shares = pd.DataFrame(
        {"method": ["linear_probe"] * 2, "hidden": [0.0, 0.5], "mAcc": [1.0, 0.5], "mAP": [None, None]}
    )
    drawn = figures.hidden_labels(shares, {"linear_probe": "Linear probe"}, 12)
    assert "Linear probe with 50% hidden: mAcc 0.500, mAP —" in drawn.alternative


def test_training_curves_say_the_last_epoch():
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 1, 2],
            "loss": [0.7, 0.6, 0.7, 0.5],
            "val_loss": [np.nan, 0.65, np.nan, 0.62],
            "val_mAcc": [np.nan, 0.71, np.nan, 0.74],
            "head": ["global", "global", "patch", "patch"],
        }
    )
    alternative = draw(figures.training_curves(history, {"majority": 0.7}, 80, 20))
    assert "patch: train loss 0.500, validation loss 0.620, mAcc 0.740" in alternative


def test_label_efficiency_says_the_mean_over_draws():
    lines = [("histoclip_patch", 10, 0.6, 0.5), ("histoclip_patch", 10, 0.8, 0.7), ("linear_probe", 20, 0.7, 0.6)]
    sizes = pd.DataFrame(lines, columns=["method", "n_train", "mAcc", "mAP"])
    figure = figures.label_efficiency(sizes, {"majority": {"mAcc": 0.6, "mAP": None}}, method_labels(), 20, 100)
    assert "HistoCLIP, patch tokens with 10 patches: mAcc 0.700, mAP 0.600" in draw(figure)
    assert len(figure.axes[0].lines) == len(figure.axes[1].lines) + 1  # no mAP for the majority


# Methods


def scored(k=0):
    return {
        "mAcc": 0.5 + 0.03 * k,
        "mAcc_ci": [0.4 + 0.03 * k, 0.55 + 0.03 * k],
        "mAP": 0.3 + 0.04 * k,
        "mAP_ci": [0.25 + 0.04 * k, 0.4 + 0.04 * k],
    }


def test_the_forest_has_every_interval_in_its_place_and_marks_histoclip_and_the_linear_probe():
    labels = method_labels()
    methods = {name: scored(k) for k, name in enumerate(labels)}
    figure = figures.forest_plot(methods, labels)
    alternative = draw(figure)
    assert [axes.get_xlabel() for axes in figure.axes] == ["mAcc, 95% interval", "mAP, 95% interval"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list(reversed(labels.values()))
    for axes, metric in zip(figure.axes, ("mAcc", "mAP"), strict=True):
        drawn = {tuple(line.get_xdata()): line for line in axes.lines if line.get_linestyle() == "-"}
        for height, (name, own) in enumerate(reversed(methods.items())):
            line = drawn[tuple(own[f"{metric}_ci"])]
            assert line.get_ydata()[0] == height
            ours = name.startswith("histoclip")
            assert line.get_color() == (base.method_colour(name) if ours else base.UNCOLOURED)
        [dashed] = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert dashed.get_xdata()[0] == methods["linear_probe"][metric]
        assert colors.same_color(dashed.get_color(), base.method_colour("linear_probe"))
    last = methods["histoclip_patch"]
    low, high = last["mAcc_ci"]
    assert f"{labels['histoclip_patch']} mAcc {last['mAcc']:.3f} ({low:.3f} to {high:.3f}), mAP" in alternative


def test_the_forest_draws_what_is_there():
    """Designs are no registered methods; mAP may be undefined for a method, or for all."""
    figure = figures.forest_plot({"old": {"mAcc": 0.7, "mAcc_ci": [0.6, 0.8]}}, {"old": HOSTILE[2]})
    assert len(figure.axes) == 1
    assert "mAP" not in draw(figure)
    mixed = {"majority": scored() | {"mAP": None, "mAP_ci": None}, "top_k": scored(1)}
    figure = figures.forest_plot(mixed, method_labels())
    majority, top_k = (method_labels()[name] for name in mixed)
    assert f"{majority} mAcc 0.500 (0.400 to 0.550); {top_k}" in draw(figure)
    assert len(figure.axes[1].lines) == 2


def square(n):
    generator = np.random.default_rng(0)
    upper, p = np.triu(generator.normal(0, 0.1, (n, n)), 1), np.triu(generator.random((n, n)), 1)
    values, p, names = upper - upper.T, p + p.T, hostile(n)
    values[np.diag_indices(n)] = p[np.diag_indices(n)] = np.nan
    return pd.DataFrame(values, names, names), pd.DataFrame(p, names, names)


def mesh_of(figure):
    [mesh] = [c for c in figure.axes[0].collections if c.get_array() is not None]
    return mesh


@pytest.mark.parametrize("n", [1, 5, 14])
def test_the_comparison_map_is_line_minus_column_with_marks_where_p_is_small(n):
    differences, p = square(n)
    figure = figures.comparison_map(differences, p)
    alternative = draw(figure)
    assert figure.get_figwidth() < 7.6  # the page shows it nearly as large as it is drawn
    shown = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    for i, j in np.argwhere(~np.eye(n, dtype=bool)):
        mark = "*" if p.iloc[i, j] < 0.05 else ""
        assert shown[j + 0.5, i + 0.5] == f"{100 * differences.iloc[i, j]:+.1f}{mark}"
    if n > 1:
        names, value = differences.index, f"{differences.iloc[0, 1]:+.3f} ({p_clause(p.iloc[0, 1])})"
        assert f"{names[0]} minus {names[1]} {value}" in alternative
        assert ("*" in figure.get_suptitle()) == bool((p < 0.05).to_numpy().any())  # no legend for what cannot occur
        norm = mesh_of(figure).norm
        assert norm.vmax == -norm.vmin == pytest.approx(100 * np.nanmax(np.abs(differences)))


def test_methods_that_are_all_alike_are_pale():
    differences, p = square(3)
    assert mesh_of(figures.comparison_map(differences * 0, p)).norm.vmax == 1


def test_the_per_class_map_says_every_value():
    values = pd.DataFrame([[0.1, np.nan], [0.5, 1]], ["Top-k", "Linear probe"], [HOSTILE[0], "stroma"])
    alternative = draw(figures.per_class_map(values, "average precision"))
    assert "Top-k: $x^{$ 0.10, stroma nan; Linear probe: $x^{$ 0.50, stroma 1.00" in alternative


# Calibration


def calibrated(n_classes, n_patches=60):
    """Probabilities of two methods, constant scores of a third; the last class is never present."""
    generator = np.random.default_rng(n_classes)
    labels = generator.integers(0, 2, (n_patches, n_classes)).astype(np.uint8)
    labels[:, -1] = 0
    methods = {
        name: from_probabilities(expit(generator.normal(size=labels.shape) + 2 * labels - 1).astype(np.float32))
        for name in ("linear_probe", "histoclip_patch")
    }
    methods["top_k"] = Predictions(np.full(labels.shape, -0.3), np.zeros(labels.shape, dtype=bool))
    fits = {name: fit_calibration(labels, methods[name].scores) for name in ("linear_probe", "histoclip_patch")}
    return labels, methods, fits, hostile(n_classes), method_labels()


@pytest.mark.parametrize("n_classes", [2, 8])
def test_reliability_diagrams_pair_each_class_with_each_method_and_say_the_error(n_classes):
    labels, methods, fits, classes, names = calibrated(n_classes)
    figure = figures.reliability_diagrams(labels, methods, fits, classes, names)
    alternative = draw(figure)
    assert figure.get_figwidth() <= WIDEST
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    for number, (name, fit) in enumerate(fits.items()):
        before = expected_calibration_error(labels, methods[name].scores)
        after = expected_calibration_error(labels, fit.calibrate(methods[name].scores))
        for k, column in enumerate(classes):
            assert f"{column}, {names[name]}: {before[k]:.3f} and {after[k]:.3f}" in alternative
            assert titles[2 * k + number].endswith(f"{names[name]}\nECE {before[k]:.2f} → {after[k]:.2f}")


@pytest.mark.parametrize("n_classes", [2, 8])
def test_precision_recall_curves_mark_decisions_and_fitted_thresholds(n_classes):
    labels, methods, fits, classes, names = calibrated(n_classes)
    figure = figures.precision_recall_curves(labels, methods, fits, classes, names)
    alternative = draw(figure)
    assert figure.get_figwidth() <= WIDEST
    for name, own in methods.items():
        assert f"{names[name]} {average_precision_score(labels[:, 0], own.scores[:, 0]):.3f}" in alternative
    assert f"{classes[0]} (prevalence {labels[:, 0].mean():.2f})" in alternative
    assert f"{classes[-1]}: no positive patch" in alternative
    points = {
        (line.get_marker(), tuple(np.round(line.get_xydata()[0], 6)))
        for line in figure.axes[0].lines
        if line.get_marker() in ("o", "X") and len(line.get_xydata())
    }
    expected = set()
    for name, fit in fits.items():
        scores = methods[name].scores
        for marker, decisions in (("o", methods[name].decisions), ("X", fit.predict(scores).decisions)):
            called, truth = decisions[:, 0], labels[:, 0] == 1
            hits = (called & truth).sum()
            expected.add((marker, (round(hits / truth.sum(), 6), round(hits / called.sum(), 6))))
    assert points == expected  # Top-k predicts nothing here, and has no precision


def test_methods_may_all_be_without_a_calibration():
    labels, methods, _, classes, names = calibrated(2)
    assert "Zero-shot: Top-k" in draw(figures.precision_recall_curves(labels, methods, {}, classes, names))


def test_threshold_curves_are_those_of_every_cut():
    generator = np.random.default_rng(5)
    labels, scores = generator.integers(0, 2, (20, 12)), generator.random((20, 12)).astype(np.float32)
    scores[:2, 0], labels[:, 1] = (0.5, 0.13), 0
    figure = figures.threshold_curves(labels, scores, hostile(12))
    for axes, side in zip(figure.axes, ("accuracy", "f1"), strict=True):
        for k in (0, 1, 11):
            cuts, shown = axes.lines[k].get_data()
            for cut, value in zip(cuts[3::10], shown[3::10], strict=True):
                decided = scores[:, k] >= float(cut)
                f1 = precision_recall_fscore_support(labels[:, k], decided, average="binary", zero_division=0)[2]
                assert value == pytest.approx((labels[:, k] == decided).mean() if side == "accuracy" else f1)
        mean = np.mean([line.get_ydata() for line in axes.lines[:12]], axis=0)
        np.testing.assert_allclose(axes.lines[12].get_ydata(), mean)
    assert f"{hostile(12)[11]}: F1" in draw(figure)


# Confusion


def decided(n_classes, n_patches=200):
    """Labels and decisions; the last class is never present, and the first 20 patches have no label."""
    generator = np.random.default_rng(n_classes)
    labels = generator.random((n_patches, n_classes)) < 0.4
    labels[:, -1] = labels[:20] = False
    return labels, generator.random(labels.shape) < np.where(labels, 0.8, 0.2)


def test_confusion_grid_and_missed_class_map_say_every_count():
    (labels, decisions), classes = decided(4), hostile(4)
    counts = confusion.confusion(labels, decisions)
    alternative = draw(figures.confusion_grid(counts, classes, "HistoCLIP"))
    assert f"{classes[0]}: {counts[0, 1, 1]} true positives, {counts[0, 1, 0]} false negatives" in alternative
    rates, misses = confusion.predicted_when_missed(labels, decisions)
    alternative = draw(figures.missed_class_map(rates, misses, classes))
    assert f"{classes[0]} ({misses[0]} false negatives): {classes[1]} {rates[0, 1]:.2f}" in alternative


@pytest.mark.parametrize("n_classes", [2, 16])
def test_multilabel_confusion_map_says_every_count(n_classes):
    matrix, classes = confusion.multilabel_confusion(*decided(n_classes)), hostile(n_classes)
    figure = figures.multilabel_confusion_map(matrix, classes, "HistoCLIP")
    alternative = draw(figure)
    assert f"{classes[0]}: {matrix[0, 0]} as {classes[0]}, {matrix[0, 1]} as {classes[1]}" in alternative
    assert f"{classes[-1]}: nothing; no true label: {matrix[-1, 0]} as {classes[0]}" in alternative
    fraction = matrix[0, 0] / matrix[0].sum()
    shown = f"{matrix[0, 0]}\n{fraction:.0%}" if n_classes <= 7 else f"{matrix[0, 0]}"
    assert texts(figure.axes[0])[0] == shown


@pytest.mark.parametrize("n_groups", [1, 200])
def test_group_error_plot_names_the_worst(n_groups):
    labels, decisions = decided(4, 600)
    groups = np.array([f"$patient <b>{i % n_groups}" for i in range(600)])
    table = confusion.errors_by_group(labels, decisions, groups)
    figure = figures.group_error_plot(table)
    alternative = draw(figure)
    worst = table.iloc[0]
    assert f"{table.index[0]}: {worst['error rate']:.3f} ({worst['patches']:.0f} patches)" in alternative
    assert f"over all patches {(labels != decisions).mean():.3f}" in alternative
    assert alternative.count("patches)") == min(5, n_groups)
    assert len(figure.axes[0].collections[0].get_offsets()) == n_groups
    assert "0.000" in draw(figures.group_error_plot(confusion.errors_by_group(labels, labels, groups)))


@pytest.mark.parametrize("n_classes", [2, 16])
def test_label_set_bars_show_the_most_frequent(n_classes):
    labels, decisions = decided(n_classes)
    table = confusion.errors_by_label_set(labels, decisions, hostile(n_classes))
    figure = figures.label_set_bars(table)
    alternative = draw(figure)
    line = table.iloc[0]
    assert f"{table.index[0]} ({line['patches']} patches): exact match {line['exact match']:.2f}" in alternative
    assert len(figure.axes[0].get_yticklabels()) == min(12, len(table))
    assert (f"{len(table) - 12} rarer sets are not shown" in alternative) == (len(table) > 12)
    bars = figure.axes[0].containers[1]
    assert [bar.get_width() for bar in bars] == pytest.approx(table["exact match"].head(12).tolist())
    heights = [bar.get_y() for bar in bars]
    assert heights == sorted(heights, reverse=True)  # the most frequent on top


@pytest.mark.parametrize("n_classes", [2, 8])
def test_bias_map_marks_what_is_significant_in_each_method(n_classes):
    labels, decisions = decided(n_classes)
    biased = decisions.copy()
    biased[labels[:, 0] & ~labels[:, 1], 1] = True
    biased[~labels[:, 0] & ~labels[:, 1], 1] = False
    classes = hostile(n_classes)
    biases = {
        name: confusion.co_occurrence_bias(labels, own, np.arange(200), 100)
        for name, own in (("HistoCLIP", biased), ("Linear probe", decisions))
    }
    figure = figures.co_occurrence_bias_map(biases, classes)
    assert f"HistoCLIP, false positives of {classes[1]} by {classes[0]} +1.00" in draw(figure)
    marks = [sum("*" in text for text in texts(axes)) for axes in figure.axes[:4]]
    assert marks == [bias.found[t].sum() for t in (0, 1) for bias in biases.values()]
    assert marks[0] >= 1
    if n_classes <= 7:
        assert "+1.00*" in texts(figure.axes[0])


def test_bias_map_without_anything_to_compare():
    labels = np.zeros((20, 3), dtype=bool)
    bias = confusion.co_occurrence_bias(labels, labels, np.arange(20), 50)
    assert "Probe, none" in draw(figures.co_occurrence_bias_map({"Probe": bias}, ["a", "b", "c"]))


# Patches


def test_galleries_draw_any_name():
    patches, probabilities = masked()
    index = np.arange(12)
    assert "12 patches" in draw(figures.sample_patches(patches, index, 20, seed=0))
    alternative = draw(figures.confident_errors(patches, index, probabilities, 3))
    assert "most confident" in alternative and "false " in alternative


def test_confident_errors_are_the_most_confident_wrong_ones_of_distinct_patches():
    labels = np.array([[1, 0], [0, 0], [1, 1], [0, 1]])
    probabilities = np.array([[0.9, 0.99], [0.2, 0.6], [0.4, 0.1], [0.1, 0.8]])
    assert figures.find_confident_errors(labels, probabilities, 10) == [(0, 1), (2, 1), (1, 1)]
    assert figures.find_confident_errors(labels, probabilities, 1) == [(0, 1)]
    patches = PatchDataset("made", ["a"], ["0", "1"], np.array([[1], [0]]), Source())
    assert figures.confident_errors(patches, np.arange(2), np.array([[0.9], [0.1]]), 4) is None


def test_chosen_attention_patches_show_every_class_that_is_found():
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1], [1, 1, 0]])
    probabilities = np.array(
        [[0.9, 0.8, 0.1], [0.99, 0.1, 0.1], [0.2, 0.9, 0.7], [0, 0, 0.95], [0.1, 0.2, 0.1], [0.95, 0.99, 0.9]]
    )
    chosen = figures.choose_for_attention(labels, probabilities, 3)
    assert chosen[:2] == [0, 2]  # several labels, all right; patch 5 has an error
    assert len(set(chosen)) == 3
    assert 4 not in figures.choose_for_attention(labels, probabilities, 10)  # nothing was found in it


def test_typical_patches_come_first_where_masks_say_which_they_are():
    labels = np.ones((6, 2), np.uint8)
    probabilities = np.full((6, 2), 0.9)
    probabilities[5] = 0.1  # wrong
    gain = np.array([[0.5, 0.3], [0.9, 0.9], [0.2, np.nan], [-0.1, 0], [np.nan, np.nan], [0.21, 0.2]])
    chosen = figures.choose_for_attention(labels, probabilities, 3, gain)
    assert chosen[0] in (0, 2)  # the median of 0.4, 0.9, 0.2 and -0.05 is 0.3
    assert set(chosen[:2]) == {0, 2}
    assert not {4, 5} & set(figures.choose_for_attention(labels, probabilities, 9, gain))


# Attention


def test_attention_is_drawn_over_the_patch_and_the_alternative_says_where_it_is_highest():
    patches, probabilities = masked()
    maps = np.zeros((12, 4, 6, 6))
    maps[:, :, 5, 0] = 1
    chosen = figures.choose_for_attention(patches.labels, probabilities, 2)
    for position in chosen:
        alternative = draw(figures.attention_overlay(patches, position, maps[position], probabilities[position]))
        assert patches.files[position] in alternative
        assert f"probability {probabilities[position, 3]:.2f}, most attention at the bottom left" in alternative


@pytest.fixture(scope="module", params=[2, 8])
def attended(request):
    """Masked patches, maps of every kind, and their scores; the masks show the first two classes only."""
    patches, _ = masked(request.param, 10)
    generator = np.random.default_rng(0)
    maps = {name: generator.random((*patches.labels.shape, 5, 5)).astype(np.float32) for name in MAP_LABELS}
    return patches, maps, score_maps(maps, patches, np.arange(10))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_map_agreement_says_the_numbers(attended):
    patches, _, scores = attended
    figure = figures.map_agreement(scores, patches.classes)
    alternative = draw(figure)
    means = class_means(scores.ap)[:, 0]
    said = ", ".join(f"{label.lower()} {v:.2f}" for label, v in zip(MAP_LABELS.values(), means, strict=True))
    assert f"per-pixel AP, {patches.classes[0]}: {said}" in alternative
    assert "nan" not in alternative
    dots = {line.get_label(): line.get_xdata() for line in figure.axes[2].lines}
    np.testing.assert_allclose(dots["Text similarity"][:2], class_means(scores.ap)[scores.maps.index("similarity"), :2])
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert ticks[0].endswith(f"({(~np.isnan(scores.area[:, 0])).sum()})")


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_attention_cases_show_patch_attention_and_the_probe_with_their_scores(attended):
    patches, maps, scores = attended
    probabilities = np.random.default_rng(1).random(scores.area.shape)
    for cases in best_and_worst(scores.gain(), 2):
        figure = figures.attention_cases(patches, np.arange(10), maps, scores, probabilities, cases, "best")
        assert len(figure.axes) == 3 * len(cases)
        alternative = draw(figure)
        for number, shown in ((1, "trained"), (2, "probe_unit")):
            i, k = cases[0]
            drawn = figure.axes[number].images[1].get_array()
            np.testing.assert_allclose(drawn, heat_over(maps[shown][i, k], 40))
            assert figure.axes[number].get_title().startswith(MAP_LABELS[shown].lower())
        for i, k in cases:
            about = f"25% of the patch, p = {probabilities[i, k]:.2f}"
            assert f"{patches.files[i]}, {patches.classes[k]}: {about}" in alternative
            probe = scores.maps.index("probe_unit")
            mass = f"AP {scores.ap[probe, i, k]:.2f}, {scores.mass[probe, i, k]:.0%} in the mask"
            assert f"linear probe on unit tokens, {mass}" in alternative
    assert figures.attention_cases(patches, np.arange(10), maps, scores, probabilities, [], "best") is None


# The thumbnail of a run

WIDTH, HEIGHT = SIZE
HALF = (WIDTH - GAP) // 2


def spot(row, column):
    attention = np.zeros((7, 7))
    attention[row, column] = 1
    return attention


def test_thumbnail_has_the_patch_on_the_left_and_the_attention_on_the_right():
    picture = side_by_side(np.full((224, 224, 3), 100, np.uint8), spot(1, 3))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert (picture[:, :HALF] == 100).all()
    assert (picture[:, HALF : HALF + GAP] == 255).all()
    brightness = picture[:, -HALF:].sum(axis=2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert row / HEIGHT == pytest.approx(1.5 / 7, abs=0.02)
    assert column / HALF == pytest.approx(0.5, abs=0.02)
    assert side_by_side(np.zeros((64, 64, 3), np.uint8), np.zeros((7, 7))).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(("chosen", "grey"), [([1, 0], 80), ([], 60)])
def test_thumbnail_shows_the_first_chosen_patch_else_the_first(tmp_path, chosen, grey):
    class Plain:
        def image(self, index):
            return np.full((50, 80, 3), 20 * (index + 1), dtype=np.uint8)

    patches = PatchDataset("made", ["a", "b"], [f"{k}.png" for k in range(6)], np.ones((6, 2), np.uint8), Plain())
    maps = np.stack([[spot(0, 3), spot(6, 3)]] * 2)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    path = tmp_path / "thumbnail.png"
    figures.save_thumbnail(path, patches, np.array([2, 3]), maps, probabilities, chosen)
    image = Image.open(path)
    assert (image.format, image.size) == ("PNG", SIZE)
    pixels = np.asarray(image.convert("RGB")).astype(int)
    assert abs(pixels[:, :HALF].mean() - grey) < 3
    right = pixels[:, -HALF:].sum(axis=(1, 2))
    assert (right[: HEIGHT // 2].sum() > right[HEIGHT // 2 :].sum()) == (not chosen)  # of its most probable class
    assert len(list(tmp_path.iterdir())) == 1


# Slides


def slide_tiles(classes):
    y, x = (axis.ravel() * 100 for axis in np.mgrid[1:5, 2:8])
    tiles = pd.DataFrame({"x": x, "y": y, "width": 100, "height": 100})
    return tiles.assign(**{f"prob_{name}": np.linspace(0, 1, len(x)) for name in classes})


@pytest.mark.parametrize("n_classes", [1, 4, 11])
def test_slide_maps_show_every_class_beside_its_mask(n_classes):
    classes = hostile(n_classes)
    overview, mask = np.full((60, 100, 3), 230, np.uint8), np.ones((30, 50), np.uint8)
    drawn = figures.slide_maps(overview, slide_tiles(classes), classes, (1000, 600), 0.5, mask)
    draw(drawn)
    assert drawn.get_figwidth() <= WIDEST
    assert len([axes for axes in drawn.axes if axes.images]) == 2 * n_classes
    assert "the class covers 100.0% of the slide in the mask" in drawn.alternative
    [bar] = drawn.axes[0].lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(100 / 500 * 100)  # 100 of 500 micrometres, on 100 pixels
    assert texts(drawn.axes[0]) == ["100 µm"]


def test_tiles_are_painted_where_they_lie():
    from histoclip_lib.report.figures.slides import painted

    tiles = slide_tiles(["a"])
    picture = painted(tiles, tiles.prob_a.to_numpy(), (60, 100), (1000, 600))
    assert np.isnan(picture[:10]).all() and np.isnan(picture[:, 80:]).all()
    assert picture[15, 25] == 0 and picture[45, 75] == 1
    assert (~np.isnan(picture)).sum() == 40 * 60


@pytest.mark.parametrize("n_slides", [1, 3, 200])
def test_slide_burdens_are_drawn_with_intervals(n_slides):
    classes, shares = hostile(5), np.linspace(0, 1, n_slides)
    slides = pd.DataFrame({"slide": [f"{i}$.tif" for i in range(n_slides)]})
    for name in classes:
        slides[f"share_{name}"], slides[f"share_low_{name}"], slides[f"share_high_{name}"] = (
            shares,
            shares - 0.1,
            np.nan,
        )
    drawn = figures.slide_burdens(slides, classes)
    draw(drawn)
    assert drawn.get_figwidth() <= WIDEST
    assert drawn.alternative.startswith(f"Share of the tissue that is positive, {n_slides} slide")
    assert ("median 0.50" in drawn.alternative) == (n_slides > 30)
