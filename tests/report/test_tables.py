"""Tables hold whatever a class is called, and the paper's numbers stand beside ours."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.artifacts import BrokenRun, RunMetrics, Score, evaluate_methods
from histoclip_lib.evaluation.methods import label_of, labels, paper_numbers, short_label, table_one_columns
from histoclip_lib.prompting.strategies import baseline_note
from histoclip_lib.report import tables
from histoclip_lib.report.html import clean_output, markdown_to_html

HOSTILE = ["<b>", "a|b", "x" * 200, "肿瘤", "two\nlines"]
VAL = np.arange(3, 60, 5)
TRAIN = np.setdiff1d(np.arange(60), VAL)


def make(classes=("a", "b", "c"), groups=True):
    truth = np.random.default_rng(0).integers(0, 2, (60, len(classes)), dtype=np.uint8)
    units = np.array([f"patient {index // 4}" for index in range(60)]) if groups else None
    return PatchDataset("folder", list(classes), [f"{k}.png" for k in range(60)], truth, None, groups=units)


def guesses(patches, index=slice(None), accuracy=0.5, seed=1):
    random, truth = np.random.default_rng(seed), patches.labels[index]
    right = random.random(truth.shape) < accuracy
    return Predictions(random.normal(size=truth.shape), np.where(right, truth, 1 - truth).astype(bool))


def all_scored(patches):
    methods = {name: guesses(patches, VAL, seed=k) for k, name in enumerate(labels())}
    return evaluate_methods(methods, patches, VAL, 20, 0)


@pytest.fixture(scope="module")
def scored():
    return all_scored(make())


# One run


@pytest.mark.parametrize("dataset", ["pannuke", "folder"])
def test_methods_table_shows_both_intervals_and_the_paper(scored, dataset):
    table = tables.methods_table(scored, dataset)
    assert table.index.tolist() == list(labels().values())
    line, values = table.loc["Linear probe"], scored["linear_probe"]
    assert line["mAcc"] == f"{values['mAcc']:.3f}"
    assert line["mAP"] == f"{values['mAP']:.3f}"
    for key in ("mAcc", "mAP"):
        assert line[f"{key}, 95%"] == "{:.3f} – {:.3f}".format(*values[f"{key}_ci"])
    assert ("paper's mAcc" in table) == (dataset == "pannuke")
    if dataset == "pannuke":
        paper = {label: float(value) for label, value in table["paper's mAcc"].items() if value}
        assert paper == {label_of(name): round(value, 3) for name, value in paper_numbers("pannuke").items()}


def test_undefined_metrics_are_dashes():
    patches = make()
    patches.labels[VAL] = 0
    scored = evaluate_methods({"majority": guesses(patches, VAL)}, patches, VAL, 20, 0)
    line = tables.methods_table(scored, "folder").loc["Majority of train", ["mAP", "mAP, 95%", "AUROC"]]
    assert line.tolist() == ["—", "", "—"]
    assert tables.per_class_table(scored, "ap").isna().to_numpy().all()


def test_seeds_table_shows_the_spread():
    scored = {
        "histoclip_patch": {seed: {"mAcc": macc, "mAP": 0.5} for seed, macc in enumerate([0.8, 0.9, 0.7])},
        "linear_probe": {4: {"mAcc": 0.75, "mAP": None}},
    }
    table = tables.seeds_table(scored)
    assert table.index.tolist() == ["Linear probe", "HistoCLIP, patch tokens"]
    assert table.loc["HistoCLIP, patch tokens"].tolist() == [
        *(3, "0.800", "0.100", "0.700 – 0.900"),
        *("0.500", "0.000", "0.500 – 0.500"),
    ]
    assert table.loc["Linear probe"].tolist() == [1, "0.750", "—", "0.750 – 0.750", "—", "—", "—"]


def test_dataset_table_counts_patches_labels_and_groups():
    patches = make()
    table = tables.dataset_table(patches, {"train": TRAIN, "validation": VAL})
    assert table["patches"].tolist() == [48, 12]
    assert table["with b"].tolist() == [patches.labels[TRAIN, 1].sum(), patches.labels[VAL, 1].sum()]
    assert table["without any label"].tolist() == [
        (patches.labels[index].max(axis=1) == 0).sum() for index in (TRAIN, VAL)
    ]
    both = {*patches.groups[TRAIN]} & {*patches.groups[VAL]}
    assert table["groups also in another set"].tolist() == [len(both)] * 2
    assert table["groups"].tolist() == [len({*patches.groups[index]}) for index in (TRAIN, VAL)]
    assert "groups" not in tables.dataset_table(make(groups=False), {"train": TRAIN, "validation": VAL})


def test_strategies_are_scored_on_the_same_patches_as_in_the_table_of_all_methods():
    patches = make()
    truth, methods = patches.labels[VAL], {"baseline": guesses(patches, VAL, accuracy=0.7)}
    methods["all_positive"] = Predictions(np.ones(truth.shape), np.ones(truth.shape, bool))
    table = tables.strategies_table(methods, truth, patches.classes)
    everywhere = tables.methods_table(evaluate_methods(methods, patches, VAL, 20, 0), "folder")
    for name in methods:
        assert table.loc[short_label(name), "mAcc"] == everywhere.loc[label_of(name), "mAcc"]
    assert table.loc["Baseline", "b"] == f"{methods['baseline'].decisions[:, 1].mean():.2f}"
    assert table.loc["Truth", "b"] == f"{truth[:, 1].mean():.2f}"
    assert table.loc["Truth", "labels per patch"] == f"{truth.sum() / len(truth):.2f}"
    assert table.loc["Truth", "mAcc"] == ""
    assert f"marking every label scores {table.loc['All positive', 'mAcc']}" in baseline_note(
        methods["all_positive"], truth, "sigmoid"
    )


def test_the_best_value_of_each_column_is_bold(scored):
    frame = tables.methods_table(scored, "folder")
    page = BeautifulSoup(tables.Table(frame, "All.", tables.best_values())._repr_html_(), "html.parser")
    for name, which in tables.best_values().items():
        column = frame.columns.get_loc(name)
        bold = [line.find_all("td")[column].strong is not None for line in page.select("tbody tr")]
        values = pd.to_numeric(frame[name], errors="coerce")
        assert bold == (values == values.agg(which)).tolist()
    assert not page.select("thead strong")


def test_the_last_epoch_is_reported_and_the_best_is_called_an_oracle():
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
    assert line["mAcc, last epoch"] == "0.800"
    assert line["mAcc, best epoch (oracle)"] == "0.900"
    assert line["best epoch"] == 2
    assert line["train loss, last epoch"] == "0.200"


def test_hostile_class_names_break_no_table():
    patches = make(HOSTILE)
    scored = all_scored(patches)
    drawn = {
        "data": tables.dataset_table(patches, {"train": TRAIN, "validation": VAL}).T,
        "zero-shot": tables.strategies_table({"top_k": guesses(patches)}, patches.labels, patches.classes),
        "classes": tables.per_class_table(scored, "accuracy"),
    }
    for frame in drawn.values():
        page = BeautifulSoup(clean_output(tables.Table(frame)._repr_html_()), "html.parser")
        assert page.find("b") is None
        cells = " ".join(cell.get_text() for cell in page.find_all(["th", "td"]))
        for name in HOSTILE:
            assert re.sub(r"\s|\\n", "", name) in re.sub(r"\s|\\n", "", cells)
        body = page.find("tbody").find_all("tr")
        assert {len(line.find_all(["th", "td"])) for line in body} == {frame.shape[1] + 1}
    assert drawn["classes"].loc["Linear probe", "a|b"] == scored["linear_probe"]["per_class"]["a|b"]["accuracy"]


def test_tables_are_shown_whole_with_a_caption_and_change_no_option():
    frame = pd.DataFrame({f"column {k}": ["x" * 300] * 100 for k in range(40)})
    before = pd.get_option("display.max_colwidth"), pd.get_option("display.max_rows")
    page = BeautifulSoup(tables.Table(frame, "Best <b>first</b>.")._repr_html_(), "html.parser")
    assert page.table.caption.get_text() == "Best <b>first</b>."
    assert page.table.find("caption") is page.table.find(True)
    assert [cell.get_text() for cell in page.select("td")] == ["x" * 300] * 4000
    assert (pd.get_option("display.max_colwidth"), pd.get_option("display.max_rows")) == before
    assert BeautifulSoup(tables.Table(frame)._repr_html_(), "html.parser").caption is None


# Over all runs


def summary(name, dataset, **scores):
    methods = {method: {"mAcc": score} for method, score in scores.items()}
    return RunMetrics(Path(name), name, dataset, "ViT-L-14", "random", "openai", methods)


def test_table_one_puts_each_run_above_the_paper():
    score = Score(0.5, (0.4, 0.6))
    runs = [summary("mine", "consep", top_k=Score(0.25, None)), summary("p", "pannuke", baseline=score)]
    table = tables.table_one_frame([*runs, BrokenRun("broken", "why")])
    assert table.index.tolist() == [
        "BCSS-WSSS: the paper",
        "LUAD-HistoSeg: the paper",
        "PanNuke: p",
        "95% interval",
        "PanNuke: the paper",
        "consep: mine",
        "95% interval",
    ]
    assert table.columns.tolist() == list(table_one_columns().values())
    assert table.iloc[2].tolist() == ["", "0.500", *[""] * 6]
    assert table.iloc[3].tolist() == ["", "0.400 – 0.600", *[""] * 6]
    assert (table.iloc[6] == "").all()
    assert table.loc["consep: mine", "Top-k"] == "0.250"
    assert table.loc["PanNuke: the paper"].tolist() == [*("", "0.411", "0.437", "0.526", "0.486", "", "0.882", "0.882")]


def test_runs_of_one_name_are_separate_lines():
    runs = [summary("p", "pannuke", baseline=Score(value, None)) for value in (0.1, 0.2)]
    assert tables.table_one_frame(runs).loc["PanNuke: p", "Baseline"].tolist() == ["0.100", "0.200"]


def test_without_runs_table_one_is_that_of_the_paper():
    assert len(tables.table_one_frame([])) == 3


# Beside the paper


def made(names=None):
    return {name: {"mAcc": 0.5 + 0.01 * k, "mAcc_ci": [0.4, 0.6]} for k, name in enumerate(names or labels())}


@pytest.mark.parametrize("dataset", ["bcss_wsss", "luad_histoseg", "pannuke"])
def test_paper_table_compares_each_method_of_the_paper(dataset):
    methods, paper = made(), paper_numbers(dataset)
    table = tables.paper_table(methods, dataset)
    assert list(table.index) == [label_of(name) for name in paper]
    np.testing.assert_allclose(table["the paper"].astype(float), list(paper.values()), atol=5.1e-4)
    expected = [methods[name]["mAcc"] - value for name, value in paper.items()]
    np.testing.assert_allclose(table["difference"].astype(float), expected, atol=5.1e-4)
    assert table["95% interval"].iloc[0] == "0.400 – 0.600"


def test_paper_table_explains_differences_with_the_numbers_of_the_run():
    methods = made()
    known = tables.paper_table(methods, "pannuke")["what is known"]
    marked = f"{methods['all_positive']['mAcc']:.3f} here and 0.411 on the whole data set"
    assert marked in known["Zero-shot: Baseline"]
    assert known["Zero-shot: Top-k"] == ""
    for name in ("HistoCLIP, global embedding", "HistoCLIP, patch tokens"):
        assert f"the majority of train scores {methods['majority']['mAcc']:.3f}" in known[name]
        assert f"the tissue alone scores {methods['tissue_prior']['mAcc']:.3f}" in known[name]
    assert "whole data set" not in tables.paper_table(methods, "bcss_wsss")["what is known"]["Zero-shot: Baseline"]


def test_paper_table_leaves_out_methods_that_a_run_lacks():
    table = tables.paper_table(made(["baseline", "histoclip_patch"]), "pannuke")
    assert list(table.index) == ["Zero-shot: Baseline", "HistoCLIP, patch tokens"]
    assert "here" not in table["what is known"].iloc[0]
    assert table["what is known"].iloc[1] == ""


def test_data_sets_that_the_paper_lacks_have_no_paper_table():
    assert tables.paper_table(made(), "folder") is None
    assert tables.paper_note("synthetic", "lite0-minilm", "", "grouped") == ""


@pytest.mark.parametrize(
    ("backbone", "pretrained", "split", "words"),
    [
        ("lite0-minilm", "", "random", ["is not CLIP", "draws patches"]),
        ("ViT-L-14-quickgelu", "openai", "grouped", ["this is the latter", "keeps groups apart"]),
        ("local-dir:<b>", "", "given", ["this is local-dir:<b>", "came with the data"]),
        ("ViT-B-16", "openai", "random", ["ViT-B/16 in section II.A", "this is ViT-B-16"]),
    ],
)
def test_paper_note_names_encoder_and_split(backbone, pretrained, split, words):
    note = tables.paper_note("pannuke", backbone, pretrained, split)
    text = BeautifulSoup(markdown_to_html(note), "html.parser").get_text()
    for word in words:
        assert word in text
