"""The painted slide: windows without seams, its scale, its mask, and chance that is fixed to the plane."""

import numpy as np
import pytest
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.synthetic import painting, slide, tissue


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slide, "CORE", 256)
        return slide.paint_slide(tmp_path_factory.mktemp("slide"), 512, 768, seed=3)


def test_openslide_reads_its_levels_and_its_scale(painted):
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(painted) as opened:
        assert opened.level_dimensions == ((512, 768), (256, 384), (128, 192))
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(painting.MPP)
        whole, small = (
            np.asarray(opened.read_region((0, 0), level, opened.level_dimensions[level]).convert("RGB"), dtype=int)
            for level in (0, 2)
        )
    reduced = whole.reshape(192, 4, 128, 4, 3).mean(axis=(1, 3))
    assert np.corrcoef(reduced.ravel(), small.ravel())[0, 1] > 0.97


def test_the_mask_says_what_is_painted(painted):
    mask = Image.open(painted.with_name("slide_mask.png"))
    assert (mask.mode, mask.size) == ("P", (512 // slide.MASK_FACTOR, 768 // slide.MASK_FACTOR))
    classes = np.asarray(mask)
    assert {0, 1, 2} <= set(np.unique(classes).tolist()) <= set(range(5))
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(painted) as opened:
        pixels = np.asarray(opened.get_thumbnail(mask.size).convert("RGB")).astype(int)
    pink = pixels[..., 0] - pixels[..., 2]  # stroma is pink, the tumor bluer
    assert pink[classes == 2].mean() > pink[classes == 1].mean() + 10


def test_neighbouring_windows_show_the_same_where_they_overlap():
    whole = slide._Slide((2048, 2048), 0)
    size, shift = 256, 64

    def stained(y, x):
        plane = slide.Plane(0, y, x)
        class_map = np.full((size, size), tissue.STROMA, np.uint8)
        rows, columns = np.mgrid[y : y + size, x : x + size]
        class_map[(rows - 300) ** 2 + (columns - 330) ** 2 < 80**2] = tissue.TUMOR
        class_map[(rows - 300) ** 2 + (columns - 330) ** 2 < 45**2] = tissue.NECROSIS
        class_map[(rows - 370) ** 2 + (columns - 380) ** 2 < 40**2] = tissue.WALL
        class_map[(rows - 370) ** 2 + (columns - 380) ** 2 < 25**2] = tissue.BLOOD
        class_map[columns > 420] = tissue.LYMPHOCYTE
        return tissue.stain(class_map, whole.look, plane)

    one, other = stained(200, 200), stained(200, 200 + shift)
    for stain in ("hematoxylin", "eosin"):
        left, right = (getattr(section, stain)[64:-64] for section in (one, other))
        inner = np.abs(left[:, 64 + shift : -64] - right[:, 64 : -64 - shift])
        assert inner.mean() < 0.002
        assert np.abs(left[:, 64:-64] - right[:, 64:-64]).mean() > 0.02  # other places differ


def test_points_and_noise_depend_on_the_place_and_not_on_the_window():
    allowed = np.ones((300, 300), dtype=bool)
    for distance, margin in ((9.0, 60), (60.0, 0)):
        found = []
        for x in (0, 100):
            points = painting.scatter(slide.Plane(5, 40, x), allowed, distance, 0.8) + np.array([40, x])
            inside = (points[:, 1] >= 100 + margin) & (points[:, 1] < 300 - margin)
            inside &= (points[:, 0] >= 40 + margin) & (points[:, 0] < 340 - margin)
            found.append({tuple(point) for point in points[inside]})
        assert found[0] == found[1] and len(found[0]) > 5
    for sigma in (0.8, 7, 40):
        one, other = (painting.smooth_noise(slide.Plane(5, 40, x), 300, sigma) for x in (0, 100))
        np.testing.assert_allclose(one[:, 100:], other[:, :-100], atol=1e-4)
    fields = [painting.smooth_noise(slide.Plane(k, 0, 0), 224, 7) for k in range(30)]
    assert np.std(fields) == pytest.approx(1, abs=0.2)


def test_a_painted_slide_is_kept_and_a_seed_changes_it(painted, monkeypatch):
    monkeypatch.setattr(slide, "_Slide", lambda *_: pytest.fail("painted again"))
    assert slide.paint_slide(painted.parent, 512, 768, seed=3) == painted
    assert slide.slide_key(0) != slide.slide_key(1)


@pytest.mark.parametrize(("arguments", "named"), [({"width": 100}, "width: 100"), ({"seed": -1}, "seed: -1")])
def test_numbers_out_of_range_are_refused(tmp_path, arguments, named):
    with pytest.raises(HistoCLIPError, match=named):
        slide.paint_slide(tmp_path, **arguments)
