"""The grid of tiles: where they lie, how much tissue each holds, and which are kept."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.slides import tiles
from histoclip_lib.slides.tiling import tissue_fraction


def slide(width, height, mpp=0.5):
    return SimpleNamespace(path="a.svs", width=width, height=height, mpp=mpp)


@settings(max_examples=40)
@given(st.integers(60, 900), st.integers(60, 900), st.floats(10, 30), st.floats(0, 0.8))
def test_a_grid_covers_the_slide_in_order_with_the_overlap_asked_for(width, height, field, overlap):
    table = tiles(slide(width, height), field, overlap)
    side = round(field / 0.5)
    covered = np.zeros((height + side, width + side), bool)
    for x, y in table[["x", "y"]].to_numpy():
        covered[y : y + side, x : x + side] = True
    if overlap > 0.05:  # without, a tile of 40.5 pixels leaves a line between neighbours of 40
        assert covered[:height, :width].all()
    assert table.equals(table.sort_values(["y", "x"], ignore_index=True))
    assert (table.x < width).all() and (table.y < height).all()
    steps = np.diff(np.unique(table.x))
    assert (np.abs(steps - field / 0.5 * (1 - overlap)) <= 1).all()


def test_a_field_has_the_size_of_the_training_patches_in_micrometres():
    for mpp in (0.25, 0.5, 1.1):
        assert tiles(slide(5000, 5000, mpp), 128).width.unique() == [round(128 / mpp)]


def test_tissue_is_the_exact_share_of_the_tile_also_where_the_mask_is_coarse():
    from types import SimpleNamespace as Namespace

    pixels = np.random.default_rng(0).random((70, 90)) < 0.5
    whole = Namespace(width=900, height=700)
    table = pd.DataFrame({"x": [0, 35, 113, 850, -30], "y": [0, 77, 401, 650, 10], "width": 100, "height": 100})
    large = np.pad(np.kron(pixels, np.ones((10, 10))), 100)
    expected = [large[y + 100 : y + 200, x + 100 : x + 200].mean() for x, y in table[["x", "y"]].to_numpy()]
    np.testing.assert_allclose(tissue_fraction(whole, pixels, table), expected, atol=1e-6)


def test_tiles_with_enough_tissue_are_kept():
    mask = np.zeros((100, 100), bool)
    mask[:, :25] = True
    assert tiles(slide(1000, 1000), 100, mask=mask).x.unique().tolist() == [0]
    assert tiles(slide(1000, 1000), 100, mask=mask, min_tissue=0.2).x.unique().tolist() == [0, 200]
    assert tiles(slide(1000, 1000), 100, mask=mask, min_tissue=0).x.unique().tolist() == [0, 200]
    assert tiles(slide(1000, 1000), 100, mask=~mask & mask).empty


def test_coordinates_of_another_program_are_taken_as_they_are():
    given = pd.DataFrame({"x": [700, 13], "y": [7, 900], "width": 512, "height": 512}, index=[5, 9])
    mask = np.zeros((10, 10), bool)
    mask[9] = True
    found = tiles(slide(1000, 1000), 100, mask=mask, coordinates=given)
    assert found[["x", "y", "width", "height"]].to_numpy().tolist() == given.to_numpy().tolist()
    assert (found.tissue == 0).tolist() == [True, False]
    assert tiles(slide(1000, 1000), 100, coordinates=given[["x", "y"]]).width.tolist() == [200, 200]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"field_um": 600.0}, "smaller than a tile of 1200 pixels"),
        ({"overlap": 1.0}, "overlap: 1.0"),
        ({"min_tissue": 50.0}, "min_tissue: 50.0"),
        ({"field_um": 0.5, "overlap": 0.9}, "more than 10,000,000"),
        ({"coordinates": pd.DataFrame({"x": [1], "z": [1]})}, "columns .'y'. are missing"),
        ({"coordinates": pd.DataFrame({"x": [], "y": []})}, "empty"),
        ({"coordinates": pd.DataFrame({"x": [0, 2000], "y": [0, 0]})}, "1 of 2 coordinates do not lie"),
        ({"coordinates": pd.DataFrame({"x": [0], "y": [0], "width": [5], "height": [6]})}, "5 x 6"),
        ({"coordinates": pd.DataFrame({"x": [0], "y": [0]}), "mask": np.zeros((9, 9), bool)}, "none of its 1 coord"),
    ],
)
def test_what_gives_no_grid_is_refused(options, message):
    with pytest.raises(HistoCLIPError, match=message):
        tiles(slide(1000, 1000), **{"field_um": 100.0, **options})
