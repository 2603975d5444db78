import numpy as np
import pytest
from bs4 import BeautifulSoup

from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.registry import DATASETS
from histoclip_lib.evaluation.artifacts import evaluate_rows
from histoclip_lib.evaluation.methods import ROW_LABELS
from histoclip_lib.report.html import markdown_to_html
from histoclip_lib.report.model_card import model_card, pretraining_of, write_model_card

HOSTILE = ["a|b", "<script>alert(1)</script>", "```js", "$x$ `y`", "two\nlines"]
TRAIN, VAL = np.arange(60), np.arange(60, 100)
HEADINGS = [
    "Model details", "Intended use", "Factors", "Metrics", "Training and evaluation data", "Quantitative analyses",
    "Ethical considerations", "Caveats and recommendations", "Files",
]  # fmt: skip


def make(classes=("tumor", "stroma", "necrosis"), groups=True, dataset="folder"):
    labels = np.random.default_rng(0).integers(0, 2, (100, len(classes))).astype(np.uint8)
    names = np.array([f"patient {i // 5}" for i in range(100)]) if groups else None
    return PatchDataset(dataset, list(classes), [f"{i}.png" for i in range(100)], labels, None, groups=names)


def scored(patches, names=ROW_LABELS):
    generator = np.random.default_rng(1)
    rows = {name: from_probabilities(generator.random((40, len(patches.classes)))) for name in names}
    return evaluate_rows(rows, patches, VAL, 50, 0)


def card(patches, rows, **changed):
    about = {
        "name": "demo", "dataset": "folder", "backbone": "ViT-L-14-quickgelu", "pretrained": "openai",
        "split": "grouped", "seed": 3, "views": 8, "training": {"epochs": 100, "learning_rate": 3e-4},
    }  # fmt: skip
    return model_card(patches, TRAIN, VAL, rows, **(about | changed))


def page(text):
    return BeautifulSoup(markdown_to_html(text), "html.parser")


def test_it_has_the_headings_of_model_cards_and_the_headline_numbers():
    patches = make()
    rows = scored(patches)
    text = page(card(patches, rows, findings="Calibrated **well**."))
    assert [heading.get_text() for heading in text.select("h2")] == HEADINGS
    lines = {line.td.get_text(): [cell.get_text() for cell in line.select("td")] for line in text.select("tbody tr")}
    assert set(lines) == set(ROW_LABELS.values())
    row = rows["histoclip_patch"]
    low, high = row["mAcc_ci"]
    assert lines["HistoCLIP, patch keys"][1] == f"{row['mAcc']:.3f} ({low:.3f} – {high:.3f})"
    said = text.get_text()
    for words in (
        "Not for diagnosis", "epochs: 100", "learning_rate: 0.0003", "seed: 3", "views: 8", "60 patches to train on",
        "12 to train on, 8 to validate on, 0 on both sides", "states none for its code", "Calibrated well.",
        f"tumor: present in {patches.prevalence[0]:.0%}", f"accuracy {row['per_class']['tumor']['accuracy']:.3f}",
    ):  # fmt: skip
        assert words in said


def test_it_says_whether_simpler_rows_are_behind():
    patches = make()
    rows = scored(patches)
    rows["linear_probe"]["mAcc"], rows["knn"]["mAcc"] = (rows["histoclip_patch"]["mAcc"] + gap for gap in (0.1, -0.2))
    text = card(patches, rows)
    assert "Linear probe: the patch head is below it (-0.100)" in text
    assert "k-nearest neighbours: the patch head is above it (+0.200)" in text


@pytest.mark.parametrize("groups", [True, False])
def test_any_name_is_shown_as_typed_and_does_nothing(groups):
    patches = make(HOSTILE, groups)
    text = page(card(patches, scored(patches), name="<img src=x onerror=y>|`", backbone="local-dir:*a*", pretrained=""))
    codes = {code.get_text() for code in text.select("code")}
    assert codes >= {*HOSTILE[:4], "two lines", "<img src=x onerror=y>|`", "local-dir:*a*"}
    assert not text.select("script, img, a[href]")
    assert len(text.select("h2")) == len(HEADINGS)
    assert len(text.select("table")) == 1


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("split", ["random", "grouped", "given"])
def test_every_data_set_and_split_has_its_words(dataset, split):
    patches = make(dataset=dataset)
    text = card(patches, {}, dataset=dataset, split=split, backbone="lite0-minilm", pretrained="")
    assert ("painted" in text) == (dataset == "synthetic")
    assert ("CC BY-NC-SA 4.0: attribution" in text) == (dataset == "pannuke")
    assert ("flatter every number" in text) == (split == "random")
    assert "is not CLIP" in text


def test_undefined_metrics_are_dashes():
    patches = make()
    rows = scored(patches, ["majority"])
    rows["majority"] |= {"mAP": None, "mAP_ci": None}
    assert "| Majority of train |" in card(patches, rows)
    assert " | — | " in card(patches, rows)


@pytest.mark.parametrize(
    ("backbone", "pretrained", "words"),
    [
        ("lite0-minilm", "", "No tissue"),
        ("ViT-L-14-quickgelu", "openai", "WIT"),
        ("ViT-B-32", "laion2b_s34b_b79k", "from the web"),
        ("hf-hub:MahmoodLab/CONCH", "", "Pathology images"),
        ("hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "", "Pathology images"),
        ("ViT-B-16", "/home/openai/weights.pt", "does not know"),
        ("local-dir:mine", "", "does not know"),
    ],
)
def test_what_the_encoder_may_have_seen(backbone, pretrained, words):
    text = pretraining_of(backbone, pretrained)
    assert words in text
    assert ("TCGA images may be among them" in text) == (backbone != "lite0-minilm")


def test_the_card_is_written_as_it_is_returned(tmp_path):
    patches = make()
    about = {
        "name": "demo", "dataset": "folder", "backbone": "lite0-minilm", "pretrained": "", "split": "grouped",
        "seed": 0, "views": 1, "training": {},
    }  # fmt: skip
    text = write_model_card(tmp_path / "model_card.md", patches, TRAIN, VAL, scored(patches), **about)
    assert (tmp_path / "model_card.md").read_text(encoding="utf-8") == text
    assert text == model_card(patches, TRAIN, VAL, scored(patches), **about)
