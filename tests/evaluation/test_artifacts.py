"""The files of a run come back as they were written, and garbled ones are refused with a reason."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation import artifacts
from histoclip_lib.evaluation.artifacts import (
    BrokenRun,
    evaluate_methods,
    find_runs,
    load_predictions,
    read_metrics,
    read_predictions,
    save_predictions,
    save_split,
    write_csv,
    write_metrics,
)
from histoclip_lib.evaluation.methods import labels
from histoclip_lib.evaluation.uncertainty import HEADLINES, bootstrap_interval

HOSTILE = ["<b>", "a|b", "x" * 200, "肿瘤", "two\nlines"]
ABOUT = {
    "name": "demo",
    "dataset": "pannuke",
    "backbone": "ViT-L-14-quickgelu",
    "pretrained": "openai",
    "split": "random",
    "seed": 0,
    "n_train": 48,
    "n_val": 12,
}
VAL = np.arange(3, 60, 5)
TRAIN = np.setdiff1d(np.arange(60), VAL)


def make(classes=("a", "b", "c"), n=60, groups=True, seed=0):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, (n, len(classes)), dtype=np.uint8)
    files = [f"sub/{index:03d}.png" for index in random.permutation(n)]
    units = np.array([f"patient {index // 4}" for index in range(n)]) if groups else None
    return PatchDataset("folder", list(classes), files, truth, None, groups=units)


def guesses(patches, index=slice(None), accuracy=0.5, seed=1):
    random, truth = np.random.default_rng(seed), patches.labels[index]
    right = random.random(truth.shape) < accuracy
    return Predictions(random.normal(size=truth.shape), np.where(right, truth, 1 - truth).astype(bool))


def all_methods(patches):
    return {name: guesses(patches, VAL, seed=k) for k, name in enumerate(labels())}


# split.csv, history.csv


@pytest.mark.parametrize("groups", [True, False])
def test_split_is_written_for_every_patch(tmp_path, groups):
    patches = make(groups=groups)
    save_split(tmp_path / "split.csv", patches, [(TRAIN[:-1], VAL)])
    table = pd.read_csv(tmp_path / "split.csv", keep_default_na=False)
    assert table["file"].tolist() == patches.files
    assert table["group"].tolist() == (patches.groups.tolist() if groups else [""] * 60)
    expected = np.array(["train"] * 60, dtype=object)
    expected[VAL], expected[TRAIN[-1]] = "val", ""
    assert table["split"].tolist() == expected.tolist()
    save_split(tmp_path / "split.csv", patches, [(VAL, TRAIN[:-1]), (TRAIN[:-1], VAL)])
    table = pd.read_csv(tmp_path / "split.csv", keep_default_na=False, dtype=str)
    assert (table["fold"][TRAIN[:-1]] == "1").all()
    assert (table["fold"][VAL] == "2").all()
    assert table["split"].tolist() == ["cv" if fold else "" for fold in table["fold"]]


def test_history_comes_back_as_written(tmp_path):
    history = pd.DataFrame({"head": ["global"] * 2, "epoch": [1, 2], "loss": [0.9, 0.5], "val_mAcc": [0.5, np.nan]})
    write_csv(tmp_path / "history.csv", history)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), history)


# predictions.parquet, zero_shot.parquet


def test_predictions_are_stored_one_line_for_each_method_patch_and_class(tmp_path):
    patches = make()
    methods = all_methods(patches)
    save_predictions(tmp_path / "predictions.parquet", methods, patches, VAL)
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(table.columns) == ["method", "file", "group", "class", "label", "score", "predicted"]
    assert len(table) == len(methods) * len(VAL) * 3
    assert table["score"].dtype == np.float32
    line = table[(table["method"] == "top_k") & (table["file"] == patches.files[VAL[4]]) & (table["class"] == "c")]
    assert line[["group", "label", "predicted"]].to_numpy().tolist() == [
        [patches.groups[VAL[4]], patches.labels[VAL[4], 2], methods["top_k"].decisions[4, 2]]
    ]
    accuracy = table.groupby(["method", "class"], observed=True)[["label", "predicted"]].apply(
        lambda part: accuracy_score(part["label"], part["predicted"])
    )
    scored = evaluate_methods(methods, patches, VAL, 20, 0)
    for name in methods:
        assert accuracy[name].mean() == pytest.approx(scored[name]["mAcc"])


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("classes", [("z", "a", "m"), HOSTILE])
def test_predictions_come_back_for_any_patches_in_any_order(tmp_path, groups, classes):
    patches = make(classes, groups=groups)
    methods = {"baseline": guesses(patches, seed=1), "top_k": guesses(patches, seed=2)}
    save_predictions(tmp_path / "p.parquet", methods, patches, range(len(patches)))
    index = np.random.default_rng(0).permutation(60)[:25]
    found = load_predictions(tmp_path / "p.parquet", patches, index)
    assert list(found) == ["baseline", "top_k"]
    for name, predictions in found.items():
        assert (predictions.scores == methods[name].scores[index].astype(np.float32)).all()
        assert predictions.decisions.dtype == bool
        assert (predictions.decisions == methods[name].decisions[index]).all()
    everything = read_predictions(tmp_path / "p.parquet")
    order = np.argsort(patches.files)
    assert everything.classes == list(classes)
    assert (everything.files == np.array(patches.files)[order]).all()
    assert (everything.labels == patches.labels[order]).all()
    assert everything.groups is None if not groups else (everything.groups == patches.groups[order]).all()


def test_predictions_that_are_missing_name_the_file_and_the_remedy(tmp_path):
    with pytest.raises(HistoCLIPError, match=r"p\.parquet was not found. Run the notebooks of this run"):
        load_predictions(tmp_path / "p.parquet", make(), VAL)


@pytest.mark.parametrize("other", [make(("a", "b", "d")), make(n=61)])
def test_predictions_for_other_patches_or_classes_are_refused(tmp_path, other):
    patches = make()
    save_predictions(tmp_path / "p.parquet", {"top_k": guesses(patches)}, patches, range(60))
    with pytest.raises(HistoCLIPError, match="written for other patches or classes"):
        load_predictions(tmp_path / "p.parquet", other, np.arange(len(other)))


def test_prediction_lines_are_read_in_any_order(tmp_path):
    path, patches = tmp_path / "p.parquet", make()
    save_predictions(path, all_methods(patches), patches, VAL)
    before = read_predictions(path)
    pd.read_parquet(path).sample(frac=1, random_state=0).to_parquet(path)
    after = read_predictions(path)
    columns = [after.classes.index(name) for name in before.classes]
    assert (after.files == before.files).all()
    assert (after.groups == before.groups).all()
    assert (after.labels[:, columns] == before.labels).all()
    for name, method in before.methods.items():
        assert (after.methods[name].scores[:, columns] == method.scores).all()
        assert (after.methods[name].decisions[:, columns] == method.decisions).all()


@pytest.mark.parametrize("damage", ["column", "line", "twice", "label", "group", "empty", "bytes"])
def test_damaged_predictions_are_refused(tmp_path, damage):
    path, patches = tmp_path / "p.parquet", make()
    save_predictions(path, {"top_k": guesses(patches, VAL), "knn": guesses(patches, VAL)}, patches, VAL)
    table = pd.read_parquet(path).astype({"group": str})
    if damage == "column":
        table = table.drop(columns="score")
    elif damage == "line":
        table = table.drop(index=5)
    elif damage == "twice":
        table = pd.concat([table.drop(index=5), table.iloc[[6]]])
    elif damage == "label":
        table.loc[5, "label"] = 1 - table.loc[5, "label"]
    elif damage == "group":
        table.loc[5, "group"] = "other"
    elif damage == "empty":
        table = table.iloc[:0]
    table.to_parquet(path)
    if damage == "bytes":
        path.write_bytes(b"PAR1")
    with pytest.raises(HistoCLIPError, match="Run it again with --force"):
        read_predictions(path)


# metrics.json


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize("classes", [("a", "b", "c"), HOSTILE])
def test_metrics_come_back_as_written(tmp_path, classes):
    patches = make(classes)
    methods = dict(reversed(all_methods(patches).items()))
    write_metrics(tmp_path / "metrics.json", patches, evaluate_methods(methods, patches, VAL, 20, 0), **ABOUT)
    metrics = strict_json(tmp_path / "metrics.json")
    assert {key: metrics[key] for key in ABOUT} == ABOUT
    assert set(metrics) == {*ABOUT, "classes", "prevalence", "methods"}
    assert metrics["classes"] == list(classes)
    assert list(metrics["methods"]) == list(labels())
    found = read_metrics(tmp_path / "metrics.json")
    assert (found.name, found.dataset, found.pretrained) == ("demo", "pannuke", "openai")
    assert (found.n_train, found.n_val, found.folder) == (48, 12, tmp_path.name)
    assert metrics["prevalence"] == pytest.approx(dict(zip(classes, patches.prevalence, strict=True)))
    for name, values in metrics["methods"].items():
        assert set(values) == {*HEADLINES, *(f"{key}_ci" for key in HEADLINES), "per_class"}
        for key in HEADLINES:
            assert found.methods[name][key].value == values[key]
            assert found.methods[name][key].interval == tuple(values[f"{key}_ci"])
        assert list(values["per_class"]) == list(classes)


def test_a_method_that_nothing_registers_is_refused():
    patches = make()
    with pytest.raises(HistoCLIPError, match=r"'one_vs_all' is not a known method\. Did you mean one_vs_rest"):
        evaluate_methods({"one_vs_all": guesses(patches, VAL)}, patches, VAL, 10, 0)


def test_undefined_metrics_are_null(tmp_path):
    patches = make()
    patches.labels[VAL] = 0
    scored = evaluate_methods({"majority": guesses(patches, VAL)}, patches, VAL, 20, 0)
    write_metrics(tmp_path / "metrics.json", patches, scored, **ABOUT)
    values = strict_json(tmp_path / "metrics.json")["methods"]["majority"]
    assert values["mAP"] is values["auroc"] is values["per_class"]["a"]["ap"] is None
    found = read_metrics(tmp_path / "metrics.json")
    assert found.mean_ap == {}
    assert "mAP" not in found.methods["majority"]


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path / "metrics.json", make(), {"majority": {"mAcc": float("nan")}}, **ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_without_groups_patches_are_resampled():
    patches = make(groups=False)
    method = guesses(patches, VAL, 0.8, 1)
    correct = (method.decisions == patches.labels[VAL]).mean(axis=1)
    found = evaluate_methods({"majority": method}, patches, VAL, 50, 3)
    assert found["majority"]["mAcc_ci"] == pytest.approx(bootstrap_interval(correct, VAL, 50, 3))


def put_metrics(tmp_path, **changes):
    folder = tmp_path / "run"
    folder.mkdir()
    methods = {"majority": {"mAcc": 0.7}, "linear_probe": {"mAcc": 0.8, "mAcc_ci": [0.7, 0.9]}}
    (folder / "metrics.json").write_text(json.dumps(ABOUT | {"methods": methods} | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name: '' is not a name"),
        ({"split": None}, "split: None is not a name"),
        ({"methods": 3}, "methods: 3 is not an object"),
        ({"methods": {"majority": [1]}}, r"methods, majority: \[1\] is not an object"),
        ({"methods": {"majority": {"mAcc": float("nan")}}}, "methods, majority: mAcc nan is not a number"),
        (
            {"methods": {"majority": {"mAcc": 0.5, "mAcc_ci": [0.1]}}},
            r"majority: mAcc_ci \[0.1\] is not a pair",
        ),
        ({"methods": {"of a plugin": {"mAcc": 0.5, "mAP": 2}}}, "methods, of a plugin: mAP 2 is not a number"),
    ],
)
def test_garbled_metrics_are_named(tmp_path, changes, message):
    with pytest.raises(HistoCLIPError, match=message):
        read_metrics(put_metrics(tmp_path, **changes) / "metrics.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["methods", "majority", "mAcc", "mAcc_ci", "name"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(json_values, st.sampled_from(["name", "dataset", "methods", "pretrained", "n_val", None]))
@settings(max_examples=60)
def test_any_json_is_read_or_refused(tmp_path_factory, value, key):
    path = tmp_path_factory.getbasetemp() / "metrics.json"
    sound = ABOUT | {"methods": {"majority": {"mAcc": 0.7, "mAcc_ci": [0.6, 0.8]}}}
    path.write_text(json.dumps(value if key is None else sound | {key: value}))
    try:
        run = read_metrics(path)
    except HistoCLIPError:
        return
    assert all(0 <= score.value <= 1 for score in run.scores.values())


@pytest.mark.parametrize("value", [10**400, -1, 1.5, "0.5", True, float("inf"), None])
def test_a_score_outside_zero_to_one_makes_the_run_broken(tmp_path, value):
    put_metrics(tmp_path, methods={"top_k": {"mAcc": value, "mAcc_ci": [0.1, 0.2]}})
    [run] = find_runs(tmp_path)
    assert isinstance(run, BrokenRun)
    assert "methods, top_k: mAcc" in run.reason
    assert str(tmp_path) not in run.reason


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"name": 3}'])
def test_garbled_metrics_make_the_run_broken_and_no_other(tmp_path, content):
    put_metrics(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metrics.json").write_text(content)
    broken, sound = find_runs(tmp_path)
    assert isinstance(broken, BrokenRun)
    assert "--force" in broken.reason
    assert sound.lead is None
    assert sound.scores["linear_probe"].interval == (0.7, 0.9)


def test_garbled_details_are_left_out(tmp_path):
    methods = {
        "majority": {"mAcc": 0.7, "auroc": "x", "macro_f1": 0.5, "macro_f1_ci": [1], "per_class": 4},
        "of a plugin": {"mAcc": 0.5},
    }
    found = read_metrics(put_metrics(tmp_path, methods=methods, n_val=-1, n_train=True) / "metrics.json")
    assert (found.n_train, found.n_val) == (None, None)
    assert found.methods.keys() == methods.keys()
    assert "auroc" not in found.methods["majority"]
    assert found.methods["majority"]["macro_f1"].interval is None


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, True),
        ('{"steps": {"01_data": {}, "04_results": {}}}', True),
        ('{"parameters": {}}', True),
        ('{"steps": {"01_data": {}}}', False),
        ('{"steps": 3}', False),
        ("[]", False),
        ("{", False),
    ],
)
def test_results_of_an_unfinished_rerun_are_marked(tmp_path, record, expected):
    folder = put_metrics(tmp_path)
    if record is not None:
        (folder / "run.json").write_text(record)
    assert read_metrics(folder / "metrics.json").is_current is expected


def test_encoder_that_is_no_clip_is_marked(tmp_path):
    path = put_metrics(tmp_path) / "metrics.json"
    assert read_metrics(path).is_clip
    path.write_text(path.read_text().replace("ViT-L-14-quickgelu", "lite0-minilm").replace("openai", ""))
    assert not read_metrics(path).is_clip


def test_thumbnail_is_shown_where_it_is_a_png(tmp_path):
    folder = put_metrics(tmp_path)
    found = read_metrics(folder / "metrics.json")
    assert found.thumbnail is None
    (folder / "thumbnail.png").write_bytes(b"<svg>")
    assert found.thumbnail is None
    (folder / "thumbnail.png").write_bytes(artifacts.PNG_SIGNATURE + b"rest")
    assert found.thumbnail.startswith("data:image/png;base64,")
