"""The model card: the headings of Mitchell et al., the numbers of the run, and metadata for model hubs."""

import numpy as np
import pytest
from bs4 import BeautifulSoup
from huggingface_hub import ModelCard

from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.registry import DATASETS
from histoclip_lib.evaluation.artifacts import evaluate_methods
from histoclip_lib.evaluation.comparisons import ALIKE, BETTER
from histoclip_lib.evaluation.methods import labels
from histoclip_lib.evaluation.uncertainty import Comparison, Difference
from histoclip_lib.report.html import markdown_to_html
from histoclip_lib.report.model_card import card_metadata, model_card

HOSTILE = ["a|b", "<script>alert(1)</script>", "```js", "$x$ `y`", "two\nlines"]
TRAIN, VAL = np.arange(60), np.arange(60, 100)
HEADINGS = [
    "Model details", "Intended use", "Factors", "Metrics", "Training and evaluation data", "Quantitative analyses",
    "Ethical considerations", "Caveats and recommendations", "Use",
]  # fmt: skip
ABOUT = {
    "name": "demo", "dataset": "folder", "backbone": "ViT-L-14-quickgelu", "pretrained": "openai", "split": "grouped",
    "seed": 3, "views": 8, "training": {"epochs": 100, "learning_rate": 3e-4},
}  # fmt: skip


def make(classes=("tumor", "stroma", "necrosis"), groups=True, dataset="folder"):
    truth = np.random.default_rng(0).integers(0, 2, (100, len(classes))).astype(np.uint8)
    names = np.array([f"patient {i // 5}" for i in range(100)]) if groups else None
    return PatchDataset(dataset, list(classes), [f"{i}.png" for i in range(100)], truth, None, groups=names)


def scored(patches, names=None):
    generator = np.random.default_rng(1)
    methods = {name: from_probabilities(generator.random((40, len(patches.classes)))) for name in names or labels()}
    return evaluate_methods(methods, patches, VAL, 50, 0)


def card(patches, methods, **changed):
    return model_card(methods, patches, [(TRAIN, VAL)], **(ABOUT | changed))


def page(text):
    return BeautifulSoup(markdown_to_html(text), "html.parser")


def test_card_has_the_headings_of_model_cards_and_the_headline_numbers():
    patches = make()
    methods = scored(patches)
    text = page(card(patches, methods, findings="Calibrated **well**."))
    assert [heading.get_text() for heading in text.select("h2")] == HEADINGS
    lines = {line.td.get_text(): [cell.get_text() for cell in line.select("td")] for line in text.select("tbody tr")}
    assert list(lines) == list(labels().values())
    ours = methods["histoclip_patch"]
    assert lines["HistoCLIP, patch tokens"][1] == "{:.3f} ({:.3f} – {:.3f})".format(ours["mAcc"], *ours["mAcc_ci"])
    said = text.get_text()
    for words in (
        "Not for diagnosis", "epochs: 100", "learning_rate: 0.0003", "seed: 3", "views: 8", "60 patches to train on",
        "12 to train on, 8 to validate on, 0 in both parts", "under the MIT licence", "Calibrated well.",
        f"tumor: present in {patches.prevalence[0]:.0%}", f"accuracy {ours['per_class']['tumor']['accuracy']:.3f}",
    ):  # fmt: skip
        assert words in said


def test_card_calls_a_difference_one_only_where_the_test_does():
    patches = make()
    gaps = {"linear_probe": Difference(0.002, -0.01, 0.02, 0.4), "knn": Difference(0.2, 0.1, 0.3, 0.0001)}
    against = {name: Comparison(gap, gap) for name, gap in gaps.items()}
    text = card(patches, scored(patches), against=against)
    assert f"Linear probe: the patch head {ALIKE} it (+0.002, p = 0.40)" in text
    assert f"k-nearest neighbours: the patch head {BETTER} it (+0.200, p < 0.001)" in text


@pytest.mark.parametrize("groups", [True, False])
def test_any_name_is_shown_as_typed_and_does_nothing(groups):
    patches = make(HOSTILE, groups)
    hostile = {"name": "<img src=x onerror=y>|`", "backbone": "local-dir:*a*", "pretrained": ""}
    text = page(card(patches, scored(patches), **hostile))
    codes = {code.get_text() for code in text.select("code")}
    assert codes >= {*HOSTILE[:4], "two lines", "<img src=x onerror=y>|`", "local-dir:*a*"}
    assert not text.select("script, img, a[href]")
    assert len(text.select("h2")) == len(HEADINGS)
    assert len(text.select("table")) == 1


@pytest.mark.parametrize("dataset", ["synthetic", "folder", "bcss_wsss", "luad_histoseg", "pannuke"])
@pytest.mark.parametrize("split", ["random", "grouped", "given"])
def test_card_follows_data_set_split_and_encoder(dataset, split):
    text = card(make(dataset=dataset), {}, dataset=dataset, split=split, backbone="lite0-minilm", pretrained="")
    assert ("no patient is behind them" in text) == (dataset == "synthetic")
    assert DATASETS[dataset].licence in text
    assert DATASETS[dataset].about in text
    assert ("inflate every number" in text) == (split == "random")
    assert "is not CLIP" in text


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
def test_card_says_what_the_encoder_was_trained_on(backbone, pretrained, words):
    text = card(make(), {}, backbone=backbone, pretrained=pretrained)
    assert words in text
    assert ("TCGA images may be among them" in text) == (backbone != "lite0-minilm")


def test_undefined_metrics_are_dashes():
    patches = make()
    methods = scored(patches, ["majority"])
    methods["majority"] |= {"mAP": None, "mAP_ci": None}
    assert "| Majority of train |" in card(patches, methods)
    assert " | — | " in card(patches, methods)


@pytest.mark.parametrize("name", ["demo", "a: 'b' # [c] 肿瘤"])
def test_card_is_written_with_metadata_that_model_hubs_read(name):
    patches = make()
    methods, about = scored(patches), ABOUT | {"name": name}
    text = model_card(methods, patches, [(TRAIN, VAL)], **about)
    loaded = ModelCard(card_metadata(methods, name, "folder") + text)
    assert loaded.text.strip() == text.strip()
    assert loaded.data.license == "other"
    assert loaded.data.datasets == ["folder"]
    assert loaded.data.model_name == name
    values = {result.metric_type: result.metric_value for result in loaded.data.eval_results}
    ours = methods["histoclip_patch"]
    assert values == {"mAcc": pytest.approx(ours["mAcc"], abs=1e-4), "mAP": pytest.approx(ours["mAP"], abs=1e-4)}


def test_card_of_a_run_without_the_head_has_no_results_in_its_metadata():
    metadata = card_metadata(scored(make(), ["majority"]), "demo", "folder")
    assert ModelCard(metadata + "# Card").data.eval_results is None
