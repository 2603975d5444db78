import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation import localisation
from histoclip_lib.evaluation.localisation import (
    FINE,
    MapScores,
    agreement_by_class,
    agreement_table,
    attention_verdict,
    best_and_worst,
    class_means,
    deletion_table,
    score_maps,
    trained_minus,
)
from histoclip_lib.evaluation.uncertainty import bootstrap_interval, draw_units
from histoclip_lib.models.attention import enlarge

NAMES = ["trained", "untrained"]


class Masks:
    """The class maps that a test hands in."""

    def __init__(self, masks):
        self.masks = masks

    def mask(self, index):
        return self.masks[index]


def dataset(masks, labels, classes=("left", "corner")):
    files = [str(i) for i in range(len(masks))]
    return PatchDataset("made", list(classes), files, np.array(labels, dtype=np.uint8), Masks(masks), has_masks=True)


def halves(size=8):
    """Class 0 fills the left half, class 1 a corner."""
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[:, : size // 2] = 1
    mask[3 * size // 4 :, 3 * size // 4 :] = 2
    return mask


@pytest.fixture
def masked():
    return dataset([halves(), halves(), None], [[1, 1], [1, 0], [1, 1]])


def spots(row, column, k, side=8, n=3):
    maps = np.zeros((n, 2, side, side), dtype=np.float32)
    maps[:, k, row, column] = 1
    return maps


def test_a_map_inside_the_mask_scores_one_and_one_outside_zero(masked):
    inside = spots(4, 1, 0) + spots(7, 7, 1)
    outside = spots(0, 7, 0) + spots(0, 7, 1)
    scores = score_maps({"trained": inside, "untrained": outside}, masked, np.arange(3))
    assert scores.maps == NAMES
    for measure in (scores.pointing, scores.mass):
        np.testing.assert_allclose(class_means(measure), [[1, 1], [0, 0]], atol=1e-6)
    assert (class_means(scores.ap)[0] > class_means(scores.ap)[1]).all()


def test_only_present_classes_with_a_mask_that_leaves_something_out_count():
    whole, nothing = np.ones((8, 8), dtype=np.uint8), np.zeros((8, 8), dtype=np.uint8)
    patches = dataset([halves(), halves(), None, whole, nothing], [[1, 1], [1, 0], [1, 1], [1, 0], [1, 0]])
    scores = score_maps({"trained": np.ones((5, 2, 4, 4), np.float32)}, patches, np.arange(5))
    expected = np.array([[1, 1], [1, 0], [0, 0], [0, 0], [0, 0]], dtype=bool)
    for values in (scores.area, scores.ap[0], scores.mass[0], scores.pointing[0]):
        assert np.array_equal(~np.isnan(values), expected)


@pytest.mark.parametrize(("size", "side"), [(256, 7), (224, 16), (50, 7), (40, 24), (57, 37)])
def test_a_uniform_map_scores_the_area_in_every_measure(size, side):
    mask = (np.random.default_rng(0).random((size, size)) < 0.3).astype(np.uint8)
    scores = score_maps(
        {"trained": np.full((1, 1, side, side), 1 / side**2, np.float32)}, dataset([mask], [[1]], ["a"]), np.array([0])
    )
    assert scores.area[0, 0] == mask.mean()
    for values in (scores.pointing, scores.mass, scores.ap):
        assert values[0, 0, 0] == pytest.approx(mask.mean(), rel=1e-6)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**20), side=st.sampled_from([2, 7, 16]), size=st.sampled_from([40, 56, 97, 224]),
    ties=st.booleans(),
)  # fmt: skip
def test_average_precision_equals_scikit_learn_at_full_resolution(seed, side, size, ties):
    """Of the map that is constant in each fine cell, weighted by nothing: every pixel is one example."""
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 3, (side, side)) + 1.0 if ties else generator.random((side, side))
    mask = np.zeros((size, size), dtype=np.uint8)
    row, column = generator.integers(0, size - 8, 2)
    mask[row : row + generator.integers(1, 30), column : column + generator.integers(1, 30)] = 1
    maps = (values / values.sum()).astype(np.float32)
    scores = score_maps({"trained": maps[None, None]}, dataset([mask], [[1]], ["a"]), np.array([0]))
    cell = np.arange(size) * FINE // size
    pixels = enlarge(maps, FINE)[cell][:, cell]
    pixels = (pixels / pixels.max()).round(6)
    assert scores.ap[0, 0, 0] == pytest.approx(average_precision_score(mask.ravel(), pixels.ravel()), abs=2e-3)
    assert scores.mass[0, 0, 0] == pytest.approx((pixels * mask).sum() / pixels.sum(), rel=1e-4)
    brightest = pixels == pixels.max()
    if brightest.sum() * FINE**2 / size**2 < 1.5:  # no tie that a rounded digit could break
        assert scores.pointing[0, 0, 0] == pytest.approx(mask[brightest].mean(), abs=1e-6)


def test_fine_grid_is_the_bilinear_interpolation_of_torch():
    from torch.nn import functional

    maps = np.random.default_rng(0).random((3, 7, 7)).astype(np.float32)
    expected = functional.interpolate(torch.from_numpy(maps)[:, None].double(), size=FINE, mode="bilinear").flatten(1)
    expected /= expected.amax(dim=1, keepdim=True)
    np.testing.assert_allclose(localisation._enlarged(maps), expected, atol=1e-6)


def test_scores_on_the_fine_grid_equal_those_at_full_resolution():
    """Against the map enlarged to every pixel, on a small region: the grid costs less than a hundredth."""
    generator = np.random.default_rng(0)
    for _ in range(3):
        maps = generator.random((7, 7)).astype(np.float32)
        mask = np.zeros((256, 256), dtype=np.uint8)
        row, column = generator.integers(0, 220, 2)
        mask[row : row + 30, column : column + 20] = 1
        scores = score_maps({"trained": maps[None, None]}, dataset([mask], [[1]], ["a"]), np.array([0]))
        pixels = enlarge(maps, 256)
        expected = average_precision_score(mask.ravel(), pixels.ravel())
        assert scores.ap[0, 0, 0] == pytest.approx(expected, abs=0.01)
        assert scores.mass[0, 0, 0] == pytest.approx((pixels * mask).sum() / pixels.sum(), abs=2e-3)
        assert scores.pointing[0, 0, 0] == pytest.approx(mask.flat[pixels.argmax()], abs=0.3)


def test_a_mask_of_one_pixel_is_scored():
    mask = np.zeros((256, 256), dtype=np.uint8)
    mask[91, 18] = 1
    maps = np.zeros((1, 1, 7, 7), dtype=np.float32)
    maps[0, 0, 2, 0] = 1
    scores = score_maps({"trained": maps}, dataset([mask], [[1]], ["a"]), np.array([0]))
    assert scores.area[0, 0] == 1 / 256**2
    assert scores.ap[0, 0, 0] > 100 * scores.area[0, 0]
    assert scores.mass[0, 0, 0] > 10 * scores.area[0, 0]


def test_masks_are_cropped_to_what_the_encoder_sees():
    mask = np.zeros((8, 16), dtype=np.uint8)
    mask[:, :8] = 1  # the left half of the image, and of its centre square
    scores = score_maps({"trained": spots(4, 1, 0, n=1)}, dataset([mask], [[1, 0]]), np.array([0]))
    assert scores.area[0, 0] == 0.5
    assert scores.mass[0, 0, 0] == pytest.approx(1)


def made_scores(gap=0.1, n=60, classes=3, seed=0):
    """Trained attention is above the other set by `gap` on average."""
    generator = np.random.default_rng(seed)
    area = generator.uniform(0.1, 0.5, (n, classes))
    area[generator.random((n, classes)) < 0.4] = np.nan
    area[:, -1] = np.nan  # a class that never counts
    noise = generator.normal(0, 0.05, (2, n, classes))
    values = area + 0.1 + noise + np.array([gap, 0])[:, None, None]
    return MapScores(NAMES, values, values / 2, values, area)


def test_difference_is_that_of_the_class_means_with_a_cluster_bootstrap_interval():
    scores, units = made_scores(), np.repeat(np.arange(15), 4)
    gap = trained_minus(scores, "untrained", "ap", draw_units(units, 500, 0))
    means = class_means(scores.ap)
    assert gap.value == pytest.approx(np.nanmean(means[0] - means[1]))
    assert gap.low < gap.value < gap.high
    one_class = MapScores(NAMES, *(a[..., :1] for a in (scores.pointing, scores.mass, scores.ap, scores.area)))
    there = ~np.isnan(one_class.area[:, 0])
    assert np.unique(units[there]).size == 15  # then the draws are the same
    gaps = (one_class.ap[0] - one_class.ap[1])[there, 0]
    found = trained_minus(one_class, "untrained", "ap", draw_units(units, 500, 0))
    assert (found.low, found.high) == pytest.approx(bootstrap_interval(gaps, units[there], 500, 0))


def test_interval_is_of_the_mean_over_the_classes_in_each_sample():
    scores, units = made_scores(n=24), np.repeat(np.arange(6), 4)
    gaps = scores.ap[0] - scores.ap[1]
    counts = draw_units(units, 50, 7).counts
    drawn = [np.concatenate([gaps[units == u] for u in np.repeat(np.arange(6), line)]) for line in counts]
    means = [np.mean([np.nanmean(sample[:, k]) for k in range(2)]) for sample in drawn]
    found = trained_minus(scores, "untrained", "ap", draw_units(units, 50, 7))
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]))


@pytest.mark.filterwarnings("error")
def test_table_shows_means_and_differences():
    scores, units = made_scores(), np.arange(60)
    table = agreement_table(scores, draw_units(units, 200, 0))
    assert list(table.index) == ["Trained head", "Head before training"]
    mean = np.nanmean(class_means(scores.ap)[0])
    assert table.loc["Trained head", ("per-pixel AP", "mean")] == f"{mean:.3f}"
    gap = trained_minus(scores, "untrained", "mass", draw_units(units, 200, 0))
    found = table.loc["Head before training", ("mass in the mask", "trained minus this")]
    assert found == f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    by_class = agreement_by_class(scores, ["a|b", "<b>", "c"], "ap", draw_units(units, 200, 0))
    one = MapScores(NAMES, *(a[..., 1:2] for a in (scores.pointing, scores.mass, scores.ap, scores.area)))
    one.ap[0] = 0  # so that the difference is the other map alone
    gap = trained_minus(one, "untrained", "ap", draw_units(units, 200, 0))
    expected = f"{-gap.value:.3f} ({-gap.high:.3f} to {-gap.low:.3f})"
    assert by_class.loc["Head before training", "<b>"] == expected
    assert by_class["c"].tolist() == ["—", "—", "0"]


def test_deletion_table_counts_patches_in_which_the_class_is_present():
    falls = {"trained": np.array([[1.0, 5.0], [3.0, 2.0]])}
    table = deletion_table(falls, np.array([[1, 0], [1, 1]]), ["a", "b"], draw_units(np.arange(2), 50, 0))
    assert table.loc["Trained head", "a"].startswith("2.000 (1.000 to 3.000")
    assert table.loc["Trained head", "all classes"].startswith("2.000 (")


@pytest.mark.parametrize(
    ("gap", "finding"),
    [
        (0.2, "is significantly better than"),
        (-0.2, "is significantly worse than"),
        (0, "is not significantly different from"),
    ],
)
def test_verdict_follows_the_interval(gap, finding):
    scores = made_scores(gap)
    if gap == 0:
        scores.ap[1] = scores.ap[0][np.random.default_rng(1).permutation(60)] - scores.area[:1] * 0
    text = attention_verdict(scores, draw_units(np.arange(60), 500, 0))
    assert f"**{finding}** *head before training*" in text
    assert f"{np.nanmean(class_means(scores.area)):.3f}" in text


@pytest.mark.filterwarnings("error")
def test_without_a_scored_patch_there_is_no_verdict():
    scores = MapScores(NAMES, *(np.full((2, 4, 2), np.nan) for _ in range(3)), np.full((4, 2), np.nan))
    assert "cannot be scored" in attention_verdict(scores, draw_units(np.arange(4), 100, 0))
    assert agreement_table(scores, draw_units(np.arange(4), 100, 0)).iloc[0].tolist() == ["—", "", "—", "", "—", ""]
    assert best_and_worst(scores.gain(), 3) == ([], [])


def test_gain_is_average_precision_above_chance():
    scores = made_scores()
    np.testing.assert_array_equal(scores.gain(), scores.ap[0] - scores.area)


def test_best_and_worst_come_from_both_ends_and_do_not_overlap():
    values = np.array([[0.5, np.nan, 0.1], [0.9, 0.3, np.nan]])
    assert best_and_worst(values, 1) == ([(1, 0)], [(0, 2)])
    assert best_and_worst(values, 2) == ([(1, 0), (0, 0)], [(0, 2), (1, 1)])
    best, worst = best_and_worst(values[:, :2], 5)
    assert (best, worst) == ([(1, 0), (0, 0)], [(1, 1)])


@pytest.mark.parametrize("gap", np.linspace(0.01, 0.04, 7))
def test_the_first_sentence_and_the_list_say_the_same_of_the_probe(gap):
    made = made_scores(gap)
    scores = MapScores(["trained", "probe_unit"], made.pointing, made.mass, made.ap, made.area)
    first, _, listed = attention_verdict(scores, draw_units(np.arange(60) // 6, 500, 0, 5)).partition("\n")
    said = re.search(r"which (.*) that of the linear probe", first)[1]
    assert f"**{said}** *linear probe on unit tokens*" in listed
