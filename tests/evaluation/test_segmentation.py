"""Maps as segmentation: counts equal to scikit-learn's, thresholds to brute force, and a known answer."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation import segmentation
from histoclip_lib.evaluation.segmentation import LEVELS, ONE_CLASS, measures, segment, segmentation_table
from histoclip_lib.evaluation.uncertainty import draw_units


class Masks:
    """The class maps that a test hands in."""

    def __init__(self, masks):
        self.masks = masks

    def mask(self, index):
        return self.masks[index]


def dataset(masks, n_classes=2):
    labels = np.array([[(mask == k + 1).any() for k in range(n_classes)] for mask in masks], dtype=np.uint8)
    classes = ["tumor", "stroma", "necrosis"][:n_classes]
    return PatchDataset("made", classes, [str(i) for i in range(len(masks))], labels, Masks(masks), has_masks=True)


@pytest.fixture(scope="module")
def quarters():
    """Six patches of 8 x 8 cells of 4 pixels: tumor on the left, stroma on the right, nothing below."""
    masks = []
    for edge in range(2, 8):
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[:24, : 4 * edge], mask[:24, 4 * edge :] = 1, 2
        masks.append(mask)
    return dataset(masks)


def perfect(patches, index):
    return np.stack([[(patches.mask(i) == k + 1).astype(np.float32) for k in range(2)] for i in index])


def test_maps_that_are_the_masks_score_one_and_one_class_scores_its_share(quarters):
    train, val = np.arange(3), np.arange(3, 6)
    maps = {"trained": perfect(quarters, val)}
    found = segment({"trained": perfect(quarters, train)}, train, maps, val, quarters.labels[val] == 1, quarters)
    assert found.maps == ["trained", ONE_CLASS]
    scores = {key: values for key, values in measures(found.confusion.sum(axis=1)).items()}
    assert scores["miou"][0] == scores["fwiou"][0] == scores["dice"][0] == 1
    hits, called, true = found.binary[0].sum(axis=0).T
    assert (hits == called).all()
    assert (hits == true).all()
    stroma = np.mean([(32 - 4 * edge) / 32 for edge in (5, 6, 7)])  # the most common class of the training patches
    assert scores["iou"][1] == pytest.approx([0, stroma])
    table = segmentation_table(found, ["tumor", "stroma"], draw_units(np.arange(3), 50, 0))
    assert table.loc["Trained head", "mIoU"] == "1.000 (1.000 to 1.000)"
    assert table.loc["One class everywhere", "IoU, stroma"] == f"{stroma:.3f}"


def test_maps_of_a_label_that_is_not_known_fit_no_threshold(quarters):
    index, noise = np.arange(3), np.random.default_rng(0).random((3, 2, 8, 8))
    thresholds = []
    for unknown in (0, np.nan):
        labels = np.full((6, 2), 1.0)
        labels[1] = unknown
        patches = replace(quarters, labels=labels)
        thresholds.append(segment({"trained": noise}, index, {"trained": noise}, index, labels[:3] == 1, patches))
    np.testing.assert_array_equal(*(found.thresholds for found in thresholds))


def test_measures_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 3, 500), random.integers(0, 4, 500)  # 3: none predicted
    counts = confusion_matrix(truth, predicted, labels=range(4))[:3]
    found = measures(counts)
    each = jaccard_score(truth, predicted, labels=[0, 1, 2], average=None)
    assert found["iou"] == pytest.approx(each)
    assert found["miou"] == pytest.approx(each.mean())
    assert found["fwiou"] == pytest.approx(np.average(each, weights=np.bincount(truth)))
    assert found["dice"] == pytest.approx(f1_score(truth, predicted, labels=[0, 1, 2], average="macro"))


def test_a_threshold_has_the_highest_iou_on_the_training_pixels(monkeypatch):
    monkeypatch.setattr(segmentation, "STEP", 1)
    random = np.random.default_rng(1)
    patches = dataset([(random.random((16, 16)) < 0.4).astype(np.uint8) for _ in range(4)], 1)
    maps = np.stack([[0.6 * random.random((16, 16)) + 0.4 * patches.mask(i)] for i in range(4)])
    [[threshold]], most_common = segmentation._fit([maps], np.arange(4), patches, segmentation._enlarged)
    scaled = (maps / maps.max(axis=(2, 3), keepdims=True)).ravel()
    truth = np.stack([patches.mask(i) for i in range(4)]).ravel()
    reached = {cut: jaccard_score(truth, scaled >= cut) for cut in np.arange(1, LEVELS) / LEVELS}
    assert reached[threshold] == pytest.approx(max(reached.values()), abs=1e-3)
    assert most_common == 0


def test_a_class_that_is_not_predicted_gets_no_pixel_and_a_patch_without_any_is_missed(quarters):
    val = np.array([0, 1])
    decisions = np.array([[True, False], [False, False]])
    maps = {"trained": np.ones((2, 2, 4, 4), np.float32)}
    found = segment(maps, val, maps, val, decisions, quarters)
    assert found.confusion[0, 0, :, 0].sum() == (quarters.mask(0) > 0).sum()
    assert found.confusion[0, 1, :, 2].sum() == (quarters.mask(1) > 0).sum()
    assert found.binary[0, :, 1, 1].tolist() == [0, 0]


def test_refined_maps_follow_the_edges_of_the_image(monkeypatch):
    masks, images = [], []
    for edge in (22, 27, 36, 41):
        mask = np.full((64, 64), 2, dtype=np.uint8)
        mask[:, :edge] = 1
        masks.append(mask)
        images.append(np.where(mask[..., None] == 1, 60, 200).repeat(3, axis=2).astype(np.uint8))
    patches = dataset(masks)
    patches.source.image = lambda index: images[index]
    maps = np.stack([[(mask == k + 1).reshape(4, 16, 4, 16).mean(axis=(1, 3)) for k in range(2)] for mask in masks])
    train, val = np.arange(2), np.arange(2, 4)
    arguments = ({"trained": maps[:2]}, train, {"trained": maps[2:]}, val, np.ones((2, 2), bool), patches)
    plain, refined = (
        measures(segment(*arguments, refine=refine).confusion[0].sum(axis=0))["miou"] for refine in (False, True)
    )
    assert refined > plain + 0.01
    assert refined > 0.97
    monkeypatch.setitem(sys.modules, "kornia.filters", None)
    with pytest.raises(HistoCLIPError, match=r"^refine_maps: kornia is not installed"):
        segment(*arguments, refine=True)
