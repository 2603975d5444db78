"""Copies across the split: planted ones are found, however turned; patches that only look alike are not."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from drawing import HOSTILE, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from histoclip_lib.common.predictions import Predictions, mean_accuracy
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.synthetic.patches import load_synthetic
from histoclip_lib.evaluation import leakage
from histoclip_lib.evaluation.leakage import (
    SAME_PIXELS,
    SplitScores,
    find_near_duplicates,
    near_duplicate_note,
    near_duplicate_table,
    nearest_training_patches,
    pixel_correlation,
    split_gap_note,
    split_gap_table,
    split_gaps,
)
from histoclip_lib.evaluation.uncertainty import bootstrap_interval
from histoclip_lib.features.reader import view_of
from histoclip_lib.features.store import SHARD_SIZE, Shards
from histoclip_lib.report import figures
from histoclip_lib.report.figures import patches as galleries


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def shifted(image, by):
    return np.pad(image, ((by, 0), (by, 0), (0, 0)), mode="reflect")[: image.shape[0], : image.shape[1]]


COPIES = {
    "itself": lambda image: image,
    "flipped": lambda image: image[:, ::-1],
    "turned": lambda image: np.rot90(image, 3),
    "transposed": lambda image: image.transpose(1, 0, 2),
    "flipped and compressed": lambda image: jpeg(image[::-1], 60),
    "shifted by 3": lambda image: shifted(image, 3),
    "shifted by 30": lambda image: shifted(image, 30),
    "darker": lambda image: (image * 0.85).astype(np.uint8),
    "of half the size": lambda image: np.asarray(Image.fromarray(image).resize((128, 128))),
}


def shards(pooled):
    pooled = np.asarray(pooled, dtype=np.float32)
    return Shards([pooled[start : start + SHARD_SIZE] for start in range(0, len(pooled), SHARD_SIZE)])


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    """Twenty synthetic patches, of as many patients as there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patches = load_synthetic(20)
        return [patches.image(index) for index in range(len(patches))]


class Pictures:
    def __init__(self, images):
        self.images = images

    def image(self, index):
        return self.images[index]

    def mask(self, index):
        return None

    def digest(self, index):
        return hashlib.sha256(self.images[index].tobytes()).hexdigest()


def dataset(images, groups=None, labels=None, files=None, classes=("a", "b")):
    labels = np.zeros((len(images), len(classes)), dtype=np.uint8) if labels is None else labels
    files = files or [f"{row}.png" for row in range(len(images))]
    return PatchDataset("made", list(classes), files, labels, Pictures(images), groups)


def small_features(images, views=8):
    """Features in the place of an encoder's: 16 x 16 grey values of each view."""
    small = [np.asarray(Image.fromarray(image).convert("L").resize((16, 16)), dtype=np.float32) for image in images]
    stacked = torch.from_numpy(np.stack(small))
    return shards(torch.stack([view_of(stacked, view).flatten(1) for view in range(views)], dim=1).numpy())


# Nearest by features


def brute(pooled, queries, train, groups):
    """Nearest and its cosine, for one pair and one view at a time."""
    centre = pooled[train, 0].mean(axis=0)
    found = []
    for query in queries:
        best = (-1, -np.inf)
        for other in train:
            same = other == query if groups is None else groups[other] == groups[query]
            if not same:
                cosine = cosine_similarity(pooled[[query], 0] - centre, pooled[other] - centre).max()
                best = max(best, (other, cosine), key=lambda pair: pair[1])
        found.append(best)
    return zip(*found, strict=True)


@pytest.mark.parametrize("with_groups", [False, True])
@pytest.mark.parametrize("views", [1, 3])
def test_nearest_equals_brute_force(views, with_groups):
    generator = np.random.default_rng(0)
    pooled = (generator.normal(size=(30, views, 5)) + 4).astype(np.float32)
    groups = generator.choice(["p", "q", "r"], 30) if with_groups else None
    order = generator.permutation(30)
    queries, train = order[:12], order[5:]  # some queries are training patches
    nearest, similarity = nearest_training_patches(shards(pooled), queries, train, groups)
    expected_nearest, expected_similarity = brute(pooled, queries, train, groups)
    np.testing.assert_array_equal(nearest, expected_nearest)
    np.testing.assert_allclose(similarity, expected_similarity, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 400), st.integers(0, 10**6))
@settings(max_examples=20)
def test_chunks_do_not_change_what_is_found(chunk, seed):
    generator = np.random.default_rng(seed)
    pooled, groups = shards(generator.normal(size=(300, 2, 4))), generator.integers(0, 9, 300).astype(str)
    queries, train = np.arange(0, 40), np.arange(20, 300)
    whole = nearest_training_patches(pooled, queries, train, groups, chunk=10**6)
    pieces = nearest_training_patches(pooled, queries, train, groups, chunk=chunk)
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_allclose(whole[1], pieces[1], rtol=1e-5)


def test_a_component_common_to_all_features_does_not_matter():
    pooled = np.random.default_rng(0).normal(size=(40, 1, 6))
    near, far = (nearest_training_patches(shards(pooled + c), np.arange(8), np.arange(8, 40)) for c in (0, 50))
    np.testing.assert_array_equal(near[0], far[0])
    np.testing.assert_allclose(near[1], far[1], atol=1e-3)


def test_a_single_group_has_no_neighbour_in_another():
    pooled = shards(np.random.default_rng(0).normal(size=(6, 1, 3)))
    nearest, similarity = nearest_training_patches(pooled, np.arange(6), np.arange(6), np.full(6, "p"))
    assert (nearest == -1).all()
    assert (similarity == -np.inf).all()


def test_identical_features_have_a_cosine_of_zero():
    _, similarity = nearest_training_patches(shards(np.ones((5, 2, 3))), np.arange(2), np.arange(2, 5))
    np.testing.assert_array_equal(similarity, 0)


# Pixels


@pytest.mark.parametrize("kind", COPIES)
def test_copies_have_the_same_pixels(tissue, kind):
    for image in tissue[:3]:
        copy = np.ascontiguousarray(COPIES[kind](image))
        assert pixel_correlation(image, copy) >= SAME_PIXELS
        assert pixel_correlation(copy, image) >= SAME_PIXELS


def test_each_of_the_eight_flips_and_rotations_is_tried(tissue):
    for view in range(8):
        turned = view_of(torch.from_numpy(tissue[0].copy()).permute(2, 0, 1), view).permute(1, 2, 0).numpy()
        assert pixel_correlation(np.ascontiguousarray(turned), tissue[0]) > 0.99


def test_different_patches_do_not_have_the_same_pixels(tissue):
    highest = [pixel_correlation(first, second) for k, first in enumerate(tissue) for second in tissue[:k:5]]
    assert len(highest) > 30
    assert np.nanmax(highest) < SAME_PIXELS - 0.1


def test_real_patches_are_distinguished_from_their_copies(shared_data):
    table = pd.read_csv(shared_data / "consep" / "labels.csv")
    rows = table[~table["group"].duplicated()].head(8)  # one patch of each of eight images
    images = [np.asarray(Image.open(shared_data / "consep" / file).convert("RGB")) for file in rows["file"]]
    for kind in ("flipped", "flipped and compressed", "shifted by 3"):
        assert all(
            pixel_correlation(image, np.ascontiguousarray(COPIES[kind](image))) > SAME_PIXELS for image in images
        )
    assert all(pixel_correlation(one, other) < 0.8 for k, one in enumerate(images) for other in images[:k])


def test_blank_patches_have_no_correlation():
    generator = np.random.default_rng(0)
    blank = (240 + generator.normal(0, 3, (100, 100, 3))).astype(np.uint8)
    nearly = blank.copy()
    nearly[:4] = 90  # a stain at the border, which the middle does not see
    assert np.isnan(pixel_correlation(blank, blank))
    assert np.isnan(pixel_correlation(np.full_like(blank, 7), blank))
    assert np.isnan(pixel_correlation(blank, nearly))


def test_correlation_is_never_above_one(tissue):
    mostly_blank = np.full_like(tissue[0], 245)
    mostly_blank[:120, :120] = tissue[0][:120, :120]
    for image in (mostly_blank, tissue[0]):
        assert pixel_correlation(image, image) == pytest.approx(1, abs=1e-6)
        assert pixel_correlation(image, image) <= 1
    assert pixel_correlation(tissue[1], mostly_blank) <= 1


# Both together


@pytest.fixture(scope="module")
def leaky(tissue):
    """Training patches 0 to 9; held-out patches: 4 others, then copies of 3 (flipped), 5 (the same bytes), 7."""
    images = [*tissue[:14], np.ascontiguousarray(tissue[3][:, ::-1]), tissue[5].copy(), jpeg(tissue[7], 50)]
    labels = np.zeros((17, 2), dtype=np.uint8)
    labels[[3, 14, 5], 0] = 1
    groups = np.array([f"p{row // 2}" for row in range(14)] + ["p1", "p2", "other"])
    patches = dataset(images, groups, labels)
    found = find_near_duplicates(small_features(images), patches, [(np.arange(10), np.arange(10, 17))], progress=False)
    return patches, found


def test_planted_copies_are_found_and_no_others(leaky):
    _, found = leaky
    assert found.flagged.tolist() == [False] * 4 + [True] * 3
    assert found.same_bytes.tolist() == [False] * 5 + [True, False]
    assert found.nearest[4:].tolist() == [3, 5, 7]
    assert found.similarity[4] > 0.99
    assert (found.similarity[:4] < 0.9).all()


def test_a_flipped_copy_is_found_thanks_to_the_views(leaky):
    patches, _ = leaky
    features = small_features(patches.source.images, views=1)
    found = find_near_duplicates(features, patches, [(np.arange(10), np.arange(10, 17))], progress=False)
    assert found.similarity[4] < 0.9  # so the test above says something


def test_the_reference_is_of_other_groups_and_raises_no_alarm(leaky):
    _, found = leaky
    assert len(found.reference_similarity) == len(found.reference_correlation) == 10
    assert np.nanmax(found.reference_correlation) < SAME_PIXELS


def test_the_reference_excludes_copies_within_a_group(tissue):
    images = [*tissue[:6], np.ascontiguousarray(tissue[0][::-1])]
    features, train, val = small_features(images), np.array([0, 1, 2, 3, 6]), np.array([4, 5])
    groups = np.array(["p", "q", "r", "s", "t", "u", "p"])
    known = find_near_duplicates(features, dataset(images, groups), [(train, val)], progress=False)
    assert (known.reference_correlation >= SAME_PIXELS).sum() == 0
    unknown = find_near_duplicates(features, dataset(images), [(train, val)], progress=False)
    assert (unknown.reference_correlation >= SAME_PIXELS).sum() == 2
    assert "the same rule flags 2 of" in near_duplicate_note(dataset(images), unknown)


def test_one_group_in_train_leaves_no_reference(tissue):
    images = tissue[:6]
    patches = dataset(images, np.array(["p"] * 4 + ["q"] * 2))
    found = find_near_duplicates(small_features(images), patches, [(np.arange(4), np.arange(4, 6))], progress=False)
    assert len(found.reference_similarity) == 0
    assert "For comparison" not in near_duplicate_note(patches, found)
    draw(figures.similarity_histogram(found))


def test_the_reference_is_a_sample_that_the_seed_decides(leaky, monkeypatch):
    patches, _ = leaky
    monkeypatch.setattr(leakage, "REFERENCE", 4)
    features = small_features(patches.source.images)
    first, again, other = (
        find_near_duplicates(
            features, patches, [(np.arange(10), np.arange(10, 17))], seed, progress=False
        ).reference_similarity
        for seed in (0, 0, 1)
    )
    assert len(first) == 4
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


def test_plain_patches_with_the_same_bytes_are_flagged():
    generator = np.random.default_rng(0)
    textured = [generator.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    plain = np.full((64, 64, 3), 240, dtype=np.uint8)
    patches = dataset([*textured, plain, plain])
    features = shards(generator.normal(size=(5, 1, 4)))  # which see no likeness
    found = find_near_duplicates(features, patches, [(np.arange(4), np.array([4]))], progress=False)
    assert found.nearest.tolist() == [3]
    assert found.flagged.all()
    assert np.isnan(found.correlation).all()
    assert "1 pair is too uniform to compare" in near_duplicate_note(patches, found)
    assert near_duplicate_table(patches, found).loc[1, "correlation of pixels"] == "too plain"


# Words and pictures


def test_note_counts_copies_and_groups(leaky):
    patches, found = leaky
    groups = patches.groups.copy()
    groups[10] = groups[found.nearest[0]]  # of one group, but no copy
    note = near_duplicate_note(replace(patches, groups=groups), found)
    assert f"{3 / 7:.1%} of all nearest training patches come from the group of the held-out patch" in note
    assert "**3 of 7 held-out patches (42.9%) have a near-duplicate in the training set**" in note
    assert "1 with the same bytes, 2 whose pixels" in note
    assert "2 of these pairs come from one group" in note
    assert "the same rule flags 0" in note


def test_note_without_copies_or_groups(tissue):
    patches = dataset(tissue[:8])
    found = find_near_duplicates(small_features(tissue[:8]), patches, [(np.arange(6), np.arange(6, 8))], progress=False)
    note = near_duplicate_note(patches, found)
    assert "**0 of 2 held-out patches (0.0%)" in note
    assert "from one group" not in note
    assert "group of the held-out" not in note


def test_table_lists_the_worst_pairs_first(leaky):
    table = near_duplicate_table(*leaky, count=4)
    assert list(table["held-out patch"][:3]) == ["15.png", "14.png", "16.png"]
    assert list(table["training patch"][:3]) == ["5.png", "3.png", "7.png"]
    assert list(table["same bytes"]) == ["yes", "no", "no", "no"]
    assert list(table["near-duplicate"]) == ["yes", "yes", "yes", "no"]
    assert list(table["same labels"][:3]) == ["no", "yes", "yes"]
    assert list(table["same group"][:3]) == ["yes", "yes", "no"]
    assert list(table.index) == [1, 2, 3, 4]


def test_histogram_states_the_medians_and_marks_the_threshold(leaky):
    _, found = leaky
    figure = figures.similarity_histogram(found)
    [line] = figure.axes[1].lines
    assert set(line.get_xdata()) == {SAME_PIXELS}
    alternative = draw(figure)
    assert f"median {np.median(found.similarity):.2f}" in alternative
    assert f"median {np.nanmedian(found.reference_correlation):.2f}" in alternative
    assert "3 held-out patches have a near-duplicate" in alternative


def test_gallery_shows_pairs_side_by_side_and_draws_any_name(leaky):
    patches, found = leaky
    named = dataset(
        patches.source.images,
        np.array([HOSTILE[row % 4] for row in range(17)]),
        files=[f"{row}{HOSTILE[row % 4]}" for row in range(17)],
        classes=HOSTILE[:2],
    )
    figure = galleries.near_duplicate_pairs(named, found, 3)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(shown) == 6
    np.testing.assert_array_equal(shown[0], patches.image(15))
    np.testing.assert_array_equal(shown[1], patches.image(5))
    np.testing.assert_array_equal(shown[3], patches.image(3))
    assert "near-duplicate: pixels 1.000" in draw(figure)
    unknown = galleries.near_duplicate_pairs(dataset(patches.source.images), found, 50)
    assert "group" not in draw(unknown)


# Random against grouped split


def scored(n_patches, skill, seed=0, n_classes=3, methods=("linear_probe", "histoclip_patch"), groups=20):
    """Scores that see the label by `skill` standard deviations."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (n_patches, n_classes))
    scores = {name: skill * (2 * labels - 1) + generator.normal(size=labels.shape) for name in methods}
    units = generator.integers(0, groups, n_patches)
    return SplitScores(labels, units, {name: Predictions(values, values > 0) for name, values in scores.items()})


def of(gaps, method, metric):
    [found] = [gap for gap in gaps if (gap.method, gap.metric) == (method, metric)]
    return found


def test_split_gap_is_the_difference_of_the_metrics_of_both_parts():
    random, grouped = scored(90, 1.0), scored(70, 0.5, seed=1)
    gaps = split_gaps(random, grouped, resamples=50)
    assert [gap.method for gap in gaps] == ["linear_probe"] * 2 + ["histoclip_patch"] * 2
    for method in random.methods:
        for metric in ("mAcc", "mAP"):
            values = [
                mean_accuracy(part.labels, part.methods[method].decisions)
                if metric == "mAcc"
                else average_precision_score(part.labels, part.methods[method].scores)
                for part in (random, grouped)
            ]
            found = of(gaps, method, metric)
            assert [found.random.value, found.grouped.value] == pytest.approx(values)
            assert found.gap.value == pytest.approx(values[0] - values[1])


def test_split_gap_intervals_of_each_part_are_those_of_the_table():
    random, grouped = scored(90, 1.0), scored(70, 0.5, seed=1)
    found = of(split_gaps(random, grouped, resamples=300, seed=4), "linear_probe", "mAcc")
    for gap, part, seed in ((found.random, random, 4), (found.grouped, grouped, 5)):
        correct = (part.labels == part.methods["linear_probe"].decisions).mean(axis=1)
        assert (gap.low, gap.high) == pytest.approx(bootstrap_interval(correct, part.units, 300, seed))


def test_split_gap_draws_the_parts_independently():
    """Var(difference) = Var + Var, even where both parts are the same patches."""
    part = scored(120, 0.5, groups=40)
    found = of(split_gaps(part, part, resamples=4000), "linear_probe", "mAcc")
    assert found.gap.value == 0
    one, both = found.random.high - found.random.low, found.gap.high - found.gap.low
    assert both == pytest.approx(2**0.5 * one, rel=0.1)


def test_split_gap_note_names_the_direction():
    good, bad = scored(200, 2.0), scored(200, 0.2, seed=1)
    note = split_gap_note(split_gaps(good, bad, 200))
    assert note.count("the random split is **optimistic**") == 4
    assert "- Linear probe, mAcc: " in note
    assert split_gap_note(split_gaps(bad, good, 200)).count("is **pessimistic**") == 4
    alike = split_gap_note(split_gaps(bad, scored(200, 0.2, seed=2), 200))
    assert alike.count("**not significantly different**") == 4


def test_split_gap_leaves_out_methods_that_one_split_lacks():
    one, other = scored(40, 1, methods=("majority", "linear_probe")), scored(40, 1, methods=("linear_probe",))
    assert {gap.method for gap in split_gaps(one, other, resamples=20)} == {"linear_probe"}


def test_split_gap_of_constant_scores_is_defined():
    random, grouped = scored(40, 1), scored(30, 1, seed=1)
    random.labels[:, 0] = 0
    constant = Predictions(np.zeros((30, 3)), np.zeros((30, 3), dtype=bool))
    grouped = SplitScores(grouped.labels, grouped.units, {"linear_probe": constant})
    gaps = split_gaps(random, grouped, resamples=100)
    assert "—" not in split_gap_table(gaps).to_numpy()
    assert of(gaps, "linear_probe", "mAP").grouped.value == pytest.approx(grouped.labels.mean())


def test_split_gap_of_map_is_undefined_without_a_positive_patch():
    random, grouped = scored(40, 1), scored(30, 1, seed=1)
    grouped.labels[:] = 0
    gaps = split_gaps(random, grouped, resamples=20)
    found = of(gaps, "linear_probe", "mAP")
    assert np.isnan([found.grouped.value, found.gap.value, found.gap.low]).all()
    assert "Linear probe, mAP: not defined" in split_gap_note(gaps)
    table = split_gap_table(gaps)
    assert table[table["metric"] == "mAP"]["random minus grouped"].tolist() == ["—", "—"]


def test_split_gap_table_is_text_with_intervals():
    gaps = split_gaps(scored(90, 1.0), scored(70, 0.5, seed=1), resamples=50)
    gap, table = of(gaps, "histoclip_patch", "mAcc").gap, split_gap_table(gaps)
    cell = table[table["metric"] == "mAcc"].loc["HistoCLIP, patch tokens", "random minus grouped"]
    assert cell == f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    assert list(table.columns) == ["metric", "random split", "grouped split", "random minus grouped"]
