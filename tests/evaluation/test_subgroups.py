"""Subgroups: numbers of each part alone, and a test of the largest gap that holds its level."""

import numpy as np
import pytest

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.evaluation.metrics import point_metrics
from histoclip_lib.evaluation.subgroups import SubgroupGap, gap_note, largest_gap, subgroup_table


def made(seed, gap=0.0, n_units=24, per_unit=8):
    """Labels and decisions, of which those at site b are wrong more often; units differ in how hard they are."""
    random = np.random.default_rng(seed)
    units = np.repeat(np.arange(n_units), per_unit)
    sites = np.array(["a", "b", "c"])[units % 3]
    labels = random.integers(0, 2, (len(units), 2))
    hard = np.clip(0.2 + 0.1 * random.normal(size=n_units), 0, 1)[units] + gap * (sites == "b")
    wrong = random.random(labels.shape) < hard[:, None]
    return labels, np.where(wrong, 1 - labels, labels) == 1, sites, units


def test_each_line_is_the_part_alone():
    labels, decisions, sites, units = made(0)
    sites[units == 5] = ""
    predictions = Predictions(decisions + 0.1, decisions)
    table = subgroup_table(labels, predictions, ["x", "y"], {"site": sites}, units, 50, 0)
    assert [line[1] for line in table.index] == ["unknown", "a", "b", "c"]
    part = sites == "b"
    expected = point_metrics(labels[part], Predictions(decisions[part] + 0.1, decisions[part]), ["x", "y"])
    line = table.loc[("site", "b")]
    assert line["mAcc"].startswith(f"{expected['mAcc']:.3f} (")
    assert line["macro F1"].startswith(f"{expected['macro_f1']:.3f} (")
    assert line["patches"] == part.sum()
    assert "(" not in table.loc[("site", "unknown"), "mAcc"]  # of one group
    few = np.where(units < 4, "few", "many")  # from so few an interval would be narrow by chance
    table = subgroup_table(labels, predictions, ["x", "y"], {"site": few}, units, 50, 0)
    assert "(" not in table.loc[("site", "few"), "mAcc"] and "(" in table.loc[("site", "many"), "mAcc"]


def test_the_largest_gap_is_found_where_it_is_planted():
    labels, decisions, sites, units = made(1, gap=0.3)
    gap = largest_gap(labels, decisions, sites, units, 0)
    correct = (labels == decisions).mean(axis=1)
    assert gap.worst == "b"
    assert gap.value == pytest.approx(correct[sites == gap.best].mean() - correct[sites == "b"].mean())
    assert gap.p < 0.01
    assert "more than chance" in gap_note({"site": gap})


def test_labels_that_are_not_known_make_no_gap():
    labels, _, sites, units = made(3)
    hidden = np.random.default_rng(0).random(labels.shape) < 0.5
    labels = np.where(hidden & (sites == "b")[:, None], np.nan, labels)
    assert largest_gap(labels, labels == 1, sites, units, 0).value == 0

    labels = np.column_stack([labels, np.where(sites == "a", 0, np.nan)])  # only one site knows this class
    wrong = np.column_stack([labels[:, :2], np.ones(len(labels))]) == 1
    gap = largest_gap(labels, wrong, sites, units, 0)
    assert (gap.value, gap.left_out) == (0, 1)
    assert "left out: 1" in gap_note({"site": gap})
    lines = subgroup_table(labels, Predictions(wrong + 0.1, wrong), ["x", "y", "z"], {"site": sites}, units, 20, 0)
    assert lines.loc[("site", "b"), "mAcc"].startswith("1.000")
    assert lines.loc[("site", "a"), "mAcc"].startswith("0.667")
    labels[sites == "b"] = np.nan
    lines = subgroup_table(labels, Predictions(wrong + 0.1, wrong), ["x", "y", "z"], {"site": sites}, units, 20, 0)
    assert lines.loc[("site", "b"), "mAcc"] == lines.loc[("site", "b"), "micro F1"] == "—"


def test_without_a_gap_the_test_holds_its_level():
    """Units are what is dealt: by patches the same data would reject far more often."""
    p = np.array([largest_gap(*made(seed), seed).p for seed in range(100, 160)])
    assert 0 <= (p < 0.1).mean() < 0.2
    assert 0.4 < p.mean() < 0.6


def test_units_with_some_unknown_patches_are_dealt_whole():
    labels, decisions, sites, units = made(2)
    sites[units < 3] = ""
    whole = largest_gap(labels, decisions, sites, units, 0)
    added = [np.concatenate([part, part[-1:]]) for part in (labels, decisions, sites, units)]
    added[2][-1] = ""
    assert largest_gap(*added, 0) == whole


def test_subgroups_of_one_unit_are_not_compared():
    labels, decisions, _, units = made(2)
    sites = np.where(units == 0, "rare", "a")
    assert largest_gap(labels, decisions, sites, units, 0) is None
    assert "none can be compared" in gap_note({"site": None})


def test_p_is_corrected_for_the_columns():
    close = SubgroupGap("a", "b", 0.1, 0.03)
    assert "more than chance" in gap_note({"site": close})
    both = gap_note({"site": close, "sex": SubgroupGap("f", "m", 0.02, 0.9)})
    assert "p = 0.06" in both and "more than chance" not in both and "for 2 columns" in both
