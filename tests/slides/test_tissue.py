"""Tissue is found, glass and pen marks are not; a user's mask lies where the user drew it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from painted import GLASS, PINK, PURPLE, save_image
from PIL import Image, ImageDraw

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.slides import mask_thumbnail, open_slide, tissue_mask, tissue_mask_from

INKS = {"blue": (40, 90, 190), "green": (40, 150, 80), "red": (205, 25, 30), "black": (25, 25, 28)}
PALE = (232, 214, 226)


def glass_with(colour, box=(60, 60, 140, 140), size=(200, 200)):
    image = Image.new("RGB", size, GLASS)
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    return np.asarray(image)


@pytest.mark.parametrize("colour", [PINK, PURPLE, PALE])
def test_tissue_is_found_where_it_is(colour):
    mask = tissue_mask(glass_with(colour))
    truth = glass_with(colour)[..., 1] != GLASS[1]
    assert (mask == truth).mean() > 0.99


@pytest.mark.parametrize("ink", INKS)
def test_pen_marks_are_not_tissue_and_hide_none_elsewhere(ink):
    pixels = glass_with(PINK).copy()
    truth = pixels[..., 1] != GLASS[1]
    pixels[10:30] = INKS[ink]
    mask = tissue_mask(pixels)
    assert not mask[:40].any()
    assert (mask[45:] == truth[45:]).mean() > 0.99


def test_dust_and_small_holes_are_judged_by_their_size_on_the_slide():
    pixels = glass_with(PINK).copy()
    pixels[90:100, 90:100] = GLASS  # 0.0064 mm2 at 8 um, 0.64 at 80
    pixels[10:20, 10:20] = PINK
    fine, coarse = tissue_mask(pixels, 8.0), tissue_mask(pixels, 80.0)
    assert fine[95, 95] and not fine[15, 15]
    assert not coarse[95, 95] and coarse[15, 15]


@pytest.mark.parametrize("shade", [GLASS, (255, 255, 255), (0, 0, 0), (200, 200, 200)])
def test_a_slide_of_one_colour_has_no_tissue(shade):
    assert not tissue_mask(np.full((100, 80, 3), shade, np.uint8)).any()


SHARES = {  # of the thumbnail, looked at as overlays
    ("odd/tcga_pyramid_mpp_in_nm.ome.tif", 2.0): (0.58, 0.66),
    ("multiframe_camelyon_challenge_image.dcm", 28.97): (0.19, 0.26),
    ("CMU-1-Small-Region.svs", None): (0.30, 0.42),
    ("histolab_tiles/thumb_tcga-red-pen.png", 8.0): (0.45, 0.65),
    ("histolab_tiles/tile_almost-white-1.png", 0.5): (0, 0),
    ("histolab_tiles/tile_no-tissue.png", 0.5): (0, 0),
    ("histolab_tiles/tile_no-tissue-line.png", 0.5): (0, 0),
    ("histolab_tiles/tile_no-tissue-red-pen.png", 0.5): (0, 0.12),
    ("histolab_tiles/tile_medium-nuclei-score-level2.png", 0.5): (0.7, 0.9),
}


@pytest.mark.parametrize("name, mpp", SHARES)
def test_real_slides_have_as_much_tissue_as_an_eye_sees(shared_data, name, mpp):
    with open_slide(shared_data / "slides" / name, mpp) as slide:
        thumbnail, scale = mask_thumbnail(slide)
    low, high = SHARES[name, mpp]
    assert low <= tissue_mask(thumbnail, scale).mean() <= high


SLIDE = SimpleNamespace(path=SimpleNamespace(name="a.svs"), width=4000, height=2000, mpp=2.0, bounds=(400, 200))


@pytest.mark.parametrize("size", [(1000, 500), (200, 100), (25, 12)])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "LA"])
def test_a_mask_image_may_have_any_size_and_mode(tmp_path, size, mode):
    image = Image.new("L", size)
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2 - 1, size[1]), fill=1)
    if mode == "LA":  # black tissue on nothing
        image = Image.merge("LA", (Image.new("L", size), image))
    save_image(tmp_path / "m.png", np.asarray(image.convert(mode) if mode != "P" else image))
    mask = tissue_mask_from(tmp_path / "m.png", SLIDE)
    assert mask.shape == size[::-1]
    assert mask[:, : size[0] // 2].all() and not mask[:, size[0] // 2 :].any()


def feature(*rings, kind="Polygon"):
    corners = [list(ring) for ring in rings]
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": corners if kind == "Polygon" else [corners]},
        "properties": {},
    }


OUTER = [(0, 0), (2000, 0), (2000, 1000), (0, 1000), (0, 0)]
INNER = [(500, 250), (1500, 250), (1500, 750), (500, 750), (500, 250)]


@pytest.mark.parametrize(
    "found",
    [
        {"type": "FeatureCollection", "features": [feature(OUTER, INNER)]},
        [feature(OUTER, INNER, kind="MultiPolygon")],
        feature(OUTER, INNER)["geometry"],
    ],
)
def test_polygons_lie_where_qupath_drew_them_and_holes_stay_open(tmp_path, found):
    (tmp_path / "a.geojson").write_text(json.dumps(found))
    mask = tissue_mask_from(tmp_path / "a.geojson", SLIDE)
    expected = np.zeros((500, 1000), bool)  # 8 micrometres a pixel
    expected[50:300, 100:600] = True  # QuPath counts from the bounds
    expected[113:237, 226:474] = False
    assert (mask == expected).mean() > 0.99


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.geojson", "{", "not JSON"),
        ("a.geojson", '{"type": "Point", "coordinates": [1, 2]}', "no Polygon"),
        ("a.geojson", '["a"]', "not GeoJSON"),
        ("a.geojson", '{"type": "MultiPolygon", "coordinates": 5}', "a MultiPolygon has a list of rings, not 5"),
        ("a.geojson", json.dumps(feature([(0, 0), (1, 1)])), "at least three"),
        ("a.geojson", json.dumps(feature([(9000, 0), (9999, 0), (9999, 50)])), "none of its 1 polygons"),
        ("a.png", "text", "cannot be read as a mask"),
    ],
)
def test_a_mask_that_says_nothing_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(HistoCLIPError, match=message) as raised:
        tissue_mask_from(tmp_path / name, SLIDE)
    assert str(tmp_path / name) in str(raised.value)


def test_a_mask_of_another_aspect_is_refused(tmp_path):
    save_image(tmp_path / "m.png", np.ones((100, 100), np.uint8))
    with pytest.raises(HistoCLIPError, match="100 x 100 pixels, another aspect"):
        tissue_mask_from(tmp_path / "m.png", SLIDE)
