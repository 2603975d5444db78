"""Random against grouped split: gaps, their intervals and what is said of them."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from histoclip_lib.common.predictions import Predictions, mean_accuracy
from histoclip_lib.evaluation.leakage import SplitScores, split_gap_note, split_gap_table, split_gaps
from histoclip_lib.evaluation.uncertainty import bootstrap_interval


def made(n_patches, skill, seed=0, n_classes=3, rows=("linear_probe", "histoclip_patch"), groups=20):
    """Scores that see the label by `skill` standard deviations."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (n_patches, n_classes))
    scores = {row: skill * (2 * labels - 1) + generator.normal(size=labels.shape) for row in rows}
    units = generator.integers(0, groups, n_patches)
    return SplitScores(labels, units, {row: Predictions(values, values > 0) for row, values in scores.items()})


def line(gaps, row, metric):
    return gaps.set_index(["row", "metric"]).loc[row, metric]


def test_points_are_the_metrics_of_either_part():
    random, grouped = made(90, 1.0), made(70, 0.5, seed=1)
    gaps = split_gaps(random, grouped, resamples=50)
    assert list(gaps["row"]) == ["linear_probe"] * 2 + ["histoclip_patch"] * 2
    for row in random.rows:
        for metric in ("mAcc", "mAP"):
            values = [
                mean_accuracy(part.labels, part.rows[row].decisions)
                if metric == "mAcc"
                else average_precision_score(part.labels, part.rows[row].scores)
                for part in (random, grouped)
            ]
            found = line(gaps, row, metric)
            assert [found["random"], found["grouped"]] == pytest.approx(values)
            assert found["gap"] == pytest.approx(values[0] - values[1])


def test_intervals_of_each_part_are_those_of_the_table():
    random, grouped = made(90, 1.0), made(70, 0.5, seed=1)
    found = line(split_gaps(random, grouped, resamples=300, seed=4), "linear_probe", "mAcc")
    for name, part, seed in (("random", random, 4), ("grouped", grouped, 5)):
        correct = (part.labels == part.rows["linear_probe"].decisions).mean(axis=1)
        expected = bootstrap_interval(correct, part.units, 300, seed)
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(expected)


def test_the_parts_are_drawn_independently():
    """Var(difference) = Var + Var, even where both parts are the same patches."""
    part = made(120, 0.5, groups=40)
    found = line(split_gaps(part, part, resamples=4000), "linear_probe", "mAcc")
    assert found["gap"] == 0
    one = (found["random_high"] - found["random_low"]) / 2
    both = (found["gap_high"] - found["gap_low"]) / 2
    assert both == pytest.approx(2**0.5 * one, rel=0.1)


def test_a_clear_gap_leaves_zero_out_and_the_note_says_which_way():
    good, bad = made(200, 2.0), made(200, 0.2, seed=1)
    note = split_gap_note(split_gaps(good, bad))
    assert note.count("the random split **flatters**") == 4
    assert "- Linear probe, mAcc: " in note
    assert split_gap_note(split_gaps(bad, good)).count("gives **less**") == 4
    assert split_gap_note(split_gaps(bad, made(200, 0.2, seed=2))).count("cannot be told apart") == 4
    assert "trained once" in note


def test_rows_that_one_split_lacks_are_left_out():
    gaps = split_gaps(made(40, 1, rows=("majority", "linear_probe")), made(40, 1, rows=("linear_probe",)), resamples=20)
    assert set(gaps["row"]) == {"linear_probe"}


def test_constant_rows_and_absent_classes():
    random, grouped = made(40, 1), made(30, 1, seed=1)
    random.labels[:, 0] = 0
    constant = Predictions(np.zeros((30, 3)), np.zeros((30, 3), dtype=bool))
    grouped = SplitScores(grouped.labels, grouped.units, {"linear_probe": constant})
    gaps = split_gaps(random, grouped, resamples=100)
    assert gaps.drop(columns=["row", "metric"]).notna().all(axis=None)
    assert line(gaps, "linear_probe", "mAP")["grouped"] == pytest.approx(grouped.labels.mean())


def test_map_without_any_positive_is_not_defined():
    random, grouped = made(40, 1), made(30, 1, seed=1)
    grouped.labels[:] = 0
    gaps = split_gaps(random, grouped, resamples=20)
    assert line(gaps, "linear_probe", "mAP")[["grouped", "gap", "gap_low"]].isna().all()
    assert "Linear probe, mAP: not defined" in split_gap_note(gaps)
    table = split_gap_table(gaps)
    assert table[table["metric"] == "mAP"]["random minus grouped"].tolist() == ["—", "—"]


def test_table_is_text_with_intervals():
    gaps = split_gaps(made(90, 1.0), made(70, 0.5, seed=1), resamples=50)
    found, table = line(gaps, "histoclip_patch", "mAcc"), split_gap_table(gaps)
    cell = table[table["metric"] == "mAcc"].loc["HistoCLIP, patch keys", "random minus grouped"]
    assert cell == f"{found['gap']:+.3f} ({found['gap_low']:+.3f} to {found['gap_high']:+.3f})"
    assert list(table.columns) == ["metric", "random split", "grouped split", "random minus grouped"]
