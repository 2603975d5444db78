"""Studies: which are planned, that each fits what it says, and that a killed run goes on with the missing ones."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.splits import make_folds
from histoclip_lib.evaluation.studies import out_of_fold
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.features.store import ImageFeatures, Shards
from histoclip_lib.models import studies
from histoclip_lib.models.baselines import fit_linear_probe
from histoclip_lib.models.studies import SIZED, Finished, Study, load_studies, plan_studies, run_studies, save_studies
from histoclip_lib.models.training import TrainingOptions, new_head, predict_probabilities, train_head

CPU = torch.device("cpu")
CLIP_STUB = SimpleNamespace(device=CPU, amp_dtype=None, compiled=False)  # all that studies ask of a CLIP
HEAD = {"heads": 2, "layers": 1, "hidden": 8, "dropout": 0.1}
OPTIONS = TrainingOptions(epochs=3, warmup_epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def case():
    """60 patches of 12 groups, 2 classes that the tokens tell, 2 views of 4 tokens."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (60, 2)).astype(np.uint8)
    tokens = generator.normal(size=(60, 2, 4, 16)).astype(np.float16)
    tokens[..., :2] += 2 * labels[:, None, None]
    features = ImageFeatures(Shards([tokens.mean(axis=2, dtype=np.float32)]), Shards([tokens]), 0)
    files, groups = [f"{i}.png" for i in range(60)], np.array([f"g{i % 12}" for i in range(60)])
    patches = PatchDataset("made", ["a", "b"], files, labels, None, groups=groups)
    embeddings = functional.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(7)), dim=-1).numpy()
    train = np.flatnonzero(np.arange(60) % 12 < 9)
    return SimpleNamespace(
        features=features, patches=patches, embeddings=embeddings, train=train, val=np.setdiff1d(np.arange(60), train)
    )


def plan_of(case, patches=None, seeds=(0, 1, 2), draws=2, head=HEAD, split="grouped", folds=None):
    folds = folds or [(case.train, case.val)]
    return plan_studies(patches or case.patches, split, folds, OPTIONS, head, 0.2, list(seeds), draws)


def run(case, plan, folder):
    return run_studies(
        plan, case.embeddings, HEAD, case.features, case.patches, OPTIONS, CLIP_STUB, folder, progress=False, workers=1
    )


# The plan


def test_every_study_has_its_own_name(case):
    plan = plan_of(case)
    keys = [(study.purpose, study.name, study.method) for study in plan]
    assert len(set(keys)) == len(keys)
    assert {study.purpose for study in plan} == {"method", "seed", "fold", "split", "design", "size", "hidden"}


def test_folds_cover_the_training_part_once_and_keep_groups_together(case):
    folds = [study for study in plan_of(case) if study.purpose == "fold"]
    assert sorted(np.concatenate([study.test for study in folds])) == list(case.train)
    for study in folds:
        assert not set(case.patches.groups[study.train]) & set(case.patches.groups[study.test])
        assert sorted([*study.train, *study.test]) == list(case.train)


def test_in_a_cross_validation_no_fold_is_calibrated_by_a_head_that_saw_it(case):
    folds = make_folds(case.patches, "cv", "grouped", 0, n_folds=5)
    plan = plan_of(case, folds=folds)
    assert {study.purpose for study in plan} == {"method", "fold", "split", "size", "hidden"}
    for method in ("mlp", "histoclip_text_free"):
        parts = [(study.train, study.test) for study in plan if (study.purpose, study.method) == ("method", method)]
        assert all(
            np.array_equal(mine, fold)
            for part, fold in zip(parts, folds, strict=True)
            for mine, fold in zip(part, fold, strict=True)
        )
    inner = [study for study in plan if study.purpose == "fold"]
    scores = [from_probabilities(np.full((len(study.test), 2), 0.1 * number)) for number, study in enumerate(inner, 1)]
    finished = [
        Finished(study.purpose, study.name, study.method, len(study.train), study.test, found)
        for study, found in zip(inner, scores, strict=True)
    ]
    for k, (train, val) in enumerate(folds):
        index, found = out_of_fold(finished, folds, k)
        assert set(index) <= set(train)
        assert len(set(index)) == len(index) == sum(len(folds[j % 5][1]) for j in (k - 1, k + 1))
        for patch, probability in zip(index, found[:, 0], strict=True):
            study = inner[round(10 * probability) - 1]
            assert patch in study.test
            assert not {*study.train} & {patch, *val}


def test_hidden_labels_are_hidden_in_the_training_part_alone(case, tmp_path):
    labels = studies.hide_labels(case.patches.labels, case.train, 0.5, 0)
    assert np.isnan(labels[case.train]).mean() == pytest.approx(0.5, abs=0.15)
    assert np.array_equal(labels[case.val], case.patches.labels[case.val])
    known = ~np.isnan(labels)
    assert np.array_equal(labels[known], case.patches.labels[known])
    plan = [Study("hidden", "80% hidden", "linear_probe", case.train, case.val, hidden=0.8)]
    (found,) = run(case, plan, tmp_path)
    part = replace(case.patches, labels=studies.hide_labels(case.patches.labels, case.train, 0.8, OPTIONS.seed))
    expected = fit_linear_probe(case.features, part, case.train, OPTIONS.seed).predict(case.features, case.val)
    np.testing.assert_array_equal(found.predictions.scores, expected.scores)


def test_nothing_but_the_other_split_is_fitted_on_the_validation_part(case):
    for study in plan_of(case):
        assert not set(study.train) & set(study.test)
        if study.purpose != "split":
            assert set(study.train) <= set(case.train), study.name


@pytest.mark.parametrize(("split", "other"), [("grouped", "random"), ("given", "random"), ("random", "grouped")])
def test_other_split_is_by_patch_where_this_one_goes_by_group(case, split, other):
    studies_of_split = [study for study in plan_of(case, split=split) if study.purpose == "split"]
    assert [(study.name, study.method) for study in studies_of_split] == [
        (other, "linear_probe"),
        (other, "histoclip_patch"),
    ]
    study = studies_of_split[0]
    train_groups, test_groups = (set(case.patches.groups[index]) for index in (study.train, study.test))
    assert bool(train_groups & test_groups) == (other == "random")


def test_without_groups_there_is_no_grouped_split(case):
    plan = plan_of(case, replace(case.patches, groups=None), split="random")
    assert not [study for study in plan if study.purpose == "split"]


def test_seeds_are_other_seeds_on_the_same_split(case):
    seeds = [study for study in plan_of(case, seeds=(0, 5, 5, 7)) if study.purpose == "seed"]
    assert {study.training["seed"] for study in seeds} == {5, 7}  # 0 is that of the two heads themselves
    assert all(np.array_equal(study.train, case.train) and np.array_equal(study.test, case.val) for study in seeds)


def test_sizes_are_subsets_of_the_training_part(case):
    sizes = [study for study in plan_of(case, draws=3) if study.purpose == "size"]
    assert {len(study.train) for study in sizes} == {2, 4, 14}  # 1% and 3% of 45 are both the least, 2
    subsets = {study.train.tobytes() for study in sizes if len(study.train) == 14}
    assert len(subsets) == 3
    pairs = {(study.name, study.train.tobytes()) for study in sizes}  # probe and head see the same patches
    assert len(pairs) == len(sizes) // len(SIZED)


def test_designs_differ_from_the_head_as_reported(case):
    head = HEAD | {"heads": 4, "layers": 2}
    names = [study.name for study in plan_of(case, head=head) if study.purpose == "design"]
    assert "4 heads" not in names
    assert "2 layers" not in names
    assert {"post-norm", "1 head", "1 layer", "one view", "all tokens in every step"} == set(names)


# The fits


def test_head_of_a_study_is_the_head_of_train_head(case, tmp_path):
    study = Study("design", "changed", "histoclip_patch", case.train, case.val, {"layers": 2}, {"seed": 3})
    [finished] = run(case, [study], tmp_path / "studies")
    reader, options = FeatureReader(case.features.tokens, CPU), replace(OPTIONS, seed=3)
    head = new_head(case.embeddings, HEAD | {"layers": 2}, case.features.tokens, case.train, 3)
    train_head(head, reader, case.patches.labels, case.train, case.val, options, progress=False)
    np.testing.assert_allclose(
        finished.predictions.scores, predict_probabilities(head, reader, case.val), rtol=1e-4, atol=1e-6
    )
    assert finished.n_train == len(case.train)


def test_linear_probe_of_a_study_is_fit_linear_probe(case, tmp_path):
    study = Study("size", "all", "linear_probe", case.train, case.val)
    [finished] = run(case, [study], tmp_path / "studies")
    expected = fit_linear_probe(case.features, case.patches, case.train, 0).predict(case.features, case.val)
    np.testing.assert_allclose(finished.predictions.scores, expected.scores, rtol=1e-5)


def test_methods_and_views_change_what_is_fitted(case, tmp_path):
    methods = ("histoclip_patch", "histoclip_global", "histoclip_text_free", "mlp", "linear_probe")
    plan = [Study("method", method, method, case.train, case.val) for method in methods]
    plan.append(Study("design", "one view", "histoclip_patch", case.train, case.val, views=1))
    scores = [finished.predictions.scores for finished in run(case, plan, tmp_path / "studies")]
    assert len({np.round(values, 5).tobytes() for values in scores}) == len(plan)


def test_one_view_sees_no_other(case, tmp_path):
    spoilt = np.array(case.features.tokens.pieces[0])
    spoilt[:, 1] = 0
    features = ImageFeatures(case.features.pooled, Shards([spoilt]), 0)
    study = Study("design", "one view", "histoclip_patch", case.train, case.val, views=1)
    found = []
    for number, source in enumerate((case.features, features)):
        case_like = SimpleNamespace(**{**vars(case), "features": source})
        [finished] = run(case_like, [study], tmp_path / str(number))
        found.append(finished.predictions.scores)
    np.testing.assert_array_equal(*found)


def counted_fits(monkeypatch):
    fitted, fit = [], studies._fit
    monkeypatch.setattr(studies, "_fit", lambda study, *rest: fitted.append(study.name) or fit(study, *rest))
    return fitted


def test_killed_run_continues_with_the_missing_studies(case, tmp_path, monkeypatch):
    plan = [study for study in plan_of(case, draws=1) if study.purpose in ("method", "fold")]
    expected = run(case, plan, tmp_path / "whole")
    fitted, fit = [], studies._fit

    def killed(study, *rest):
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(study.name)
        return fit(study, *rest)

    monkeypatch.setattr(studies, "_fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run(case, plan, tmp_path / "killed")
    assert not (tmp_path / "killed" / "studies.parquet").exists()
    monkeypatch.setattr(studies, "_fit", fit)
    again = counted_fits(monkeypatch)
    finished = run(case, plan, tmp_path / "killed")
    assert sorted([*fitted, *again]) == sorted(study.name for study in plan)
    for one, other in zip(expected, finished, strict=True):
        assert (one.name, one.identity) == (other.name, other.identity)
        np.testing.assert_array_equal(one.predictions.scores, other.predictions.scores)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["studies.parquet"]


def test_finished_studies_are_not_fitted_again(case, tmp_path, monkeypatch):
    plan = [study for study in plan_of(case, draws=1) if study.purpose == "method"]
    first = run(case, plan, tmp_path)
    fitted = counted_fits(monkeypatch)
    second = run(case, [*plan, replace(plan[0], name="another", training={"seed": 9})], tmp_path)
    assert fitted == ["another"]
    for one, other in zip(first, second, strict=False):
        np.testing.assert_array_equal(one.predictions.scores.astype(np.float32), other.predictions.scores)
    (tmp_path / "studies.parquet").write_bytes(b"half a file")
    run(case, plan, tmp_path)
    assert fitted == ["another", *(study.name for study in plan)]


@pytest.mark.parametrize("change", ["labels", "class matrix", "class names", "options", "head", "patches", "code"])
def test_studies_with_other_inputs_are_fitted_again(case, tmp_path, monkeypatch, change):
    study, options, head = Study("method", "x", "histoclip_global", case.train, case.val), OPTIONS, HEAD
    embeddings, patches = case.embeddings, case.patches
    run(case, [study], tmp_path)
    fitted = counted_fits(monkeypatch)
    if change == "labels":
        patches = replace(patches, labels=1 - patches.labels)
    if change == "class matrix":
        embeddings = embeddings[::-1].copy()
    if change == "class names":
        patches = replace(patches, classes=["b", "c"])
    if change == "options":
        options = replace(OPTIONS, learning_rate=2e-3)
    if change == "head":
        head = HEAD | {"hidden": 4}
    if change == "patches":
        study = replace(study, train=case.train[1:])
    if change == "code":
        monkeypatch.setattr(studies, "source_digest", lambda: "another")
    run_studies(
        [study], embeddings, head, case.features, patches, options, CLIP_STUB, tmp_path, progress=False, workers=1
    )
    assert fitted == ["x"]


def test_studies_come_back_from_their_file(case, tmp_path):
    plan = [study for study in plan_of(case, draws=1) if study.purpose in ("method", "fold")]
    finished = run(case, plan, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["studies.parquet"]
    loaded = load_studies(tmp_path / "studies.parquet", case.patches)
    for before, after in zip(finished, loaded, strict=True):
        assert (before.purpose, before.name, before.method) == (after.purpose, after.name, after.method)
        assert (before.n_train, before.identity) == (after.n_train, after.identity)
        assert np.array_equal(before.test, after.test)
        np.testing.assert_array_equal(before.predictions.scores.astype(np.float32), after.predictions.scores)
        assert np.array_equal(before.predictions.decisions, after.predictions.decisions)


def test_file_of_other_patches_is_refused(case, tmp_path):
    path = tmp_path / "studies.parquet"
    with pytest.raises(HistoCLIPError, match=r"studies\.parquet was not found\. Run the notebook 03_train"):
        load_studies(path, case.patches)
    finished = [studies.Finished("method", "x", "mlp", 3, np.arange(4), from_probabilities(np.full((4, 2), 0.7)))]
    save_studies(path, finished, case.patches)
    for other in (
        replace(case.patches, classes=["b", "a"]),
        replace(case.patches, files=[f"{i}.jpg" for i in range(60)]),
    ):
        with pytest.raises(HistoCLIPError, match="other patches or classes"):
            load_studies(path, other)
    pd.read_parquet(path).rename(columns={"method": "row"}).to_parquet(path)
    with pytest.raises(HistoCLIPError, match="another version"):
        load_studies(path, case.patches)
