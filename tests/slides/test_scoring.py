"""Scoring a slide's map: shares of a mask, AUROC and Dice with their intervals, and labels at points."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.slides import scoring

CLASSES = ["tumor", "stroma"]


def made_tiles(columns=20, rows=12, side=100, seed=0):
    y, x = (axis.ravel() * side for axis in np.mgrid[:rows, :columns])
    chance = np.random.default_rng(seed).random((2, len(x)))
    table = pd.DataFrame({"x": x, "y": y, "width": side, "height": side, "tissue": 1.0})
    for name, own in zip(CLASSES, chance, strict=True):
        table[f"prob_{name}"], table[f"present_{name}"] = own.round(2), own.round(2) >= 0.4
    return table


@pytest.mark.parametrize("factor", [1, 4, 10])
def test_the_share_of_each_tile_is_what_its_pixels_count(factor):
    mask = np.random.default_rng(1).integers(0, 3, (1200 // factor, 2000 // factor), dtype=np.uint8)
    tiles = made_tiles()
    tiles.loc[0, ["x", "y"]] = -40  # a part of it is on the slide
    cover = scoring.cover_of_tiles(mask, tiles, (2000, 1200), 2)
    for i in (0, 1, 77, 239):
        x, y = tiles.loc[i, ["x", "y"]].to_numpy(int) // factor
        field = mask[max(y, 0) : y + 100 // factor, max(x, 0) : x + 100 // factor]
        np.testing.assert_allclose(cover[i], [(field == k).sum() / (100 // factor) ** 2 for k in (1, 2)])


def test_auroc_and_dice_are_scikit_learns_and_unknown_tiles_do_not_count():
    tiles = made_tiles()
    truth = (np.random.default_rng(2).random((len(tiles), 2)) < 0.3).astype(float)
    truth[::5, 1] = np.nan
    scored = scoring.score_tiles(truth, tiles, CLASSES, 200)
    for k, name in enumerate(CLASSES):
        known, line = ~np.isnan(truth[:, k]), scored.loc[k]
        assert (line.n_tiles, line.n_present) == (known.sum(), np.nansum(truth[:, k]))
        assert line.auroc == pytest.approx(roc_auc_score(truth[known, k], tiles[f"prob_{name}"][known]))
        assert line.dice == pytest.approx(f1_score(truth[known, k], tiles[f"present_{name}"][known]))
        assert line.auroc_low < line.auroc < line.auroc_high
        assert line.dice_low < line.dice < line.dice_high


def test_the_interval_knows_that_neighbours_are_alike():
    """Tiles that are copies of each other within their block say no more than one of them."""
    few = made_tiles(10, 10, side=100)
    truth = (few.prob_tumor + np.random.default_rng(3).normal(0, 0.4, len(few)) > 0.5).to_numpy(float)
    copies = few.loc[few.index.repeat(64)].reset_index(drop=True)
    step = np.tile(np.arange(64), len(few))
    copies = copies.assign(x=copies.x * 8 + step % 8 * 100, y=copies.y * 8 + step // 8 * 100)
    scored = scoring.score_tiles(np.stack([truth.repeat(64)] * 2, axis=1), copies, CLASSES, 500).loc[0]
    alone = few.assign(x=few.x * 8, y=few.y * 8)  # one in each block
    expected = scoring.score_tiles(np.stack([truth] * 2, axis=1), alone, CLASSES, 500).loc[0]
    assert scored.auroc_high - scored.auroc_low == pytest.approx(expected.auroc_high - expected.auroc_low, rel=0.01)


def test_what_is_not_defined_is_nan():
    tiles = made_tiles(3, 1)  # one block
    tiles["present_stroma"] = False
    truth = np.array([[0, 0], [1, 0], [1, 0]])
    scored = scoring.score_tiles(truth, tiles, CLASSES)
    assert scored.auroc.isna().tolist() == [False, True]
    assert scored.dice.isna().tolist() == [False, True]
    assert scored[["auroc_low", "dice_high"]].isna().all(axis=None)
    assert scoring.score_tiles(truth * np.nan, tiles, CLASSES).n_tiles.tolist() == [0, 0]


def test_a_point_is_scored_by_the_tile_that_holds_it(tmp_path):
    tiles = made_tiles()
    path = tmp_path / "slide_points.csv"
    path.write_text("spot,x,y,stroma\na,50,50,1\nb,199.5,100,0\nc,200,1199,\nd,2000,50,1\n")
    points = scoring.read_points(path, CLASSES)
    assert scoring.tiles_at(points, tiles).tolist() == [0, 21, 222, -1]
    assert points.tumor.isna().all()
    scored = scoring.score_points(points, tiles, CLASSES)
    assert scored.n_tiles.tolist() == [0, 2]
    assert scored.auroc[1] == float(tiles.prob_stroma[0] > tiles.prob_stroma[21])
    assert scoring.tiles_at(tiles[["x", "y"]], tiles).tolist() == list(range(len(tiles)))  # corners of four tiles


def test_a_perfect_map_of_a_mask_at_points_and_tiles_scores_one(tmp_path):
    mask = np.zeros((300, 500), dtype=np.uint8)
    mask[:, :200], mask[100:, 250:] = 1, 2
    Image.fromarray(mask).save(tmp_path / "my slide_mask.png")
    (tmp_path / "my slide.tif").touch()
    path = scoring.labels_beside(tmp_path / "my slide.tif", scoring.MASK)
    read = scoring.read_label_mask(path, 2, (2000, 1200))
    tiles = made_tiles()
    truth = scoring.cover_of_tiles(read, tiles, (2000, 1200), 2) >= 0.5
    for k, name in enumerate(CLASSES):
        tiles[f"prob_{name}"], tiles[f"present_{name}"] = truth[:, k].astype(float), truth[:, k]
    assert (scoring.score_tiles(truth, tiles, CLASSES)[["auroc", "dice", "dice_low"]] == 1).all(axis=None)
    assert scoring.labels_beside(tmp_path / "my slide.tif", scoring.POINTS) is None


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((30, 50, 3), np.uint8), "not RGB"),
        (np.full((30, 50), 3, np.uint8), "value 3"),
        (np.zeros((50, 50), np.uint8), "differ in shape"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path, image, words):
    Image.fromarray(image).save(tmp_path / "mask.png")
    with pytest.raises(HistoCLIPError, match=words):
        scoring.read_label_mask(tmp_path / "mask.png", 2, (500, 300))


def test_points_that_are_none_are_listed(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("x,y,tumor\n1,2,1\nleft,2,0\n3,4,yes\n")
    with pytest.raises(HistoCLIPError, match=r"line 3, x: 'left'\n.*line 4, tumor: 'yes'"):
        scoring.read_points(path, CLASSES)
    path.write_text("x,y\n1,2\n")
    with pytest.raises(HistoCLIPError, match="at least one of the classes"):
        scoring.read_points(path, CLASSES)
