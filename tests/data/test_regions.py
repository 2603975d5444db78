"""Regions: which pixels they cover, held to shapely and to published run lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.regions import Field, Region, as_ring, class_map, covered, from_run_lengths

shapely = pytest.importorskip("shapely")
SMALL = [0, 1, 14, 3, 4, 1, 1, 1, 4, 3, 4, 3, 23, 1]
CORNERS = st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=9)


def square(x, y, side):
    return np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], dtype=float)


@given(CORNERS, st.floats(0.3, 3), st.floats(-3, 3))
@settings(max_examples=60)
def test_pixels_are_those_whose_centre_lies_in_the_polygon(corners, scale, shift):
    """Against shapely; a centre nearer to an edge than rounding is nobody's promise."""
    polygon = shapely.Polygon(corners)
    if not polygon.is_valid or polygon.area < 1e-3:
        return
    field = Field(shift, -shift, scale, 17, 23)
    x = field.x + (np.arange(23) + 0.5) / scale
    y = field.y + (np.arange(17) + 0.5) / scale
    centres = shapely.points(*np.meshgrid(x, y))
    sure = shapely.distance(polygon.exterior, centres) > 1e-9
    found = covered(Region("a", ((np.array(corners),),)), field)
    assert (found == shapely.contains(polygon, centres))[sure].all()


def test_holes_are_left_out_and_several_polygons_are_united():
    region = Region("a", ((square(0, 0, 8), square(2, 2, 4)), (square(4, 4, 6),)))
    expected = np.zeros((10, 10), dtype=bool)
    expected[:8, :8] = True
    expected[2:6, 2:6] = False
    expected[4:10, 4:10] = True
    assert covered(region, Field(0, 0, 1, 10, 10)).tolist() == expected.tolist()
    assert region.area == 64 - 16 + 36
    assert region.box == (0, 0, 10, 10)


def test_a_bitmap_covers_the_same_pixels_as_the_polygon_it_was_made_from():
    polygon = Region("a", ((np.array([[1.2, 0.4], [17.3, 5.1], [9.9, 18.2]]),),))
    pixels = covered(polygon, Field(0, 0, 1, 20, 30)).T.ravel()
    changes = np.flatnonzero(np.diff(np.concatenate([[False], pixels]))).tolist()
    bitmap = from_run_lengths("a", np.diff([0, *changes, pixels.size]).tolist(), 20, 30, "x")
    assert bitmap.area == pixels.sum()
    for field in (Field(0, 0, 1, 20, 20), Field(-4, 3, 1, 30, 9)):
        assert (covered(bitmap, field) == covered(polygon, field)).all()


def test_the_smaller_region_lies_on_top_and_coverage_counts_what_is_below():
    small, large = Region("small", ((square(2, 2, 4),),)), Region("large", ((square(0, 0, 8),),))
    for regions in ([small, large], [large, small]):
        drawn, coverage = class_map(regions, ["large", "small"], Field(0, 0, 1, 10, 10))
        assert (drawn == 2).sum() == 16 and (drawn == 1).sum() == 48
        assert coverage.tolist() == [0.64, 0.16]


def test_run_lengths_are_read_as_numbers_and_as_text():
    """The texts were written by pycocotools 2.0.11."""
    small = np.zeros((7, 9), dtype=bool)
    small[1:4, 2:6], small[2, 3], small[6, 8], small[0, 0] = True, False, True, True
    assert from_run_lengths("a", "01>2FNM03200c0N", 7, 9, "x").bitmap().tolist() == small.tolist()
    assert from_run_lengths("a", SMALL, 7, 9, "x").bitmap().tolist() == small.tolist()
    large = np.zeros((60, 50), dtype=bool)
    large[5:55, 3:40], large[20:30, 10:12] = True, False
    text = "i5b1:000000000000mN0:0F0:0i0000000000000000000000000000000000000000000000000000000cb0"
    assert from_run_lengths("a", text, 60, 50, "x").bitmap().tolist() == large.tolist()


@pytest.mark.parametrize("counts", [[1, 2], "0", [-1, 64], ["a"], None, "\x00"])
def test_run_lengths_of_another_size_are_refused(counts):
    with pytest.raises(HistoCLIPError, match=r"x: the run lengths do not add up to 9x7 pixels"):
        from_run_lengths("a", counts, 7, 9, "x")


@pytest.mark.parametrize("corners", [None, [], [[0, 0], [1, 1]], [[0, 0], [1, "a"], [2, 2]], [[0], [1], [2]], {"a": 1}])
def test_what_is_no_ring_is_refused(corners):
    with pytest.raises(HistoCLIPError, match="x: a ring is a list of at least three"):
        as_ring(corners, "x")
