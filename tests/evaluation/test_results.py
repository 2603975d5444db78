"""Results: files that come back as they were written, tables that hold whatever a class is called."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from sklearn.metrics import accuracy_score

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation import artifacts, methods, uncertainty
from histoclip_lib.evaluation.artifacts import BrokenRun, RunSummary, Score, read_metrics
from histoclip_lib.evaluation.uncertainty import HEADLINES, bootstrap_interval
from histoclip_lib.report import tables
from histoclip_lib.report.html import clean_output

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
SCORES = (*HEADLINES, *(f"{key}_ci" for key in HEADLINES), "per_class")


def make(classes=("a", "b", "c"), n=60, groups=True, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, (n, len(classes)), dtype=np.uint8)
    files = [f"sub/{index:03d}.png" for index in range(n)]
    units = np.array([f"patient {index // 4}" for index in range(n)]) if groups else None
    return PatchDataset("folder", list(classes), files, labels, None, groups=units)


def guesses(patches, rows=None, accuracy=0.5, seed=1):
    random = np.random.default_rng(seed)
    labels = patches.labels if rows is None else patches.labels[rows]
    right = random.random(labels.shape) < accuracy
    return Predictions(random.normal(size=labels.shape), np.where(right, labels, 1 - labels).astype(bool))


VAL = np.arange(3, 60, 5)
TRAIN = np.setdiff1d(np.arange(60), VAL)


def all_rows(patches, **more):
    return {name: guesses(patches, VAL, seed=k, **more) for k, name in enumerate(methods.ROW_LABELS)}


# split.csv and predictions.parquet


@pytest.mark.parametrize("groups", [True, False])
def test_the_split_is_written_for_every_patch(tmp_path, groups):
    patches = make(groups=groups)
    artifacts.save_split(tmp_path / "split.csv", patches, TRAIN[:-1], VAL)
    table = pd.read_csv(tmp_path / "split.csv", keep_default_na=False)
    assert table["file"].tolist() == patches.files
    assert table["group"].tolist() == (patches.groups.tolist() if groups else [""] * 60)
    expected = np.array(["train"] * 60, dtype=object)
    expected[VAL], expected[TRAIN[-1]] = "val", ""
    assert table["split"].tolist() == expected.tolist()


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("classes", [("a", "b", "c"), HOSTILE])
def test_predictions_come_back_for_any_patches_in_any_order(tmp_path, groups, classes):
    patches = make(classes, groups=groups)
    rows = {"baseline": guesses(patches, seed=1), "top_k": guesses(patches, seed=2)}
    artifacts.save_predictions(tmp_path / "p.parquet", rows, patches, range(len(patches)))
    index = np.random.default_rng(0).permutation(60)[:25]
    found = artifacts.load_predictions(tmp_path / "p.parquet", patches, index)
    assert list(found) == ["baseline", "top_k"]
    for name, predictions in found.items():
        assert (predictions.scores == rows[name].scores[index].astype(np.float32)).all()
        assert predictions.decisions.dtype == bool
        assert (predictions.decisions == rows[name].decisions[index]).all()


def test_the_table_of_predictions_has_a_line_for_each_row_patch_and_class(tmp_path):
    patches = make()
    rows = all_rows(patches)
    artifacts.save_predictions(tmp_path / "predictions.parquet", rows, patches, VAL)
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(table.columns) == ["row", "file", "group", "class", "label", "score", "predicted"]
    assert len(table) == len(rows) * len(VAL) * 3
    assert table["score"].dtype == np.float32
    line = table[(table["row"] == "top_k") & (table["file"] == patches.files[VAL[4]]) & (table["class"] == "c")]
    assert line[["group", "label", "predicted"]].to_numpy().tolist() == [
        [patches.groups[VAL[4]], patches.labels[VAL[4], 2], rows["top_k"].decisions[4, 2]]
    ]
    accuracy = table.groupby(["row", "class"], observed=True)[["label", "predicted"]].apply(
        lambda part: accuracy_score(part["label"], part["predicted"])
    )
    scored = artifacts.evaluate_rows(rows, patches, VAL, 20, 0)
    for name in rows:
        assert accuracy[name].mean() == pytest.approx(scored[name]["mAcc"])


def test_predictions_that_are_not_there_name_the_notebook(tmp_path):
    with pytest.raises(HistoCLIPError, match=r"p\.parquet was not found. Run the notebook 02_zero_shot"):
        artifacts.load_predictions(tmp_path / "p.parquet", make(), VAL)


@pytest.mark.parametrize("other", [make(("a", "b", "d")), make(n=61)])
def test_predictions_for_other_patches_or_classes_are_refused(tmp_path, other):
    patches = make()
    artifacts.save_predictions(tmp_path / "p.parquet", {"top_k": guesses(patches)}, patches, range(60))
    with pytest.raises(HistoCLIPError, match="written for other patches or classes"):
        artifacts.load_predictions(tmp_path / "p.parquet", other, np.arange(len(other)))


# metrics.json


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize("classes", [("a", "b", "c"), HOSTILE])
def test_metrics_hold_what_the_overview_and_other_programs_rely_on(tmp_path, classes):
    patches = make(classes)
    artifacts.write_metrics(
        tmp_path / "metrics.json", patches, artifacts.evaluate_rows(all_rows(patches), patches, VAL, 20, 0), **ABOUT
    )
    metrics = strict_json(tmp_path / "metrics.json")
    assert {key: metrics[key] for key in ABOUT} == ABOUT
    assert set(metrics) == {*ABOUT, "classes", "prevalence", "rows"}
    assert metrics["classes"] == list(classes)
    assert metrics["prevalence"] == pytest.approx(dict(zip(classes, patches.prevalence, strict=True)))
    assert list(metrics["rows"]) == list(methods.ROW_LABELS)
    for row in metrics["rows"].values():
        assert set(row) == set(SCORES)
        assert list(row["per_class"]) == list(classes)
        assert row["mAcc_ci"][0] <= row["mAcc"] <= row["mAcc_ci"][1]
    summary = read_metrics(tmp_path / "metrics.json")
    assert summary.scores["top_k"].value == metrics["rows"]["top_k"]["mAcc"]


def test_what_is_undefined_is_null_and_a_dash(tmp_path):
    patches = make()
    patches.labels[VAL] = 0
    scored = artifacts.evaluate_rows({"majority": guesses(patches, VAL)}, patches, VAL, 20, 0)
    artifacts.write_metrics(tmp_path / "metrics.json", patches, scored, **ABOUT)
    row = strict_json(tmp_path / "metrics.json")["rows"]["majority"]
    assert row["mAP"] is None
    assert row["auroc"] is None
    assert row["per_class"]["a"]["ap"] is None
    line = tables.rows_table(scored, "folder").loc["Majority of train", ["mAP", "mAP, 95 %", "AUROC"]]
    assert line.tolist() == ["—", "", "—"]
    assert tables.per_class_table(scored, "ap").isna().to_numpy().all()


def test_a_number_that_is_none_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_metrics(tmp_path / "metrics.json", make(), {"majority": {"mAcc": float("nan")}}, **ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_where_groups_are_not_known_patches_are_drawn():
    patches = make(groups=False)
    assert uncertainty.bootstrap_units(patches, VAL).tolist() == VAL.tolist()
    assert uncertainty.bootstrap_units(make(), VAL).tolist() == make().groups[VAL].tolist()
    gaps = (guesses(patches, VAL, 0.8, 1).decisions == patches.labels[VAL]).mean(axis=1)
    found = artifacts.evaluate_rows({"majority": guesses(patches, VAL, 0.8, 1)}, patches, VAL, 50, 3)
    assert found["majority"]["mAcc_ci"] == pytest.approx(bootstrap_interval(gaps, VAL, 50, 3))


# Tables


@pytest.mark.parametrize("dataset", ["pannuke", "folder"])
def test_the_table_of_rows_has_the_paper_s_column_for_its_data_sets_only(dataset):
    patches = make()
    table = tables.rows_table(artifacts.evaluate_rows(all_rows(patches), patches, VAL, 20, 0), dataset)
    assert table.index.tolist() == list(methods.ROW_LABELS.values())
    if dataset == "folder":
        assert "paper's mAcc" not in table
    else:
        paper = dict(zip(table.index, table["paper's mAcc"], strict=True))
        assert {label: value for label, value in paper.items() if value} == {
            "Zero-shot: Baseline": "0.4107",
            "Zero-shot: One-vs-Rest": "0.4371",
            "Zero-shot: Power-set": "0.5263",
            "Zero-shot: Top-k": "0.4862",
            "HistoCLIP, global key": "0.8824",
            "HistoCLIP, patch keys": "0.8824",
        }


def test_the_table_of_rows_shows_both_intervals():
    patches = make()
    scored = artifacts.evaluate_rows(all_rows(patches), patches, VAL, 50, 0)
    line = tables.rows_table(scored, "folder").loc["Linear probe"]
    row = scored["linear_probe"]
    assert line["mAcc"] == f"{row['mAcc']:.4f}"
    assert line["mAP"] == f"{row['mAP']:.3f}"
    for key in ("mAcc", "mAP"):
        assert line[f"{key}, 95 %"] == f"{row[f'{key}_ci'][0]:.3f} – {row[f'{key}_ci'][1]:.3f}"


def test_the_table_of_seeds_says_how_much_a_row_varies():
    scored = {
        "histoclip_patch": {seed: {"mAcc": macc, "mAP": 0.5} for seed, macc in enumerate([0.8, 0.9, 0.7])},
        "linear_probe": {4: {"mAcc": 0.75, "mAP": None}},
    }
    table = tables.seeds_table(scored)
    assert table.index.tolist() == ["Linear probe", "HistoCLIP, patch keys"]
    assert table.loc["HistoCLIP, patch keys"].tolist() == [
        *(3, "0.8000", "0.1000", "0.7000 – 0.9000"),
        *("0.5000", "0.0000", "0.5000 – 0.5000"),
    ]
    assert table.loc["Linear probe"].tolist() == [1, "0.7500", "—", "0.7500 – 0.7500", "—", "—", "—"]


def test_rows_are_scored_in_the_order_of_the_table():
    patches = make()
    rows = dict(reversed(all_rows(patches).items()))
    assert list(artifacts.evaluate_rows(rows, patches, VAL, 20, 0)) == list(methods.ROW_LABELS)


def test_the_table_of_the_data_set_counts_what_is_there():
    patches = make()
    table = tables.dataset_table(patches, TRAIN, VAL)
    assert table["patches"].tolist() == [48, 12]
    assert table["with b"].tolist() == [patches.labels[TRAIN, 1].sum(), patches.labels[VAL, 1].sum()]
    assert table["without any label"].tolist() == [
        (patches.labels[rows].max(axis=1) == 0).sum() for rows in (TRAIN, VAL)
    ]
    both = {*patches.groups[TRAIN]} & {*patches.groups[VAL]}
    assert table["of these on both sides"].tolist() == [len(both)] * 2
    assert table["groups"].tolist() == [len({*patches.groups[rows]}) for rows in (TRAIN, VAL)]
    assert "groups" not in tables.dataset_table(make(groups=False), TRAIN, VAL)


def test_zero_shot_rows_are_scored_on_the_validation_part_and_on_all():
    patches = make()
    rows = {"baseline": guesses(patches, accuracy=0.7)}
    table = tables.whole_set_table(rows, patches, VAL)
    right = rows["baseline"].decisions == patches.labels
    assert table.loc["Baseline", "mAcc, validation"] == f"{right[VAL].mean():.4f}"
    assert table.loc["Baseline", "mAcc, all patches"] == f"{right.mean():.4f}"
    assert table.loc["Baseline", "b"] == f"{rows['baseline'].decisions[:, 1].mean():.2f}"
    assert table.loc["Truth", "b"] == f"{patches.labels[:, 1].mean():.2f}"
    assert table.loc["Truth", "labels per patch"] == f"{patches.labels.sum() / 60:.2f}"


def test_the_last_epoch_is_reported_and_the_best_is_called_an_oracle(tmp_path):
    history = pd.DataFrame(
        {
            "head": ["global"] * 4,
            "epoch": [1, 2, 3, 4],
            "loss": [0.9, 0.5, 0.3, 0.2],
            "val_mAcc": [0.5, 0.9, np.nan, 0.8],
            "val_loss": [0.8, 0.6, np.nan, 0.7],
        }
    )
    line = tables.last_and_best(history).loc["global"]
    assert line["mAcc, last epoch"] == "0.8000"
    assert line["mAcc, best epoch (oracle)"] == "0.9000"
    assert line["best epoch"] == 2
    assert line["train loss, last epoch"] == "0.2000"
    artifacts.save_history(tmp_path / "history.csv", history)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), history)


def summary(name, dataset, **scores):
    return RunSummary(name, dataset, "ViT-L-14", "random", "openai", scores, {}, name, None)


def test_table_one_puts_each_run_above_the_paper():
    score = Score(0.5, (0.4, 0.6))
    runs = [summary("mine", "folder", top_k=Score(0.25, None)), summary("p", "pannuke", baseline=score)]
    table = tables.table_one_frame([*runs, BrokenRun("broken", "why")])
    assert table.index.tolist() == [
        "BCSS-WSSS: the paper",
        "LUAD-HistoSeg: the paper",
        "PanNuke: p",
        "95 % interval",
        "PanNuke: the paper",
        "folder: mine",
        "95 % interval",
    ]
    assert table.columns.tolist() == list(methods.COLUMNS.values())
    assert table.iloc[2].tolist() == ["", "0.5000", *[""] * 6]
    assert table.iloc[3].tolist() == ["", "0.400 – 0.600", *[""] * 6]
    assert (table.iloc[6] == "").all()
    assert table.loc["folder: mine", "Top-k"] == "0.2500"
    assert table.loc["PanNuke: the paper"].tolist() == [
        *("", "0.4107", "0.4371", "0.5263", "0.4862", "", "0.8824", "0.8824")
    ]
    assert table.loc["BCSS-WSSS: the paper", "HistoCLIP patch"] == "0.9121"
    assert table.loc["LUAD-HistoSeg: the paper", "One-vs-Rest"] == "0.2932"


def test_two_folders_with_runs_of_one_name_are_two_lines():
    runs = [summary("p", "pannuke", baseline=Score(value, None)) for value in (0.1, 0.2)]
    table = tables.table_one_frame(runs)
    assert table.loc["PanNuke: p", "Baseline"].tolist() == ["0.1000", "0.2000"]
    assert len(tables.runs_frame([*runs, BrokenRun("p", "why")])) == 3


def test_without_runs_table_one_is_the_paper_s():
    assert len(tables.table_one_frame([])) == 3
    assert len(tables.runs_frame([])) == 0


def test_a_run_that_cannot_be_read_says_why():
    table = tables.runs_frame([summary("p", "pannuke"), BrokenRun("broken", "rows: 3 is not an object")])
    assert table.loc["p"].tolist() == ["pannuke", "ViT-L-14", "openai", "random"]
    assert table.loc["broken"].tolist() == ["cannot be read: rows: 3 is not an object", "", "", ""]


@pytest.mark.parametrize("value", [10**400, -1, 1.5, "0.5", True, float("inf"), None])
def test_a_score_that_is_no_fraction_makes_the_run_unreadable_and_no_more(tmp_path, value):
    rows = {"top_k": {"mAcc": value, "mAcc_ci": [0.1, 0.2]}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(ABOUT | {"rows": rows}))
    [run] = artifacts.find_runs(tmp_path)
    assert isinstance(run, BrokenRun)
    assert "rows, top_k: mAcc" in run.reason


def test_hostile_class_names_break_no_table(tmp_path):
    patches = make(HOSTILE)
    scored = artifacts.evaluate_rows(all_rows(patches), patches, VAL, 20, 0)
    drawn = {
        "data": tables.dataset_table(patches, TRAIN, VAL).T,
        "zero-shot": tables.whole_set_table({"top_k": guesses(patches)}, patches, VAL),
        "classes": tables.per_class_table(scored, "accuracy"),
    }
    for table in drawn.values():
        page = BeautifulSoup(clean_output(table._repr_html_()), "html.parser")
        assert page.find("b") is None
        cells = " ".join(cell.get_text() for cell in page.find_all(["th", "td"]))
        for name in HOSTILE:
            assert re.sub(r"\s|\\n", "", name) in re.sub(r"\s|\\n", "", cells)
        body = page.find("tbody").find_all("tr")
        assert {len(line.find_all(["th", "td"])) for line in body} == {table.shape[1] + 1}
    assert tables["classes"].loc["Linear probe", "a|b"] == scored["linear_probe"]["per_class"]["a|b"]["accuracy"]


# What the intervals resample


def test_groups_are_resampled_where_there_are_enough():
    patches = make()
    assert uncertainty.bootstrap_units(patches, VAL).tolist() == patches.groups[VAL].tolist()
    assert f"over the {len(set(patches.groups[VAL]))} groups" in uncertainty.interval_note(patches, VAL)


@pytest.mark.parametrize("rows", [np.arange(4), np.arange(16)])
def test_few_groups_are_not_taken_for_certainty(rows):
    """One group alone would give an interval without width, and a verdict without doubt."""
    patches = make()
    assert uncertainty.bootstrap_units(patches, rows).tolist() == rows.tolist()
    assert f"only {'1 group' if len(rows) == 4 else '4 groups'}: take" in uncertainty.interval_note(patches, rows)
    [row] = artifacts.evaluate_rows({"majority": guesses(patches, rows, 0.6, seed=2)}, patches, rows, 200, 0).values()
    assert row["mAcc_ci"][0] < row["mAcc_ci"][1]


@pytest.mark.parametrize(
    ("n_groups", "says", "says_not"),
    [(5, "below 0.062.", "patches"), (20, "too narrow", "below"), (40, "over the 40 groups", "too narrow")],
)
def test_the_note_says_what_few_groups_cost(n_groups, says, says_not):
    note = uncertainty.interval_note(make(n=160), np.arange(4 * n_groups))
    assert says in note
    assert says_not not in note


def test_without_groups_patches_are_resampled():
    patches = make(groups=False)
    assert uncertainty.bootstrap_units(patches, VAL).tolist() == VAL.tolist()
    assert "groups are not known" in uncertainty.interval_note(patches, VAL)


@pytest.mark.parametrize(
    ("record", "expected"),
    [(None, True), ('{"01_data": "a", "04_evaluate": "b"}', True), ('{"01_data": "a"}', False), ("{", False)],
)
def test_results_of_an_unfinished_rerun_are_marked(tmp_path, record, expected):
    patches = make()
    rows = artifacts.evaluate_rows(all_rows(patches), patches, VAL, 10, 0)
    artifacts.write_metrics(tmp_path / "metrics.json", patches, rows, **ABOUT)
    if record is not None:
        (tmp_path / "steps.json").write_text(record)
    assert read_metrics(tmp_path / "metrics.json").is_current is expected
