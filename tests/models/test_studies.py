"""Studies: which are planned, that each fits what it says, and that a killed run goes on with the missing ones."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation import studies as study_tables
from histoclip_lib.evaluation.metrics import point_metrics
from histoclip_lib.features.encode import ImageFeatures
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.features.store import Shards
from histoclip_lib.models import studies
from histoclip_lib.models.baselines import fit_linear_probe
from histoclip_lib.models.studies import Study, load_studies, plan_studies, run_studies, save_studies
from histoclip_lib.models.training import TrainingOptions, new_head, predict_probabilities, train_head

CPU = torch.device("cpu")
CLIP_STUB = SimpleNamespace(device=CPU, amp_dtype=None)  # all that studies ask of a CLIP
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
    embeddings = functional.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(7)), dim=-1)
    train = np.flatnonzero(np.arange(60) % 12 < 9)
    return SimpleNamespace(
        features=features, patches=patches, embeddings=embeddings, train=train, val=np.setdiff1d(np.arange(60), train)
    )


def plan_of(case, patches=None, seeds=(0, 1, 2), draws=2, head=HEAD, split="grouped"):
    return plan_studies(patches or case.patches, split, case.train, case.val, OPTIONS, head, 0.2, list(seeds), draws)


def run(case, plan, folder):
    return run_studies(
        plan, case.embeddings, HEAD, case.features, case.patches, OPTIONS, CLIP_STUB, folder, progress=False, workers=1
    )


# The plan


def test_every_study_has_its_own_name(case):
    plan = plan_of(case)
    keys = [(study.purpose, study.name, study.row) for study in plan]
    assert len(set(keys)) == len(keys)
    assert {study.purpose for study in plan} == {"row", "seed", "fold", "split", "design", "size"}


def test_folds_cover_the_training_part_once_and_keep_groups_together(case):
    folds = [study for study in plan_of(case) if study.purpose == "fold"]
    assert sorted(np.concatenate([study.test for study in folds])) == list(case.train)
    for study in folds:
        assert not set(case.patches.groups[study.train]) & set(case.patches.groups[study.test])
        assert sorted([*study.train, *study.test]) == list(case.train)


def test_nothing_but_the_other_split_is_fitted_on_the_validation_part(case):
    for study in plan_of(case):
        assert not set(study.train) & set(study.test)
        if study.purpose != "split":
            assert set(study.train) <= set(case.train), study.name


@pytest.mark.parametrize(("split", "other"), [("grouped", "random"), ("given", "random"), ("random", "grouped")])
def test_other_split_is_by_patch_where_this_one_goes_by_group(case, split, other):
    studies_of_split = [study for study in plan_of(case, split=split) if study.purpose == "split"]
    assert [(study.name, study.row) for study in studies_of_split] == [
        (other, "linear_probe"),
        (other, "histoclip_patch"),
    ]
    train_groups, test_groups = (set(case.patches.groups[rows]) for rows in (study_rows(studies_of_split[0])))
    assert bool(train_groups & test_groups) == (other == "random")


def study_rows(study):
    return study.train, study.test


def test_without_groups_there_is_no_grouped_split(case):
    plan = plan_of(case, replace(case.patches, groups=None), split="random")
    assert not [study for study in plan if study.purpose == "split"]


def test_seeds_are_other_seeds_on_the_same_split(case):
    seeds = [study for study in plan_of(case, seeds=(0, 5, 5, 7)) if study.purpose == "seed"]
    assert {study.training["seed"] for study in seeds} == {5, 7}  # 0 is that of the two heads themselves
    assert all(np.array_equal(study.train, case.train) and np.array_equal(study.test, case.val) for study in seeds)


def test_sizes_are_subsets_of_the_training_part(case):
    sizes = [study for study in plan_of(case, draws=3) if study.purpose == "size"]
    assert {len(study.train) for study in sizes} == {2, 4, 14}  # 1 % and 3 % of 45 are both the least, 2
    subsets = {study.train.tobytes() for study in sizes if len(study.train) == 14}
    assert len(subsets) == 3
    pairs = {(study.name, study.train.tobytes()) for study in sizes}  # probe and head see the same patches
    assert len(pairs) == len(sizes) // 2


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
    head = new_head(case.embeddings, HEAD | {"layers": 2}, reader, case.train, 3)
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


def test_rows_and_views_change_what_is_fitted(case, tmp_path):
    rows = ("histoclip_patch", "histoclip_global", "histoclip_text_free", "mlp", "linear_probe")
    plan = [Study("row", row, row, case.train, case.val) for row in rows]
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


def test_killed_run_goes_on_with_the_missing_studies(case, tmp_path, monkeypatch):
    plan = [study for study in plan_of(case, draws=1) if study.purpose in ("row", "fold")]
    folder = tmp_path / "studies"
    run(case, plan, folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == len(plan)
    lost = sorted(folder.iterdir())[0]
    lost.unlink()
    finished = run(case, plan, folder)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {lost.name}
    assert [study.name for study in finished] == [study.name for study in plan]


@pytest.mark.parametrize("change", ["labels", "classes", "options", "head", "rows"])
def test_other_inputs_are_other_studies(case, tmp_path, change):
    [study] = [Study("row", "x", "histoclip_global", case.train, case.val)]
    other, options, head = SimpleNamespace(**vars(case)), OPTIONS, HEAD
    run(case, [study], tmp_path)
    if change == "labels":
        other.patches = replace(case.patches, labels=1 - case.patches.labels)
    if change == "classes":
        other.embeddings = case.embeddings.flip(0)
    if change == "options":
        options = replace(OPTIONS, learning_rate=2e-3)
    if change == "head":
        head = HEAD | {"hidden": 4}
    if change == "rows":
        study = replace(study, train=case.train[1:])
    run_studies(
        *([study], other.embeddings, head, other.features, other.patches, options, CLIP_STUB, tmp_path),
        progress=False,
        workers=1,
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_studies_come_back_from_their_file(case, tmp_path):
    plan = [study for study in plan_of(case, draws=1) if study.purpose in ("row", "split", "fold")]
    finished = run(case, plan, tmp_path / "studies")
    save_studies(tmp_path / "studies.parquet", finished, case.patches, tmp_path / "studies")
    assert not (tmp_path / "studies").exists()
    loaded = load_studies(tmp_path / "studies.parquet", case.patches)
    for before, after in zip(finished, loaded, strict=True):
        assert (before.purpose, before.name, before.row) == (after.purpose, after.name, after.row)
        assert before.n_train == after.n_train
        assert np.array_equal(before.test, after.test)
        np.testing.assert_array_equal(before.predictions.scores.astype(np.float32), after.predictions.scores)
        assert np.array_equal(before.predictions.decisions, after.predictions.decisions)


def test_file_of_other_patches_is_refused(case, tmp_path):
    path = tmp_path / "studies.parquet"
    with pytest.raises(HistoCLIPError, match=r"studies\.parquet was not found\. Run the notebook 03_train"):
        load_studies(path, case.patches)
    finished = [studies.Finished("row", "x", "mlp", 3, np.arange(4), from_probabilities(np.full((4, 2), 0.7)))]
    save_studies(path, finished, case.patches, tmp_path / "studies")
    for other in (
        replace(case.patches, classes=["b", "a"]),
        replace(case.patches, files=[f"{i}.jpg" for i in range(60)]),
    ):
        with pytest.raises(HistoCLIPError, match="other patches or classes"):
            load_studies(path, other)


# Their tables


def made(purpose, name, row, test, scores, n_train=9):
    return studies.Finished(purpose, name, row, n_train, test, from_probabilities(scores))


@pytest.fixture(scope="module")
def scores(case):
    """Rows that get better: probabilities (V, 2) of the validation patches."""
    generator = np.random.default_rng(1)
    truth = case.patches.labels[case.val]
    return [
        np.clip(0.5 + weight * (truth - 0.5) + 0.3 * generator.normal(size=truth.shape), 0, 1)
        for weight in (0, 0.3, 0.6, 1)
    ]


def test_out_of_fold_puts_each_patch_back(case):
    halves = case.train[::2], case.train[1::2]
    finished = [
        made("fold", str(i), "histoclip_patch", rows, np.full((len(rows), 2), 0.1 + i)) for i, rows in enumerate(halves)
    ]
    found = study_tables.out_of_fold(finished, 60, case.train)
    assert (found[::2] == 0.1).all()
    assert (found[1::2] == 1.1).all()
    assert study_tables.out_of_fold([], 60, case.train) is None


@pytest.mark.parametrize(("split", "first"), [("random", "this"), ("grouped", "other"), ("given", "other")])
def test_two_splits_come_random_first(case, scores, split, first):
    rows = {name: from_probabilities(scores[3]) for name in ("majority", "linear_probe", "histoclip_patch")}
    test = np.arange(20, 35)
    finished = [made("split", "x", row, test, scores[1]) for row in ("linear_probe", "histoclip_patch")]
    random, grouped = study_tables.two_splits(finished, rows, case.patches, split, case.val)
    this, other = (random, grouped) if first == "this" else (grouped, random)
    assert np.array_equal(this.labels, case.patches.labels[case.val])
    assert np.array_equal(other.labels, case.patches.labels[test])
    assert np.array_equal(other.units, case.patches.groups[test])
    assert set(this.rows) == set(other.rows) == {"majority", "linear_probe", "histoclip_patch"}
    rest = np.delete(case.patches.labels, test, axis=0)
    np.testing.assert_allclose(other.rows["majority"].scores[0], rest.mean(axis=0))
    assert study_tables.two_splits([], rows, case.patches, split, case.val) is None


def test_seed_rows_hold_the_row_as_reported_and_the_other_seeds(case, scores):
    rows = {"mlp": from_probabilities(scores[0]), "histoclip_patch": from_probabilities(scores[3])}
    finished = [
        made("seed", "seed 4", "histoclip_patch", case.val, scores[2]),
        made("seed", "seed 11", "histoclip_patch", case.val, scores[1]),
        made("seed", "seed 4", "mlp", case.val, scores[1]),
    ]
    found = study_tables.seed_rows(finished, rows, case.patches, case.val, seed=0)
    assert {row: set(by_seed) for row, by_seed in found.items()} == {"histoclip_patch": {0, 4, 11}, "mlp": {0, 4}}
    expected = point_metrics(case.patches.labels[case.val], from_probabilities(scores[2]), ["a", "b"])
    assert found["histoclip_patch"][4] == expected


def test_design_table_says_what_each_change_costs(case, scores):
    rows = {
        "histoclip_patch": from_probabilities(scores[3]),
        "histoclip_global": from_probabilities(scores[2]),
        "histoclip_text_free": from_probabilities(scores[1]),
    }
    finished = [made("design", "post-norm", "histoclip_patch", case.val, scores[0])]
    scored, table = study_tables.design_rows(finished, rows, case.patches, case.val, 200, 0)
    assert list(table.index) == list(scored)
    assert table.index[0] == "as reported"
    labels = case.patches.labels[case.val]
    best, worst = (point_metrics(labels, from_probabilities(scores[k]), ["a", "b"]) for k in (3, 0))
    assert table.loc["as reported", "mAcc"] == f"{best['mAcc']:.4f}"
    assert table.loc["post-norm", "mAcc, change"].startswith(f"{worst['mAcc'] - best['mAcc']:+.4f} (")
    assert table.loc["post-norm", "mAP, change"].startswith(f"{worst['mAP'] - best['mAP']:+.4f} (")
    assert scored["post-norm"]["mAcc_ci"][0] < worst["mAcc"] < scored["post-norm"]["mAcc_ci"][1]


def test_size_frame_ends_with_the_whole_training_part(case, scores):
    rows = {"linear_probe": from_probabilities(scores[2]), "histoclip_patch": from_probabilities(scores[3])}
    finished = [
        made("size", "2 patches, draw 1", row, case.val, scores[0], n_train=2)
        for row in ("linear_probe", "histoclip_patch")
    ]
    frame = study_tables.size_frame(finished, rows, 45, case.patches, case.val)
    assert frame[["row", "n_train"]].to_numpy().tolist() == [
        ["linear_probe", 2],
        ["histoclip_patch", 2],
        ["linear_probe", 45],
        ["histoclip_patch", 45],
    ]
    assert (
        frame["mAcc"].iloc[3]
        == point_metrics(case.patches.labels[case.val], rows["histoclip_patch"], ["a", "b"])["mAcc"]
    )


def test_the_study_of_the_head_is_shown_whole():
    table = study_tables.head_study()
    assert table.index[0] == "as chosen"
    assert table.index[-1] == "linear probe"
    assert (table.map(float) > 0).all(axis=None)
    lines = json.loads(study_tables.HEAD_STUDY.read_text())
    [line] = [line for line in lines if line["choice"] == "no mixup" and line["data"] == "synthetic H&E"]
    assert table.loc["no mixup", "synthetic H&E, mAP"] == f"{line['mAP']:.3f}"
