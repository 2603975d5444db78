import io

import numpy as np
import pandas as pd
import pytest
from drawing import HOSTILE, draw
from IPython.display import Image as ShownImage
from matplotlib import pyplot as plt
from PIL import Image

from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.confusion import confusion, predicted_when_missed
from histoclip_lib.report import figures
from histoclip_lib.report.figures import patches as galleries

PLAIN = ["tumor", "stroma", "lymphocyte", "necrosis"]


class Source:
    def image(self, index):
        return np.random.default_rng(index).integers(0, 255, (40, 40, 3), dtype=np.uint8)

    def mask(self, index):
        mask = np.zeros((40, 40), dtype=np.uint8)
        mask[:20, :20], mask[20:, 20:] = 1, 2
        return mask


@pytest.fixture(params=["plain", "hostile"])
def classes(request):
    return PLAIN if request.param == "plain" else HOSTILE


@pytest.fixture
def case(classes):
    """Twelve masked patches with labels and probabilities."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (12, 4)).astype(np.uint8)
    files = [f"{i}$_{classes[0]}" for i in range(12)]
    patches = PatchDataset("made", classes, files, labels, Source(), has_masks=True)
    return patches, generator.random((12, 4))


def test_data_figures_draw_and_say_the_numbers(case):
    patches, _ = case
    rows = np.arange(12)
    bars = draw(figures.prevalence_bars(patches.labels, rows[:8], rows[8:], patches.classes))
    assert f"{patches.classes[0]} {patches.labels[:8, 0].mean():.2f}" in bars
    pairs = draw(figures.co_occurrence_map(patches.labels, patches.classes))
    both = patches.labels[:, 0] & patches.labels[:, 1]
    assert f"given {patches.classes[0]}: {patches.classes[1]} {both.sum() / patches.labels[:, 0].sum():.2f}" in pairs


def test_result_figures_draw_any_class_name(case):
    patches, probabilities = case
    predictions = from_probabilities(probabilities)
    draw(figures.confusion_grid(confusion(patches.labels, predictions.decisions), patches.classes, "row"))
    rates, misses = predicted_when_missed(patches.labels, predictions.decisions)
    draw(figures.missed_class_map(rates, misses, patches.classes))
    draw(figures.per_class_map(pd.DataFrame([[0.1, 0.5, 1, np.nan]], ["row"], patches.classes), "accuracy"))
    draw(figures.similarity_map(np.eye(4), patches.classes))
    draw(figures.score_distributions({"Baseline": predictions}, patches.labels, patches.classes))


def test_names_in_chinese_are_drawn_where_a_font_has_them(recwarn):
    fonts = set(figures.base.MORE_FONTS) & figures.base.INSTALLED_FONTS
    if not fonts:
        pytest.skip("no font for Chinese is installed")
    draw(figures.similarity_map(np.eye(2), ["肿瘤", "間質"]))
    assert [str(warning.message) for warning in recwarn if "missing from" in str(warning.message)] == []


def test_forest_plot_says_each_row_with_its_interval():
    rows = {"majority": {"mAcc": 0.7, "mAcc_ci": [0.6, 0.8]}, "histoclip_patch": {"mAcc": 0.9, "mAcc_ci": [0.85, 0.95]}}
    alternative = draw(figures.forest_plot(rows, {"majority": "Majority", "histoclip_patch": "HistoCLIP"}))
    assert "0.900 (0.850 to 0.950)" in alternative


def test_training_curves_say_the_last_epoch():
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 1, 2],
            "loss": [0.7, 0.6, 0.7, 0.5],
            "val_loss": [np.nan, 0.65, np.nan, 0.62],
            "val_mAcc": [np.nan, 0.71, np.nan, 0.74],
            "head": ["global", "global", "patch", "patch"],
        }
    )
    alternative = draw(figures.training_curves(history, {"majority": 0.7}))
    assert "patch: train loss 0.500, validation loss 0.620, mAcc 0.740" in alternative


def test_galleries_draw_any_name(case):
    patches, probabilities = case
    rows = np.arange(12)
    assert "12 patches" in draw(galleries.sample_patches(patches, rows, 20, seed=0))
    assert "most confident" in draw(galleries.confident_errors(patches, rows, probabilities, 3))
    maps = np.random.default_rng(0).random((12, 4, 5, 5))
    chosen = galleries.choose_for_attention(patches.labels, probabilities, 3)
    for figure, position in zip(
        galleries.attention_figures(patches, rows, maps, probabilities, chosen), chosen, strict=True
    ):
        assert patches.files[position] in draw(figure)


def test_alternative_says_where_attention_is_highest():
    maps = np.zeros((1, 6, 6))
    maps[0, 5, 0] = 1
    figure = galleries.attention_overlay(
        np.zeros((12, 12, 3), dtype=np.uint8), maps, ["tumor"], np.array([1]), np.array([0.9]), None, "patch"
    )
    assert "tumor: present, probability 0.90, most attention at the bottom left" in figure.alternative


def test_confident_errors_are_the_surest_wrong_ones_of_distinct_patches():
    labels = np.array([[1, 0], [0, 0], [1, 1], [0, 1]])
    probabilities = np.array([[0.9, 0.99], [0.2, 0.6], [0.4, 0.1], [0.1, 0.8]])
    assert galleries.find_confident_errors(labels, probabilities, 10) == [(0, 1), (2, 1), (1, 1)]
    assert galleries.find_confident_errors(labels, probabilities, 1) == [(0, 1)]


def test_without_errors_there_is_no_gallery():
    patches = PatchDataset("made", ["a"], ["0", "1"], np.array([[1], [0]]), Source())
    assert galleries.confident_errors(patches, np.arange(2), np.array([[0.9], [0.1]]), 4) is None


def test_attention_patches_show_every_class_that_is_found():
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1], [1, 1, 0]])
    probabilities = np.array(
        [[0.9, 0.8, 0.1], [0.99, 0.1, 0.1], [0.2, 0.9, 0.7], [0, 0, 0.95], [0.1, 0.2, 0.1], [0.95, 0.99, 0.9]]
    )
    chosen = galleries.choose_for_attention(labels, probabilities, 3)
    assert chosen[:2] == [0, 2]  # several labels, all right; patch 5 has an error
    assert len(set(chosen)) == 3
    assert 4 not in galleries.choose_for_attention(labels, probabilities, 10)  # nothing was found in it


def test_shown_figure_is_a_double_resolution_png_with_its_alternative(monkeypatch):
    shown = []
    monkeypatch.setattr(figures.base, "display", shown.append)
    figure, _ = plt.subplots(figsize=(3, 2))
    figures.show(figures.described(figure, "A figure with nothing in it."))
    assert isinstance(shown[0], ShownImage)
    width = Image.open(io.BytesIO(shown[0].data)).width
    assert shown[0].width == width // 2
    assert shown[0].alt == "A figure with nothing in it."
    assert not plt.fignum_exists(figure.number)


def test_photographs_are_shown_as_jpeg(monkeypatch):
    """A gallery as PNG takes several times as many bytes."""
    shown = []
    monkeypatch.setattr(figures.base, "display", shown.append)
    for pixels in (np.zeros((400, 400)), np.random.default_rng(0).random((400, 400, 3))):
        figure, axes = plt.subplots(figsize=(6, 6))
        axes.imshow(pixels, interpolation="nearest")
        figures.show(figures.described(figure, "Pixels."))
    assert [Image.open(io.BytesIO(image.data)).format for image in shown] == ["PNG", "JPEG"]
    assert shown[0].width == pytest.approx(shown[1].width, abs=1)


def test_a_chart_is_half_its_size_or_less_and_looks_the_same():
    figure, axes = plt.subplots()
    figures.base.heat_map(
        axes, np.random.default_rng(0).random((8, 8)), list("abcdefgh"), list("ijklmnop"), "share", 0, 1
    )
    whole = figures.base._rendered(figure, format="png")
    shown = figures.base.as_image(figures.described(figure, "Shares")).data
    assert len(shown) < len(whole) / 2
    before, after = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float) for data in (whole, shown))
    assert np.sqrt(((before - after) ** 2).mean()) < figures.base.SEEN
    assert Image.open(io.BytesIO(shown)).mode == "P"


def test_gallery_of_nothing_shows_nothing(monkeypatch):
    shown = []
    monkeypatch.setattr(figures.base, "display", shown.append)
    figures.show(None)
    assert shown == []


@pytest.mark.parametrize("name", HOSTILE)
def test_short_names_are_one_short_line(name):
    assert len(figures.short(name)) <= figures.base.MAX_NAME
    assert "\n" not in figures.short(name)
