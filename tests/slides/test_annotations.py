"""QuPath annotations and tiles, cut into patches: the right place, the right labels, the right masks."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data import folder
from histoclip_lib.data.importers import ImportOptions, plan_import
from histoclip_lib.slides import cutting, exchange

SQUARE = [[0, 0], [64, 0], [64, 64], [0, 64], [0, 0]]


def moved(x, y, scale=1.0, corners=SQUARE):
    return [[corner[0] * scale + x, corner[1] * scale + y] for corner in corners]


def feature(name, *rings, **properties):
    named = {"classification": {"name": name, "color": [200, 0, 0]}} if name else {}
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"} | named | properties}


@pytest.fixture
def plan(tmp_path, slide):
    """Plan the import of annotations of the slide, in patches of 64 pixels."""

    def make(*features, **options):
        path = tmp_path / "S1.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
        return plan_import(path, ImportOptions(**({"slide": slide[0], "patch": 64} | options)))

    return make


def labels(plan):
    return {patch.file.removesuffix(".png"): patch.labels for patch in plan.patches}


def test_a_patch_has_the_classes_that_cover_enough_of_it(plan):
    large = feature("stroma", moved(0, 0, 2))  # four fields of the grid
    tenth = feature("tumor", moved(64, 64, 0.1**0.5))
    result = plan(large, tenth, min_coverage=0.05)
    assert result.classes == ["stroma", "tumor"]
    assert labels(result) == {"S1_x0_y0": (1, 0), "S1_x64_y0": (1, 0), "S1_x0_y64": (1, 0), "S1_x64_y64": (1, 1)}
    assert labels(plan(large, tenth, min_coverage=0.2))["S1_x64_y64"] == (1, 0)
    assert labels(plan(large, tenth, classes=("tumor",))) == {"S1_x64_y64": (1,)}
    text = result.describe()
    assert "a class is present where it covers at least 0.05 of a patch" in text
    assert "S1.tif: 960x640 pixels; a patch shows 64x64 of them (32 um) as 64x64" in text
    assert "146 further fields of the grid are not annotated" in text


def test_pixels_and_masks_are_of_the_same_place_with_holes_and_several_polygons(plan, tmp_path):
    ring = feature("tumor", moved(70, 70, 0.75), moved(80, 80, 0.25))
    several = feature("stroma", moved(0, 0))
    several["geometry"] = {"type": "MultiPolygon", "coordinates": [[moved(64, 64, 0.0625)], [moved(124, 124, 0.0625)]]}
    plan(ring, several, min_coverage=0.005).write(tmp_path / "out")
    dataset = folder.load(tmp_path / "out")
    assert dataset.files == ["images/S1_x64_y64.png"] and dataset.groups.tolist() == ["S1"]
    expected = np.zeros((64, 64), dtype=np.uint8)
    expected[6:54, 6:54] = 1
    expected[16:32, 16:32] = 0
    expected[:4, :4] = expected[60:, 60:] = 2
    mask = dataset.mask(0)
    assert mask.tolist() == expected.tolist()
    assert dataset.image(0)[0, 0].tolist() == [16, 16, 0] and dataset.image(0)[63, 4].tolist() == [17, 31, 0]
    assert pd.read_csv(tmp_path / "out/labels.csv")["mpp"].tolist() == [0.5]


def test_a_class_below_the_coverage_is_neither_in_the_labels_nor_in_the_mask(plan):
    result = plan(feature("stroma", moved(0, 0)), feature("tumor", moved(8, 8, 0.05)))
    (patch,) = result.patches
    assert patch.labels == (1, 0)
    assert set(np.unique(result._mask(patch)).tolist()) == {0, 1}


def test_qupath_counts_from_the_corner_of_the_bounds(plan, slide):
    slide[1]["bounds"] = (128, 64)
    assert list(labels(plan(feature("tumor", moved(64, 64))))) == ["S1_x192_y128"]


@pytest.mark.parametrize(
    ("options", "side", "mpp"),
    [({"patch_um": 64}, 128, 1.0), ({"patch_um": 64, "mpp": 0.25}, 256, 1.0), ({"patch": 128}, 128, 0.5)],
)
def test_the_field_is_given_in_micrometres_or_in_pixels_of_the_slide(plan, tmp_path, options, side, mpp):
    result = plan(feature("tumor", moved(0, 0, 4)), **options)
    assert len(result.patches) == (256 // side) ** 2
    assert {patch.item.mpp for patch in result.patches} == {mpp}
    patch = next(patch for patch in result.patches if patch.file == f"S1_x{256 - side}_y0.png")
    image = patch.item.read()
    assert image.shape == (options.get("patch", 64),) * 2 + (3,)
    assert abs(int(image[0, 0, 0]) - (256 - side) // 4) <= 1 and abs(int(image[-1, -1, 0]) - 63) <= 1
    assert patch.labels == (1,) and (result._mask(patch) == 1).all()


def test_what_was_looked_at_bounds_patches_without_a_class(plan):
    region, tumor = feature("Region*", moved(0, 0, 2.5)), feature("tumor", moved(0, 0))
    assert list(labels(plan(region, tumor))) == ["S1_x0_y0"]
    found = labels(plan(region, tumor, within="Region*"))
    assert len(found) == 8  # half of the fields at the right and lower edge, a quarter of that in the corner
    assert sum(label == (1,) for label in found.values()) == 1
    with pytest.raises(HistoCLIPError, match=r"--within: .* no annotation of class 'ROI'. It has: Region\*, tumor"):
        plan(region, tumor, within="ROI")


def test_objects_without_a_class_and_other_shapes_are_left_out_and_counted(plan):
    point = {"geometry": {"type": "Point", "coordinates": [3, 4]}, "properties": {"classification": {"name": "tumor"}}}
    result = plan(feature("tumor", moved(0, 0)), feature("", moved(64, 64)), feature("Ignore*", moved(0, 0)), point)
    assert result.classes == ["tumor"] and len(result.patches) == 1
    assert {reason: len(names) for reason, names in result.left_out.items()} == {
        "geometries that are not polygons": 1,
        "objects without a class": 1,
        "classes that end with * are none in QuPath": 1,
    }
    with pytest.raises(HistoCLIPError, match="no annotation has a class"):
        plan(feature("", moved(64, 64), objectType="detection"))


def test_many_annotations_find_their_slides(tmp_path, slide):
    path, _ = slide
    (path.parent / "S10.tif").write_bytes(path.read_bytes())
    for name in ("S1.ome.geojson", "S10.geojson", "S2.geojson"):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / name).write_text(json.dumps(feature("tumor", moved(0, 0))))
    plan = plan_import(tmp_path / "annotations", ImportOptions(slide=path.parent, patch=64))
    assert list(labels(plan)) == ["S1_x0_y0", "S10_x0_y0"]
    assert [patch.item.group for patch in plan.patches] == ["S1", "S10"]
    assert list(plan.left_out.values()) == [["S2.geojson"]]
    with pytest.raises(HistoCLIPError, match="--slide: name the slide"):
        plan_import(tmp_path / "annotations", ImportOptions())


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6),
    st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
@settings(max_examples=25)
def test_exported_tiles_are_imported_with_the_same_labels_at_the_same_place(tmp_path_factory, rows, bounds):
    """Whatever thresholds the labels were decided with."""

    class Slide:
        width = height = 2000
        mpp, path = 0.5, None

    Slide.bounds = bounds
    folder_ = tmp_path_factory.mktemp("any")
    (folder_ / "S.tif").touch()
    tiles = pd.DataFrame(rows, columns=["present_a", "present_b", "prob_a", "prob_b"])
    tiles = tiles.assign(x=np.arange(len(tiles)) * 100 + 300, y=400, width=100, height=100)
    exchange.write_qupath_geojson(folder_ / "S.geojson", tiles, bounds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "opened", lambda *_: Slide)
        plan = plan_import(folder_ / "S.geojson", ImportOptions(slide=folder_ / "S.tif"))
    assert plan.classes == ["a", "b"] and not plan.has_masks
    assert list(labels(plan)) == [f"S_x{x}_y400" for x in tiles["x"]]
    assert [patch.labels for patch in plan.patches] == [(int(a), int(b)) for a, b, *_ in rows]


def test_tiles_of_others_are_decided_by_a_threshold(plan):
    low, high = ({"measurements": {"a": value}, "objectType": "tile"} for value in (0.4, 0.6))
    result = plan(feature("", moved(0, 0), **low), feature("", moved(100, 30), **high))
    assert labels(result) == {"S1_x0_y0": (0,), "S1_x100_y30": (1,)}
    assert set(labels(plan(feature("", moved(0, 0), **low), threshold=0.4)).values()) == {(1,)}


def test_real_annotations_give_the_labels_that_shapely_gives(shared_data, tmp_path, slide):
    shapely = pytest.importorskip("shapely")
    path = shared_data / "tables/09_puma_training_set_primary_roi_103_nuclei.geojson"
    options = ImportOptions(slide=slide[0], patch=160, min_coverage=0.02)
    plan = plan_import(path, options)
    annotations, _ = exchange.read_geojson(path)
    areas = {name: [] for name in plan.classes}
    for each in annotations:
        areas[each.name] += [shapely.Polygon(outer, holes) for outer, *holes in each.polygons]
    united = {name: shapely.union_all([shapely.make_valid(area) for area in those]) for name, those in areas.items()}
    assert len(plan.patches) == 24
    near = 0
    for patch in plan.patches:
        x, y = (int(text[1:]) for text in patch.file.removesuffix(".png").split("_")[1:])
        box = shapely.box(x, y, x + 160, y + 160)
        for name, label in zip(plan.classes, patch.labels, strict=True):
            share = united[name].intersection(box).area / box.area
            if abs(share - 0.02) < 5e-4:  # pixels are whole
                near += 1
            else:
                assert label == (share >= 0.02)
    assert near < 4
