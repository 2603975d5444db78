"""Encoders on common patches: alignment, ranks with paired tests, agreement and hard patches."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.evaluation.artifacts import ValidationPredictions
from histoclip_lib.evaluation.encoders import agreement, align_runs, hardest, rank
from histoclip_lib.evaluation.uncertainty import accuracy_gap

METHOD = "linear_probe"


def make_run(seed, wrong, files=None, classes=("a", "b"), changed=()):
    """Return a run on 60 patches; a fraction `wrong` of its decisions is wrong, labels of `changed` are flipped."""
    names = np.array([f"{k:02d}" for k in range(60)], dtype=object)
    labels = np.random.default_rng(7).integers(0, 2, (60, 2)).astype(np.uint8)
    flip = np.random.default_rng(seed).random((60, 2)) < wrong
    scores = np.where(labels.astype(bool) ^ flip, 0.9, 0.1)
    labels[list(changed)] ^= 1
    order = [("a", "b").index(name) for name in classes]
    run = ValidationPredictions(
        names, list(classes), labels[:, order], None, {METHOD: from_probabilities(scores[:, order])}
    )
    return run if files is None else run.take(np.array(files))


def test_runs_are_brought_to_common_patches_labels_and_class_order():
    runs = {
        "one": make_run(1, 0.1, files=range(50)),
        "two": make_run(2, 0.2, files=range(10, 60), classes=("b", "a"), changed=(20,)),
        "other classes": ValidationPredictions(np.array(["00"]), ["z"], np.zeros((1, 1)), None, {}),
    }
    aligned = align_runs(runs)
    assert list(aligned.runs) == ["one", "two"]
    assert aligned.first.files.tolist() == [f"{k:02d}" for k in range(10, 50) if k != 20]
    for run in aligned.runs.values():
        assert run.classes == ["a", "b"]
        assert (run.labels == aligned.first.labels).all()
    assert align_runs({"one": make_run(1, 0, [0]), "two": make_run(1, 0, [1])}) is None
    assert align_runs({}) is None


def test_ranks_are_by_mean_accuracy_and_tests_are_those_of_two_methods():
    aligned = align_runs({"poor": make_run(1, 0.4), "good": make_run(2, 0.05), "fair": make_run(3, 0.1)})
    ranking = rank(aligned, METHOD)
    assert ranking.names == ["good", "fair", "poor"]
    assert (np.diff(ranking.accuracy) <= 0).all()
    assert ((ranking.intervals[:, 0] <= ranking.accuracy) & (ranking.accuracy <= ranking.intervals[:, 1])).all()
    good, poor = (aligned.of(METHOD)[name] for name in ("good", "poor"))
    gap = accuracy_gap(aligned.first.labels, good, poor, aligned.first.units, 200, 0)
    assert ranking.differences.loc["good", "poor"] == pytest.approx(gap.value)
    assert gap.p <= ranking.p.loc["good", "poor"] <= 3 * gap.p  # Holm's correction of three
    assert ranking.p.loc["good", "poor"] < 0.05 < ranking.p.loc["good", "fair"]
    folded = rank(aligned, METHOD, folds=5)
    assert (np.diff(folded.intervals) > 1.4 * np.diff(ranking.intervals)).all()


def test_unknown_labels_widen_no_interval_beyond_what_is_possible():
    run = make_run(1, 0)
    labels = np.where(np.random.default_rng(0).random((60, 2)) < 0.5, np.nan, run.labels)
    ranking = rank(align_runs({"one": replace(run, labels=labels)}), METHOD, folds=5)
    assert ranking.intervals.tolist() == [[1, 1]]
    slips = np.where(np.arange(60)[:, None] < 1, ~run.methods[METHOD].decisions, run.methods[METHOD].decisions)
    nearly = replace(run, labels=labels, methods={METHOD: from_probabilities(np.where(slips, 0.9, 0.1))})
    assert rank(align_runs({"one": nearly}), METHOD, folds=5).intervals.max() <= 1


def test_agreement_is_cohen_s_kappa_over_all_labels():
    aligned = align_runs({"one": make_run(1, 0.1), "same": make_run(1, 0.1), "other": make_run(2, 0.3)})
    table = agreement(aligned, METHOD)
    one, other = (aligned.of(METHOD)[name].decisions.ravel() for name in ("one", "other"))
    assert table.loc["one", "same"] == 1
    assert table.loc["other", "one"] == pytest.approx(cohen_kappa_score(one, other))


def test_hard_patches_are_those_that_every_encoder_gets_wrong():
    aligned = align_runs({"one": make_run(1, 0.3), "two": make_run(2, 0.3)})
    found = hardest(aligned, METHOD, 100)
    truth = aligned.first.labels
    wrong = np.all([own.decisions != truth for own in aligned.of(METHOD).values()], axis=0)
    assert {place for place, _ in found} == set(np.flatnonzero(wrong.any(axis=1)))
    assert [mask.sum() for _, mask in found] == sorted((mask.sum() for _, mask in found), reverse=True)
    assert hardest(align_runs({"one": make_run(1, 0)}), METHOD, 4) == []
