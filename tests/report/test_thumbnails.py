"""The picture of a run: what stands where, and that it is always written."""

import numpy as np
import pytest
from PIL import Image

from histoclip_lib.data.base import PatchDataset
from histoclip_lib.report.figures.patches import GAP, SIZE, save_thumbnail, side_by_side

WIDTH, HEIGHT = SIZE
HALF = (WIDTH - GAP) // 2


class Source:
    """Patches in one colour each."""

    def image(self, index):
        return np.full((50, 80, 3), 20 * (index + 1), dtype=np.uint8)


@pytest.fixture
def patches():
    return PatchDataset("made", ["a", "b"], [f"{k}.png" for k in range(6)], np.ones((6, 2), np.uint8), Source())


def spot(row, column):
    attention = np.zeros((7, 7))
    attention[row, column] = 1
    return attention


def test_the_patch_is_left_and_the_attention_right():
    picture = side_by_side(np.full((224, 224, 3), 100, np.uint8), spot(1, 3))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert (picture[:, :HALF] == 100).all()
    assert (picture[:, HALF : HALF + GAP] == 255).all()
    brightness = picture[:, -HALF:].sum(axis=2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert row / HEIGHT == pytest.approx(1.5 / 7, abs=0.02)
    assert column / HALF == pytest.approx(0.5, abs=0.02)


def test_a_map_without_any_attention_is_drawn():
    assert side_by_side(np.zeros((64, 64, 3), np.uint8), np.zeros((7, 7))).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(("chosen", "grey"), [([1, 0], 80), ([], 60)])
def test_the_first_chosen_patch_is_drawn_else_the_first(tmp_path, patches, chosen, grey):
    rows = np.array([2, 3])
    maps = np.stack([[spot(0, 3), spot(6, 3)]] * 2)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    path = tmp_path / "thumbnail.png"
    save_thumbnail(path, patches, rows, maps, probabilities, chosen)
    image = Image.open(path)
    assert (image.format, image.size) == ("PNG", SIZE)
    pixels = np.asarray(image.convert("RGB")).astype(int)
    assert abs(pixels[:, :HALF].mean() - grey) < 3
    right = pixels[:, -HALF:].sum(axis=(1, 2))
    assert (right[: HEIGHT // 2].sum() > right[HEIGHT // 2 :].sum()) == (not chosen)  # of its surest class
    assert len(list(tmp_path.iterdir())) == 1
