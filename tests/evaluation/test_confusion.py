import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.evaluation.confusion import (
    bias_note,
    co_occurrence_bias,
    confusion,
    errors_by_group,
    errors_by_label_set,
    multilabel_confusion,
    predicted_when_missed,
    rates_table,
    recall_by_area,
)
from histoclip_lib.report.html import markdown_to_html


@st.composite
def labelled(draw):
    """Labels and decisions of a few patches; some classes may be always or never present."""
    n_patches, n_classes = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    prevalence, rate = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])), draw(st.sampled_from([0.0, 0.3, 0.6, 1.0]))
    labels = (generator.random((n_patches, n_classes)) < prevalence).astype(np.uint8)
    return labels, generator.random(labels.shape) < rate


@given(labelled())
@settings(max_examples=40)
def test_confusion_equals_scikit_learn(case):
    labels, decisions = case
    expected = [confusion_matrix(labels[:, k], decisions[:, k], labels=[0, 1]) for k in range(labels.shape[1])]
    assert np.array_equal(confusion(labels, decisions), expected)


def test_recall_by_area_counts_each_label_with_a_mask_once_and_has_wilsons_intervals():
    labels = np.array([[1, 1], [1, 0], [1, 1], [0, 1], [1, 0]])
    decisions = np.array([[0, 1], [1, 1], [1, 0], [0, 1], [0, 0]], dtype=bool)
    area = np.array([[0.02, 1.0], [0.05, 0], [0.6, 0.03], [0, 0.3], [np.nan, np.nan]])
    found = recall_by_area(labels, decisions, area, ["a", "b"])
    everything = found[found["class"] == "all classes"]
    assert everything["area"].tolist() == ["0% to 5%", "5% to 10%", "20% to 50%", "50% to 100%"]
    assert everything["present"].tolist() == [2, 1, 1, 2]
    assert everything["found"].tolist() == [0, 1, 1, 2]
    assert found[found["class"] == "a"]["present"].sum() == 3
    low, high = everything[["low", "high"]].iloc[3]
    assert (low, high) == pytest.approx((2 / (2 + 1.959964**2), 1))  # Wilson's for n of n: n / (n + z^2)


@given(labelled())
@settings(max_examples=20)
def test_recall_by_area_and_sensitivity_agree_with_the_confusion_matrices(case):
    labels, decisions = case
    classes = [f"class {k}" for k in range(labels.shape[1])]
    areas = np.random.default_rng(0).random(labels.shape)
    found = recall_by_area(labels, decisions, areas, classes).groupby("class")[["present", "found"]].sum()
    for name, counts in zip(classes, confusion(labels, decisions), strict=True):
        total = counts[1].sum()
        assert (found.loc[name].tolist() if total else [0, 0]) == [total, counts[1, 1]]
        said = rates_table(labels, decisions, classes).loc[name]
        assert said["sensitivity"].endswith(f"{counts[1, 1]} of {total}" if total else "—")
        assert said["specificity"].endswith(f"{counts[0, 0]} of {counts[0].sum()}" if counts[0].sum() else "—")


def test_predicted_when_missed_by_hand():
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    decisions = np.array([[0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)
    rates, misses = predicted_when_missed(labels, decisions)
    assert misses.tolist() == [2, 0, 0]
    assert rates[0].tolist() == [0, 0.5, 0, 0.5]  # class 0 was missed twice: once for class 1, once for nothing
    assert np.isnan(rates[1:]).all()


@given(labelled())
@settings(max_examples=40)
def test_predicted_when_missed_equals_a_plain_loop(case):
    labels, decisions = case
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


@pytest.mark.parametrize(
    ("truth", "decision", "cells"),
    [
        ([1, 1, 0, 0], [1, 0, 0, 0], [(0, 0), (1, 4)]),  # category 1: a miss and no invention
        ([1, 1, 0, 0], [0, 0, 0, 0], [(0, 4), (1, 4)]),
        ([1, 1, 0, 0], [1, 1, 1, 0], [(0, 0), (1, 1), (0, 2), (1, 2)]),  # category 2: an invention and no miss
        ([1, 1, 1, 0], [1, 0, 0, 1], [(0, 0), (1, 3), (2, 3)]),  # category 3: both
        ([1, 1, 0, 0], [1, 0, 1, 1], [(0, 0), (1, 2), (1, 3)]),  # here the package mlcm adds (0, 3), not (1, 3)
        ([0, 0, 0, 0], [0, 1, 0, 1], [(4, 1), (4, 3)]),
        ([0, 0, 0, 0], [0, 0, 0, 0], [(4, 4)]),
        ([0, 1, 1, 0], [0, 1, 1, 0], [(1, 1), (2, 2)]),
    ],
)
def test_multilabel_confusion_of_one_patch(truth, decision, cells):
    matrix = multilabel_confusion(np.array([truth]), np.array([decision]))
    assert sorted(map(tuple, np.argwhere(matrix).tolist())) == sorted(cells)
    assert matrix.max() == 1


def test_multilabel_confusion_equals_the_packages_of_its_authors_and_of_others():
    """What mlcm 0.0.1 and mlcm-fixed 0.1.0 give for these 40 patches, each a truth and a prediction of three bits."""
    pairs = (
        "011 101, 100 011, 110 010, 010 110, 010 001, 011 111, 001 111, 111 000, 100 011, 100 011, 001 100, 000 101, "
        "101 110, 001 101, 000 001, 001 110, 110 110, 101 011, 101 000, 001 010, 010 011, 001 010, 010 101, 111 010, "
        "001 100, 110 110, 000 011, 111 100, 011 110, 001 101, 111 001, 111 110, 001 110, 101 000, 111 001, 011 011, "
        "000 011, 001 000, 111 000, 100 110"
    )
    bits = np.array([[list(map(int, word)) for word in pair.split()] for pair in pairs.split(", ")])
    expected = [[6, 5, 3, 8], [4, 10, 3, 5], [9, 6, 9, 8], [1, 2, 4, 0]]
    assert multilabel_confusion(bits[:, 0], bits[:, 1]).tolist() == expected


def test_multilabel_confusion_of_single_labels_is_the_confusion_matrix():
    truth, answer = np.random.default_rng(0).integers(0, 5, (2, 300))
    matrix = multilabel_confusion(np.eye(5)[truth], np.eye(5)[answer])
    assert np.array_equal(matrix[:5, :5], confusion_matrix(truth, answer))
    assert matrix.sum() == 300


@given(labelled())
@settings(max_examples=60)
def test_multilabel_confusion_holds_every_label_and_every_false_positive(case):
    labels, decisions = case[0].astype(bool), case[1]
    matrix = multilabel_confusion(labels, decisions)
    n_classes = labels.shape[1]
    assert np.array_equal(np.diag(matrix)[:n_classes], (labels & decisions).sum(axis=0))
    assert matrix[-1, -1] == (~labels & ~decisions).all(axis=1).sum()
    assert np.array_equal(matrix[-1, :-1], decisions[~labels.any(axis=1)].sum(axis=0))
    nothing_invented = ~(decisions & ~labels).any(axis=1)
    assert np.array_equal(matrix[:-1, -1], (labels & ~decisions)[nothing_invented].sum(axis=0))


def test_errors_by_group_by_hand():
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 1], [0, 1]])
    decisions = np.array([[1, 0], [0, 1], [0, 0], [1, 0], [0, 1]], dtype=bool)
    table = errors_by_group(labels, decisions, np.array(["x", "y", "x", "y", "z"]))
    assert table.index.tolist() == ["y", "x", "z"]
    assert table["patches"].tolist() == [2, 2, 1]
    assert table["error rate"].tolist() == [0.75, 0, 0]
    assert table["mAcc"].tolist() == [0.25, 1, 1]
    assert table["share of errors"].tolist() == [1, 0, 0]
    perfect = errors_by_group(labels, labels, np.array(["x", "y", "x", "y", "z"]))
    assert (perfect["share of errors"] == 0).all()


def test_errors_by_group_need_groups():
    with pytest.raises(HistoCLIPError, match="has none"):
        errors_by_group(np.eye(2), np.eye(2), None)


def test_errors_by_label_set_by_hand():
    labels = np.array([[1, 1, 0]] * 5 + [[0, 0, 0]] * 2 + [[0, 0, 1]])
    decisions = np.array(
        [[1, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1], [0, 0, 1]], dtype=bool
    )
    table = errors_by_label_set(labels, decisions, ["a", "b", "c"])
    assert table.index.tolist() == ["a + b", "none", "c"]
    assert table["patches"].tolist() == [5, 2, 1]
    assert table["exact match"].tolist() == [0.2, 0.5, 1]
    assert table["mAcc"].tolist() == pytest.approx([9 / 15, 4 / 6, 1])
    assert table["most common wrong prediction"].tolist() == ["a", "b + c", ""]
    assert table["patches with it"].tolist() == [2, 1, 0]


def pairs(n_classes):
    return [(a, b) for a in range(n_classes) for b in range(n_classes) if a != b]


@given(labelled())
@settings(max_examples=40)
def test_gaps_equal_a_plain_loop(case):
    labels, decisions = case
    bias = co_occurrence_bias(labels, decisions, np.arange(len(labels)), 20)
    for a, b in pairs(labels.shape[1]):
        for t in (0, 1):
            sides = [decisions[(labels[:, b] == t) & (labels[:, a] == present), b] for present in (0, 1)]
            assert bias.counts[t, :, a, b].tolist() == [len(side) for side in sides]
            if all(len(side) for side in sides):
                assert bias.gaps[t, a, b] == pytest.approx(sides[1].mean() - sides[0].mean())
                assert bias.rates[t, :, a, b] == pytest.approx([side.mean() for side in sides])
            else:
                assert np.isnan(bias.gaps[t, a, b])
    assert np.isnan(np.diagonal(bias.gaps, axis1=1, axis2=2)).all()
    assert np.array_equal(np.isnan(bias.low), np.isnan(bias.high))


def made(n_patches=300, n_classes=3, effect=0.0, seed=0):
    """Decisions that are right four times in five; class 1 is invented more often, by `effect`, beside class 0."""
    generator = np.random.default_rng(seed)
    labels = generator.random((n_patches, n_classes)) < 0.5
    chance = np.where(labels, 0.8, 0.2)
    chance[:, 1] += effect * (labels[:, 0] & ~labels[:, 1])
    return labels, generator.random(labels.shape) < chance


def test_a_planted_bias_is_found_and_no_other():
    labels, decisions = made(effect=0.5)
    bias = co_occurrence_bias(labels, decisions, np.arange(300))
    assert np.argwhere(bias.found).tolist() == [[0, 0, 1]]
    assert bias.low[0, 0, 1] < 0.5 < bias.high[0, 0, 1]
    note = bias_note(bias, ["tumor", "stroma", "necrosis"], "HistoCLIP")
    assert "1 of 12 differences exclude zero" in note
    rates, counts = bias.rates[0, :, 0, 1], bias.counts[0, :, 0, 1]
    assert "among patches without stroma, it is falsely predicted" in note
    assert f"{rates[1]:.0%} of {counts[1]} with tumor" in note
    assert f"{rates[0]:.0%} of {counts[0]} without tumor" in note
    assert f"difference {bias.gaps[0, 0, 1]:+.2f}" in note


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_gap_is_named_whichever_its_sign(sign):
    labels, decisions = made(600, seed=3)
    decisions[~labels[:, 1], 1] = labels[~labels[:, 1], 0] == (sign > 0)  # a gap of one
    among = labels[:, 2] & labels[:, 1]
    decisions[among, 2] &= np.arange(among.sum()) % 2 == 0  # a smaller one in recall
    bias = co_occurrence_bias(labels, decisions, np.arange(600))
    assert bias.found[0, 0, 1]
    assert bias.found[1, 1, 2]
    assert f"(difference {sign:+.2f}," in bias_note(bias, ["a", "b", "c"], "row")


def test_a_loss_of_recall_is_found_and_named():
    labels, decisions = made()
    decisions[labels[:, 2] & labels[:, 0], 2] = False
    bias = co_occurrence_bias(labels, decisions, np.arange(300))
    assert np.argwhere(bias.found).tolist() == [[1, 0, 2]]
    assert bias.high[1, 0, 2] < -0.5
    assert "among patches with necrosis, it is found in 0%" in bias_note(bias, ["tumor", "stroma", "necrosis"], "row")


def test_simultaneous_intervals_cover_at_the_nominal_rate():
    """Twelve gaps that are all nothing but chance, patients with their own rates: a mark is to be rare."""
    marked = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        unit = np.repeat(np.arange(40), 6)
        labels, decisions = made(240, seed=seed)
        shift = generator.random((40, 3)) < 0.15  # some patients turn every decision on a class into yes
        decisions |= shift[unit]
        marked += co_occurrence_bias(labels, decisions, unit, 200, seed).found.any()
    assert marked / 60 < 0.12


def test_intervals_widen_when_patches_of_a_unit_are_copies():
    labels, decisions = (np.repeat(values, 8, axis=0) for values in made(60))
    by_unit = co_occurrence_bias(labels, decisions, np.repeat(np.arange(60), 8))
    by_patch = co_occurrence_bias(labels, decisions, np.arange(480))
    assert np.nanmin((by_unit.high - by_unit.low) / (by_patch.high - by_patch.low)) > 2


def test_standard_errors_are_those_of_a_plain_bootstrap():
    labels, decisions = (np.repeat(values, 10, axis=0) for values in made(60, 2))
    bias = co_occurrence_bias(labels, decisions, np.repeat(np.arange(60), 10), 2000)
    generator, gaps = np.random.default_rng(1), []

    def rate(values):
        return (values.sum() + 1) / (len(values) + 2)

    for _ in range(2000):
        rows = (10 * generator.integers(0, 60, 60)[:, None] + np.arange(10)).ravel()
        truth, answer = labels[rows], decisions[rows]
        gaps.append(
            [
                rate(answer[(truth[:, b] == t) & truth[:, a], b]) - rate(answer[(truth[:, b] == t) & ~truth[:, a], b])
                for t, a, b in ((0, 0, 1), (1, 1, 0))
            ]
        )
    spread = np.std(gaps, axis=0)
    factor = (bias.high - bias.low)[[0, 1], [0, 1], [1, 0]] / 2 / spread
    assert factor[0] == pytest.approx(factor[1], rel=0.05)  # one quantile for all gaps
    assert 2.2 < factor[0] < 2.8  # four gaps; 1.96 for a single one, 2.5 for independent ones


def test_a_rate_of_zero_in_a_few_patches_is_not_significant():
    """None of 6 against 12 of 40: Fisher's exact test gives p = 0.17, a plain bootstrap would exclude zero."""
    labels = np.zeros((46, 2), dtype=bool)
    labels[:6, 0] = True
    decisions = np.zeros((46, 2), dtype=bool)
    decisions[6:18, 1] = True
    bias = co_occurrence_bias(labels, decisions, np.arange(46))
    assert bias.gaps[0, 0, 1] == pytest.approx(-0.3)
    assert bias.high[0, 0, 1] > 0


def test_too_few_units_are_not_tested():
    labels, decisions = made(200)
    bias = co_occurrence_bias(labels, decisions, np.arange(200) % 4)
    assert np.isnan(bias.low).all()
    assert not bias.found.any()
    assert "no difference can be tested" in bias_note(bias, ["a", "b", "c"], "row")
    assert not np.isnan(co_occurrence_bias(labels, decisions, np.arange(200) % 5).low[0, 0, 1])


def test_a_note_without_significant_gaps_does_not_rule_them_out():
    labels, decisions = made()
    note = bias_note(co_occurrence_bias(labels, decisions, np.arange(300)), ["a", "b", "c"], "row")
    assert "none of 12 differences is significant" in note
    assert "neither shows nor rules out" in note


@pytest.mark.parametrize("name", ["$x^{$", "<script>alert(1)</script>", "a_b *c* `d`", "[x](javascript:y)\n# z"])
def test_a_note_shows_any_class_name_literally(name):
    from bs4 import BeautifulSoup

    labels, decisions = made(effect=0.5)
    note = bias_note(co_occurrence_bias(labels, decisions, np.arange(300)), [name, "stroma", "c"], "row")
    page = BeautifulSoup(markdown_to_html(note), "html.parser")
    assert f"without {' '.join(name.split())} " in page.get_text()
    assert [tag.name for tag in page.find_all()] == ["p"]
