"""Comparisons within a run and between two runs: what is said follows from intervals and tests."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from small_runs import make_patches, make_run, predict

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation import comparisons
from histoclip_lib.evaluation.artifacts import (
    RunMetrics,
    Score,
    ValidationPredictions,
    evaluate_methods,
    read_predictions,
)
from histoclip_lib.evaluation.comparisons import (
    ALIKE,
    BETTER,
    OURS,
    WORSE,
    align,
    compare_runs,
    correction_note,
    differences_table,
    disagreements,
    finding,
    finding_sentence,
)
from histoclip_lib.evaluation.methods import label_of, labels
from histoclip_lib.evaluation.metrics import point_metrics
from histoclip_lib.evaluation.text import p_text
from histoclip_lib.evaluation.uncertainty import (
    Comparison,
    Difference,
    accuracy_gap,
    compare,
    draw_units,
    evaluate,
    holm,
    resampled_metrics,
)

VAL = np.arange(0, 200, 2)


def make(groups=True):
    labels = np.random.default_rng(0).integers(0, 2, (200, 3), dtype=np.uint8)
    units = np.array([f"patient {index // 10}" for index in range(200)]) if groups else None
    return PatchDataset("folder", list("abc"), [f"{index}.png" for index in range(200)], labels, None, groups=units)


def guesses(patches, accuracy, seed):
    random = np.random.default_rng(seed)
    labels = patches.labels[VAL]
    right = np.where(random.random(labels.shape) < accuracy, labels, 1 - labels).astype(bool)
    return Predictions(right + 0.3 * random.normal(size=labels.shape), right)


def all_methods(patches, ours=0.9, theirs=0.6):
    return {name: guesses(patches, ours if name == OURS else theirs, seed) for seed, name in enumerate(labels())}


# One rule


@pytest.mark.parametrize(
    ("low", "high", "p", "says"),
    [
        (0.01, 0.2, 0.01, BETTER),
        (-0.2, -0.01, 0.01, WORSE),
        (-0.01, 0.2, 0.01, BETTER),
        (0.01, 0.2, 0.06, ALIKE),
        (-0.2, -0.01, 0.06, ALIKE),
        (0.01, 0.2, np.nan, BETTER),  # no test was made
        (np.nan, np.nan, np.nan, ALIKE),
    ],
)
def test_a_difference_counts_by_its_p_or_where_nothing_was_tested_by_its_interval(low, high, p, says):
    assert finding(Difference((low + high) / 2, low, high, p)) == says


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0001, "< 0.001"),
        (0.001, "0.001"),
        (0.0034, "0.003"),
        (0.171, "0.17"),
        (0.0321, "0.032"),
        (0.05, "0.050"),
        (0.996, "1"),
        (0.99, "0.99"),
        (np.nan, "—"),
    ],
)
def test_p_has_at_most_three_decimals(p, text):
    assert p_text(p) == text


# Within a run


def test_every_other_method_is_compared_in_the_order_of_the_table():
    patches = make()
    methods = all_methods(patches)
    found = comparisons.against_every_method(dict(reversed(methods.items())), patches, VAL, 50, 0)
    assert list(found) == [name for name in labels() if name != OURS]
    single = compare(patches.labels[VAL], methods[OURS], methods["top_k"], patches.groups[VAL], 50, 0)
    assert replace(found["top_k"].macc, p=0) == replace(single.macc, p=0)
    assert found["top_k"].macc.p >= single.macc.p


def test_accuracy_gap_equals_that_of_the_full_comparison():
    patches = make()
    one, other = guesses(patches, 0.8, 0), guesses(patches, 0.7, 1)
    arguments = (patches.labels[VAL], one, other, patches.groups[VAL], 100, 0)
    assert vars(accuracy_gap(*arguments)) == pytest.approx(vars(compare(*arguments).macc))


def test_differences_table_corrects_p_over_its_lines():
    patches = make()
    methods = all_methods(patches, 0.75, 0.65)
    found = comparisons.against_every_method(methods, patches, VAL, 99, 0)
    table = differences_table(found)
    assert table.index.tolist() == [label_of(name) for name in found]
    alone = [compare(patches.labels[VAL], methods[OURS], methods[name], patches.groups[VAL], 99, 0) for name in found]
    for metric, key in (("mAcc", "macc"), ("mAP", "map")):
        gaps = [getattr(comparison, key) for comparison in found.values()]
        expected = [f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})" for gap in gaps]
        assert table[metric].tolist() == expected
        assert table[f"p, {metric}"].tolist() == [
            p_text(p) for p in holm(np.array([getattr(own, key).p for own in alone]))
        ]


def test_differences_table_has_dashes_for_an_undefined_map():
    undefined = Difference(np.nan, np.nan, np.nan)
    found = {"majority": Comparison(Difference(0.1, 0.05, 0.15, 0.01), undefined)}
    assert differences_table(found).iloc[0].tolist() == ["+0.100 (+0.050 to +0.150)", "0.010", "—", "—"]


@pytest.mark.parametrize(("units", "compared", "said"), [(8, 7, True), (8, 6, False), (10, 13, False), (11, 13, False)])
def test_correction_note_says_where_groups_are_too_few(units, compared, said):
    gap = Difference(0.1, 0.05, 0.15, 0.01)
    found = dict.fromkeys(list(labels())[:compared], Comparison(gap, gap))
    note = correction_note(found, np.arange(40) % units, resamples=1000)
    assert f"for {compared} comparisons" in note
    assert (f"With {units} groups the smallest possible p is {p_text(2 / 2**units)}" in note) == said


@pytest.mark.parametrize(
    ("units", "resamples", "said"), [(20, 100, True), (20, 139, True), (20, 140, False), (9, 100, False)]
)
def test_correction_note_says_where_permutations_are_too_few(units, resamples, said):
    gap = Difference(0.1, 0.05, 0.15, 0.01)
    note = correction_note(dict.fromkeys(list(labels())[:7], Comparison(gap, gap)), np.arange(40) % units, resamples)
    assert (f"mAP is tested by {resamples} permutations" in note) == said


def test_all_pairs_are_row_minus_column_with_one_correction_for_all():
    patches = make()
    methods = {
        name: guesses(patches, 0.5 + 0.06 * k, k) for k, name in enumerate(("top_k", "knn", "mlp", "linear_probe"))
    }
    differences, p = comparisons.all_pairs(methods, patches, VAL, 0)
    names = [name for name in labels() if name in methods]
    for axis in (differences.index, differences.columns, p.index, p.columns):
        assert list(axis) == [label_of(name) for name in names]
    truth, units = patches.labels[VAL], patches.groups[VAL]
    single = {}
    for i in range(4):
        assert np.isnan([differences.iloc[i, i], p.iloc[i, i]]).all()
        for j in range(4):
            if i != j:
                one, other = methods[names[i]], methods[names[j]]
                scored = [evaluate(truth, method, list("abc"), units, 10, 0)["mAcc"] for method in (one, other)]
                assert differences.iloc[i, j] == pytest.approx(scored[0] - scored[1])
                single[i, j] = accuracy_gap(truth, one, other, units, 10, 0).p
    upper = [(i, j) for i, j in single if i < j]
    adjusted = holm(np.array([single[pair] for pair in upper]))
    for (i, j), value in zip(upper, adjusted, strict=True):
        assert p.iloc[i, j] == p.iloc[j, i] == pytest.approx(value)


def test_all_pairs_swap_patches_where_groups_are_not_known():
    methods = all_methods(make())
    by_group, by_patch = (comparisons.all_pairs(methods, make(groups), VAL, 0) for groups in (True, False))
    assert by_group[0].equals(by_patch[0])
    assert not by_group[1].equals(by_patch[1])


def test_a_single_method_has_no_pairs():
    differences, p = comparisons.all_pairs({"majority": guesses(make(), 0.5, 0)}, make(), VAL, 0)
    assert differences.shape == p.shape == (1, 1)
    assert np.isnan(differences.iloc[0, 0])


# The finding of a run


def results_of(tmp_path, **accuracy):
    """Return metrics and predictions of methods with given accuracies."""
    patches = make()
    methods = {name: guesses(patches, value, k) for k, (name, value) in enumerate(accuracy.items())}
    units, truth = patches.groups[VAL], patches.labels[VAL]
    predictions = ValidationPredictions(np.array(patches.files)[VAL], patches.classes, truth, units, methods)
    scores = {
        name: {"mAcc": Score(values["mAcc"], None)}
        for name, values in evaluate_methods(methods, patches, VAL, 10, 0).items()
    }
    return RunMetrics(tmp_path, "demo", "folder", "lite0-minilm", "grouped", "", scores), predictions


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        ((0.95, 0.7, 0.5), f"HistoCLIP with patch tokens {BETTER} the linear probe on the same features (mAcc "),
        ((0.7, 0.95, 0.5), f"HistoCLIP with patch tokens {WORSE} the linear probe on the same features (mAcc "),
        ((0.8, 0.8, 0.5), "and the linear probe are not significantly different on this data (mAcc "),
        ((0.9, 0.9, 0.5), "; HistoCLIP is far above the best zero-shot strategy (Top-k, "),
        ((0.9, 0.9, 0.9), f"; HistoCLIP {ALIKE} the best zero-shot strategy (Top-k, "),
        ((0.5, 0.9, 0.9), f"; HistoCLIP {WORSE} the best zero-shot strategy (Top-k, "),
    ],
)
def test_finding_sentence_compares_with_the_probe_and_with_zero_shot(tmp_path, accuracy, said):
    metrics, predictions = results_of(tmp_path, **dict(zip((OURS, "linear_probe", "top_k"), accuracy, strict=True)))
    sentence = finding_sentence(metrics, predictions)
    assert said in sentence
    assert f"(mAcc {metrics.scores[OURS].value:.3f} and {metrics.scores['linear_probe'].value:.3f})" in sentence
    assert sentence.count(".") == 4  # one sentence with three numbers


def test_sentences_and_the_table_of_differences_agree(tmp_path):
    names = list(labels())
    metrics, predictions = results_of(tmp_path, **{name: 0.6 + 0.01 * k for k, name in enumerate(names)})
    patches = make()
    table = comparisons.against_every_method(predictions.methods, patches, VAL, comparisons.RESAMPLES, metrics.seed)
    said = comparisons.accuracy_against(predictions, metrics.seed)
    assert said == {name: own.macc for name, own in table.items()}
    assert {finding(gap) for gap in said.values()} >= {ALIKE, BETTER}


def test_finding_sentence_names_the_best_strategy(tmp_path):
    metrics, predictions = results_of(tmp_path, **{OURS: 0.9, "baseline": 0.4, "power_set": 0.7, "top_k": 0.5})
    assert comparisons.best_zero_shot(metrics) == "power_set"
    sentence = finding_sentence(metrics, predictions)
    assert sentence.endswith(f"the best zero-shot strategy (Power-set, {metrics.scores['power_set'].value:.3f}).")
    assert "; HistoCLIP is far above" in sentence


def test_finding_sentence_says_where_too_few_groups_leave_nothing_significant(tmp_path):
    metrics, predictions = results_of(tmp_path, **{OURS: 0.95, "linear_probe": 0.4, "top_k": 0.4})
    few = dataclasses.replace(predictions, groups=np.arange(len(VAL)) % 5)
    sentence = finding_sentence(metrics, few)
    assert "are not significantly different" in sentence
    assert sentence.endswith("With 5 groups no difference can be significant after correction.")


def test_finding_sentence_without_predictions_says_that_nothing_was_tested(tmp_path):
    metrics, _ = results_of(tmp_path, **{OURS: 0.9, "linear_probe": 0.4})
    assert "the linear probe 0." in finding_sentence(metrics, None)
    assert finding_sentence(metrics, None).endswith("; differences were not tested.")


def test_finding_sentence_of_a_run_without_the_head_says_so(tmp_path):
    assert "no results of HistoCLIP" in finding_sentence(*results_of(tmp_path, majority=0.7))


# Two runs


def simple(truth, decisions, files=None, classes=None, groups=None):
    """Return predictions with one method that decides as given."""
    files = np.array(files or [f"{k:03d}" for k in range(len(truth))], dtype=object)
    truth, decisions = np.asarray(truth, np.uint8), np.asarray(decisions, bool)
    method = Predictions(np.where(decisions, 0.9, 0.1), decisions)
    return ValidationPredictions(files, classes or list("abc")[: truth.shape[1]], truth, groups, {OURS: method})


@pytest.fixture(scope="module")
def common():
    """Two runs on the same patches; the majority and the Baseline do not depend on the seed."""
    patches = make_patches()
    names = ("majority", "baseline", "power_set", "linear_probe", "histoclip_global", OURS)
    return align(
        *(
            ValidationPredictions(
                np.array(patches.files, dtype=object),
                patches.classes,
                patches.labels,
                patches.groups,
                {name: predict(patches.labels, k if k < 2 else 100 * seed + k, 0.25) for k, name in enumerate(names)},
            )
            for seed in (0, 1)
        )
    )


def test_runs_are_aligned_on_the_patches_they_share(tmp_path):
    folders = (
        make_run(tmp_path, "one", val=range(16)),
        make_run(tmp_path, "two", val=[20, 15, 10, 9, 8, 23], seed=1),
    )
    one, two = (read_predictions(folder / "predictions.parquet") for folder in folders)
    found = align(one, two)
    assert list(found.first.files) == list(found.second.files) == ["008.png", "009.png", "010.png", "015.png"]
    assert (found.first.labels == make_patches().labels[[8, 9, 10, 15]]).all()
    assert (found.only_first, found.only_second, found.relabelled) == (12, 2, 0)
    place = list(two.files).index("010.png")
    assert (found.second.methods[OURS].scores[2] == two.methods[OURS].scores[place]).all()


def test_classes_in_another_order_are_matched_by_name():
    one = simple([[1, 0], [1, 1]], [[1, 0], [1, 1]], classes=["a", "b"])
    two = simple([[0, 1], [1, 1]], [[0, 1], [0, 1]], classes=["b", "a"])
    found = align(one, two)
    assert found.second.classes == ["a", "b"]
    assert found.second.methods[OURS].decisions.tolist() == [[True, False], [True, False]]


def test_patches_with_other_labels_are_left_out_and_counted():
    one = simple([[1, 0], [1, 1], [0, 0]], [[1, 0]] * 3)
    two = simple([[1, 0], [1, 0], [0, 0]], [[1, 0]] * 3)
    found = align(one, two)
    assert (list(found.first.files), found.relabelled) == (["000", "002"], 1)
    assert align(simple([[1, 0]], [[1, 0]]), simple([[0, 0]], [[1, 0]])) is None
    assert align(simple([[1, 0]], [[1, 0]], ["a"]), simple([[1, 0]], [[1, 0]], ["b"])) is None


def test_runs_of_other_classes_or_without_the_head_are_refused():
    one = simple([[1, 0]], [[1, 0]])
    with pytest.raises(HistoCLIPError, match="different classes"):
        align(one, simple([[1, 0]], [[1, 0]], classes=["a", "x"]))
    with pytest.raises(HistoCLIPError, match="no predictions of histoclip_patch"):
        align(one, ValidationPredictions(one.files, one.classes, one.labels, None, {}))


def test_gaps_are_the_second_run_minus_the_first(common):
    found = compare_runs(common)
    truth, classes = common.first.labels, common.first.classes
    assert found.resamples == 1000
    for gaps in found.methods:
        one, other = (point_metrics(truth, run.methods[gaps.method], classes) for run in (common.first, common.second))
        for gap, metric in ((gaps.macc, "mAcc"), (gaps.mean_ap, "mAP")):
            assert (gap.first, gap.second) == pytest.approx((one[metric], other[metric]))
            assert gap.value == pytest.approx(other[metric] - one[metric])
            assert gap.interval[0] - 1e-12 <= gap.value <= gap.interval[1] + 1e-12
        assert gaps.same == (gaps.method in ("majority", "baseline"))
        assert gaps.same == (gaps.macc.interval == gaps.mean_ap.interval == (0, 0))
    ours = found.methods[-1]
    assert ours.method == OURS
    assert found.test.value == pytest.approx(ours.macc.value)
    one, other = (point_metrics(truth, run.methods[OURS], classes) for run in (common.first, common.second))
    for line in found.classes:
        values = [part["per_class"][line.name] for part in (one, other)]
        assert (line.accuracy.first, line.accuracy.second) == pytest.approx(tuple(v["accuracy"] for v in values))
        assert line.ap.value == pytest.approx(values[1]["ap"] - values[0]["ap"])


def test_both_runs_are_resampled_by_group_with_the_same_draws(common):
    draws = draw_units(common.first.groups, 1000, 0)
    one, other = (
        resampled_metrics(common.first.labels, run.methods[OURS], draws) for run in (common.first, common.second)
    )
    ours = compare_runs(common).methods[-1]
    for gap, metric in ((ours.macc, "mAcc"), (ours.mean_ap, "mAP")):
        assert gap.interval == pytest.approx(np.quantile(other[metric] - one[metric], [0.025, 0.975]))


def test_many_patches_reduce_the_number_of_resamples(common, monkeypatch):
    cells = common.first.labels.size * 2 * 4  # four methods differ
    monkeypatch.setattr(comparisons, "MOST_CELLS", 400 * cells)
    assert compare_runs(common).resamples == 400
    monkeypatch.setattr(comparisons, "MOST_CELLS", 1)
    assert compare_runs(common).resamples == comparisons.FEWEST_RESAMPLES


def test_which_run_is_right_is_counted_by_class():
    truth = [[1, 0], [1, 0], [0, 1], [0, 0]]
    one, other = [[1, 1], [1, 0], [0, 1], [0, 0]], [[1, 1], [0, 0], [1, 1], [1, 1]]
    first, second = compare_runs(align(simple(truth, one), simple(truth, other))).classes
    assert (first.both, first.only_first, first.only_second, first.neither) == (1, 3, 0, 0)
    assert (second.both, second.only_first, second.only_second, second.neither) == (2, 1, 0, 1)
    first, _ = compare_runs(align(simple(truth, other), simple(truth, one))).classes
    assert (first.only_first, first.only_second) == (0, 3)


def test_a_class_that_is_never_present_has_no_precision():
    truth = [[1, 0], [0, 0], [1, 0]]
    found = compare_runs(align(simple(truth, [[1, 0]] * 3), simple(truth, [[0, 0]] * 3)))
    gap = found.classes[1].ap
    assert (gap.first, gap.second, gap.value, gap.interval) == (None, None, None, None)
    nothing = [[0, 0], [0, 0]]
    found = compare_runs(align(simple(nothing, nothing), simple(nothing, [[1, 0]] * 2)))
    assert found.methods[0].mean_ap.value is None


def test_disagreements_are_the_widest_with_no_patch_twice_for_one_run(common):
    found = disagreements(common, 3)
    truth = common.first.labels.astype(bool)
    for first_is_right in (True, False):
        cases = [case for case in found if case.first_is_right == first_is_right]
        assert 0 < len(cases) <= 3
        assert len({case.place for case in cases}) == len(cases)
        widths = [abs(case.first - case.second) for case in cases]
        assert widths == sorted(widths, reverse=True)
        for case in cases:
            cell = case.place, case.class_number
            right = [run.methods[OURS].decisions[cell] == truth[cell] for run in (common.first, common.second)]
            assert right == [first_is_right, not first_is_right]
            assert case.first == common.first.methods[OURS].scores[cell]
    assert disagreements(align(common.first, common.first), 3) == []
