import numpy as np
import pytest
from bs4 import BeautifulSoup

from histoclip_lib.evaluation.methods import PAPER, ROW_LABELS
from histoclip_lib.report.html import clean_output, markdown_to_html
from histoclip_lib.report.tables import paper_note, paper_table


def made_rows(names=ROW_LABELS):
    return {name: {"mAcc": 0.5 + 0.01 * k, "mAcc_ci": [0.4, 0.6]} for k, name in enumerate(names)}


@pytest.mark.parametrize("dataset", PAPER)
def test_each_row_of_the_paper_stands_beside_ours(dataset):
    rows = made_rows()
    table = paper_table(rows, dataset)
    ours = ["baseline", "one_vs_rest", "power_set", "top_k", "histoclip_global", "histoclip_patch"]
    assert list(table.index) == [ROW_LABELS[name] for name in ours]
    values = np.array([*PAPER[dataset][1], PAPER[dataset][1][-1]])
    np.testing.assert_allclose(table["the paper"].astype(float), values)
    expected = [rows[name]["mAcc"] - value for name, value in zip(ours, values, strict=True)]
    np.testing.assert_allclose(table["difference"].astype(float), expected, atol=1e-4)
    assert table["95 % interval"].iloc[0] == "0.400 – 0.600"


def test_what_is_known_is_said_with_the_run_s_own_numbers():
    rows = made_rows()
    known = paper_table(rows, "pannuke")["what is known"]
    assert f"{rows['all_positive']['mAcc']:.4f} here and 0.4107 on the whole of PanNuke" in known["Zero-shot: Baseline"]
    assert known["Zero-shot: Top-k"] == ""
    for name in ("HistoCLIP, global key", "HistoCLIP, patch keys"):
        assert f"the majority of train scores {rows['majority']['mAcc']:.3f}" in known[name]
        assert f"the tissue alone scores {rows['tissue_prior']['mAcc']:.3f}" in known[name]
    assert "PanNuke" not in paper_table(rows, "bcss_wsss")["what is known"]["Zero-shot: Baseline"]


def test_rows_that_a_run_lacks_are_left_out():
    table = paper_table(made_rows(["baseline", "histoclip_patch"]), "pannuke")
    assert list(table.index) == ["Zero-shot: Baseline", "HistoCLIP, patch keys"]
    assert "here" not in table["what is known"].iloc[0]
    assert table["what is known"].iloc[1] == ""
    assert "0.8824" in BeautifulSoup(clean_output(table.to_html()), "html.parser").get_text()


def test_other_data_sets_have_no_paper():
    assert paper_table(made_rows(), "folder") is None
    assert paper_note("synthetic", "lite0-minilm", "grouped") == ""


@pytest.mark.parametrize(
    ("backbone", "split", "words"),
    [
        ("lite0-minilm", "random", ["is not CLIP", "draws patches"]),
        ("ViT-L-14-quickgelu", "grouped", ["this is the latter", "keeps groups apart"]),
        ("local-dir:<b>", "given", ["this is <b>", "came with the data"]),
        ("ViT-B-16", "random", ["ViT-B/16 in section II.A", "this is ViT-B-16"]),
    ],
)
def test_note_names_backbone_and_split(backbone, split, words):
    text = BeautifulSoup(markdown_to_html(paper_note("pannuke", backbone, split)), "html.parser").get_text()
    for word in words:
        assert word.replace("<b>", "local-dir:<b>") in text
