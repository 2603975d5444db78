"""A slide to cut: an image whose pixels say where they are."""

import sys
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from histoclip_lib.slides import cutting


@dataclass(frozen=True)
class FakeSlide:
    array: np.ndarray
    mpp: float | None
    bounds: tuple[int, int] = (0, 0)

    @property
    def width(self):
        return self.array.shape[1]

    @property
    def height(self):
        return self.array.shape[0]

    def read_field(self, x, y, side0, pixels):
        field = Image.fromarray(self.array).crop((x, y, x + side0, y + side0))
        return np.asarray(field.resize((pixels, pixels), Image.Resampling.BOX))


@pytest.fixture
def slide(tmp_path, monkeypatch):
    """Write an image in which red is x // 4 and green y // 4, and open it and its like as slides.

    `bounds` and `mpp` are those of every slide; they can be set.
    """
    facts = {"bounds": (0, 0), "mpp": 0.5}

    def open_slide(path, mpp=None):
        return FakeSlide(np.asarray(Image.open(path)), mpp or facts["mpp"], facts["bounds"])

    reading = ModuleType("histoclip_lib.slides.reading")
    reading.open_slide = open_slide
    monkeypatch.setitem(sys.modules, reading.__name__, reading)
    y, x = np.mgrid[:640, :960]
    path = tmp_path / "slides/S1.tif"
    path.parent.mkdir()
    Image.fromarray(np.stack([x // 4, y // 4, x * 0], axis=2).astype(np.uint8)).save(path)
    cutting.opened.cache_clear()
    yield path, facts
    cutting.opened.cache_clear()
