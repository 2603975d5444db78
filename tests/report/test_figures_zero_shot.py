"""Pictures of prompts: what they say, and that no name or number of classes breaks them."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.prompting.sensitivity import AS_REPORTED, SINGLE_TEMPLATE, SYNONYMS
from histoclip_lib.report import figures

COLUMNS = ["strategy", "kind", "prompt", "mAcc", "mAP"]


def width_of(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return Image.open(buffer).width


def spread(kinds=(SINGLE_TEMPLATE, SYNONYMS), strategies=("Baseline", "Top-k")):
    lines = [(s, AS_REPORTED, "a; b", 0.5 + k / 10, 0.6) for k, s in enumerate(strategies)]
    lines += [(s, kind, f"$x^{{$ {k}", k / 8, 0.3 + k / 20) for s in strategies for kind in kinds for k in range(4)]
    return pd.DataFrame(lines, columns=COLUMNS)


def test_spread_says_what_was_reported_and_the_ranges():
    figure = figures.prompt_spread(spread())
    assert width_of(figure) < 800
    assert "Baseline, as reported: mAcc 0.500, mAP 0.600" in figure.alternative
    assert "Top-k, synonyms: mAcc 0.000 to 0.375 (4), mAP 0.300 to 0.450 (4)" in figure.alternative


def test_spread_puts_a_diamond_on_the_line_of_its_strategy():
    panels = figures.prompt_spread(spread()).axes
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["Baseline", "Top-k"]
    for axes, expected in zip(panels, [[0.5, 0.6], [0.6, 0.6]], strict=True):
        [diamonds] = axes.lines
        np.testing.assert_allclose(diamonds.get_xdata(), expected)
        np.testing.assert_array_equal(diamonds.get_ydata(), [0, 1])
        dots = np.concatenate([dots.get_offsets() for dots in axes.collections])
        assert len(dots) == 16
        assert not np.isin(dots[:, 1], (0, 1)).any()  # beside the diamonds, not under them


@pytest.mark.parametrize("kinds", [(SINGLE_TEMPLATE,), ()])
def test_spread_without_synonyms_or_variants(kinds):
    figure = figures.prompt_spread(spread(kinds))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [AS_REPORTED, *kinds]
    width_of(figure)


def test_spread_without_any_defined_map():
    figure = figures.prompt_spread(spread().assign(mAP=np.nan))
    assert "mAP 0" not in figure.alternative
    width_of(figure)


@pytest.mark.parametrize("n_classes", [1, 2, 16])
def test_similarities_fit_a_page_and_are_all_said(n_classes):
    vectors = np.random.default_rng(0).normal(size=(n_classes, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"{k} {'a class with a very long name' * 3}" for k in range(n_classes)]
    figure = figures.similarity_map(vectors @ vectors.T, names)
    assert width_of(figure) < 900
    assert figure.alternative.count(" and ") == n_classes * (n_classes - 1) // 2
    assert len(figure.axes[0].texts) == n_classes**2


def test_boxes_are_titled_by_strategy_and_the_legend_lies_outside_of_them():
    labels = np.random.default_rng(0).integers(0, 2, (30, 3))
    scores = Predictions(labels - 0.5, labels > 0)
    figure = figures.score_distributions({"One-vs-Rest": scores, "Top-k": scores}, labels, list("abc"))
    assert [axes.get_title() for axes in figure.axes] == ["One-vs-Rest", "Top-k"]
    assert "One-vs-Rest: a present 0.500" in figure.alternative
    assert "b absent -0.500" in figure.alternative
    assert [axes.get_legend() for axes in figure.axes] == [None, None]
    figure.draw_without_rendering()
    [legend] = figure.legends
    assert [text.get_text() for text in legend.texts] == ["absent", "present"]
    assert not any(legend.get_window_extent().overlaps(axes.get_tightbbox()) for axes in figure.axes)
