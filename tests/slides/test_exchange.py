"""A slide's result in the forms of other programs: what is written comes back, and others read it at its place."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.slides import exchange

h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")
NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=1, unique=True)
SHARE = st.floats(0, 1) | st.floats(0, 1, width=32)


@st.composite
def tables(draw):
    n, classes = draw(st.integers(0, 5)), draw(NAMES.filter(lambda names: len(names) < 5))
    whole = st.integers(0, 200_000)
    columns = {name: draw(st.lists(whole, min_size=n, max_size=n)) for name in ("x", "y", "width", "height")}
    columns |= {f"prob_{name}": draw(st.lists(SHARE, min_size=n, max_size=n)) for name in classes}
    columns |= {f"present_{name}": draw(st.lists(st.booleans(), min_size=n, max_size=n)) for name in classes}
    return pd.DataFrame(columns)


def grid(n_columns, n_rows, side=100, step=100, classes=("tumor", "stroma")):
    """Tiles of a grid; the probabilities are 0, 1, 2, ... hundredths, further classes one after the other."""
    x, y = np.meshgrid(np.arange(n_columns) * step, np.arange(n_rows) * step)
    tiles = pd.DataFrame({"x": x.ravel(), "y": y.ravel(), "width": side, "height": side, "tissue": 1.0})
    for k, name in enumerate(classes):
        tiles[f"prob_{name}"] = (np.arange(len(tiles)) + k * len(tiles)) / 100
    return tiles


@given(tables(), st.integers(0, 5000), st.integers(0, 5000))
@settings(max_examples=30)
def test_geojson_comes_back_with_places_probabilities_and_labels(tmp_path_factory, tiles, left, top):
    path = tmp_path_factory.mktemp("any") / "tiles.geojson"
    exchange.write_qupath_geojson(path, tiles, (left, top))
    annotations, left_out = exchange.read_geojson(path)
    classes = exchange.classes_of(tiles)
    assert left_out == []
    assert len(annotations) == len(tiles)
    for annotation, tile in zip(annotations, tiles.to_dict("records"), strict=True):
        ((ring,),) = annotation.polygons
        low, high = (corner + np.array([left, top]) for corner in (ring.min(axis=0), ring.max(axis=0)))
        assert (*low, *(high - low)) == (tile["x"], tile["y"], tile["width"], tile["height"])
        assert annotation.measurements == {name: tile[f"prob_{name}"] for name in classes}
        assert annotation.present == tuple(name for name in classes if tile[f"present_{name}"])
        assert (annotation.name, annotation.kind) == ("", "tile")


@given(tables())
@settings(max_examples=30)
def test_wsinfer_csv_comes_back(tmp_path_factory, tiles):
    path = tmp_path_factory.mktemp("any") / "tiles.csv"
    columns = ["x", "y", "width", "height", *(f"prob_{name}" for name in exchange.classes_of(tiles))]
    if len(tiles) and not any("\r" in name or "\n" in name for name in columns):
        exchange.write_wsinfer_csv(path, tiles)
        assert exchange.read_wsinfer_csv(path).to_dict("list") == tiles[columns].to_dict("list")


def test_real_results_of_wsinfer_are_read(shared_data):
    for path in (shared_data / "tables").glob("12_wsinfer_*.csv"):
        tiles = exchange.read_wsinfer_csv(path)
        assert (tiles["width"] == tiles["height"]).all() and tiles.filter(like="prob_").to_numpy().max() <= 1


def test_qupath_objects_are_tiles_without_a_class_where_shapely_expects_them(tmp_path):
    """QuPath's origin is the corner of the slide's bounds, which lies at (300, 50) of level 0."""
    shapely = pytest.importorskip("shapely")
    tiles = grid(3, 2, side=120).assign(present_tumor=[True, False] * 3, present_stroma=True)
    tiles[["x", "y"]] += (300, 50)
    tiles.loc[1, "prob_stroma"] = np.nan
    exchange.write_qupath_geojson(tmp_path / "tiles.geojson", tiles, (300, 50))
    content = json.loads((tmp_path / "tiles.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    shapes = shapely.from_geojson(json.dumps(content))
    boxes = shapely.box(*np.array([[0, 0, 120, 120], [100, 0, 220, 120], [200, 0, 320, 120], [0, 100, 120, 220]]).T)
    assert shapely.equals(np.array(shapes.geoms)[:4], boxes).all()
    assert all(shape.is_valid and shape.exterior.is_ring for shape in shapes.geoms)
    first, second = (feature["properties"] for feature in content["features"][:2])
    assert first["objectType"] == "tile"
    assert first["measurements"] == {"tumor": 0.0, "stroma": 0.06}
    assert second["measurements"] == {"tumor": 0.01}
    assert not any("classification" in feature["properties"] for feature in content["features"])
    assert len({feature["id"] for feature in content["features"]}) == len(tiles)


def test_geojson_of_qupath_is_read_with_holes_and_classes(tmp_path):
    ring, hole = [[0, 0], [9, 0], [9, 9], [0, 0]], [[5, 2], [6, 2], [6, 3], [5, 2]]
    polygon = {"type": "Polygon", "coordinates": [ring, hole]}
    several = {"type": "MultiPolygon", "coordinates": [[ring], [ring, hole]]}
    features = [
        {"geometry": polygon, "properties": {"classification": {"name": "Tumor: in situ", "color": [1, 2, 3]}}},
        {"geometry": several, "properties": {"classification": "Stroma", "measurements": [{"name": "a", "value": 1}]}},
        {"geometry": polygon, "properties": {"objectType": "detection"}},
        {"geometry": polygon, "properties": {"classification": {"names": ["Tumor", "Positive"]}}},
        {"geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": None},
    ]
    for content in (features, {"type": "FeatureCollection", "features": features}):
        (tmp_path / "a.geojson").write_text(json.dumps(content))
        annotations, left_out = exchange.read_geojson(tmp_path / "a.geojson")
        assert [each.name for each in annotations] == ["Tumor: in situ", "Stroma", "", "Tumor: Positive"]
        assert [[len(rings) for rings in each.polygons] for each in annotations] == [[2], [1, 2], [2], [2]]
        assert annotations[1].measurements == {"a": 1} and annotations[2].kind == "detection"
        assert left_out == ["Point"]


@pytest.mark.parametrize("name", ["09_puma_training_set_metastatic_roi_102", "09_puma_training_set_primary_roi_103"])
def test_real_annotations_are_read_as_shapely_reads_them(shared_data, name):
    shapely = pytest.importorskip("shapely")
    path = shared_data / f"tables/{name}_nuclei.geojson"
    annotations, left_out = exchange.read_geojson(path)
    shapes = shapely.from_geojson(path.read_text()).geoms
    assert left_out == [] and all(annotation.name.startswith("nuclei_") for annotation in annotations)
    found = [sum(shapely.Polygon(outer, holes).area for outer, *holes in each.polygons) for each in annotations]
    assert found == pytest.approx([shape.area for shape in shapes])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ('{"features": 1}', "`features` is not a list"),
        ('[{"geometry": null}]', "feature 1: is not GeoJSON: it has no geometry"),
        ('[{"geometry": {"type": "Polygon", "coordinates": 3}}]', "feature 1: is not GeoJSON: a Polygon has a list"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}]', "feature 1: a ring is a list"),
    ],
)
def test_what_is_not_geojson_is_refused_with_its_place(tmp_path, content, reason):
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(HistoCLIPError, match=reason):
        exchange.read_geojson(tmp_path / "a.geojson")


# The heat map


def metadata_of(path):
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        space = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
        pixels = ET.fromstring(file.ome_metadata).find(".//ome:Pixels", space)
        return pixels.attrib, [channel.get("Name") for channel in pixels.findall("ome:Channel", space)]


def test_a_heat_map_has_channels_and_the_physical_size_of_its_pixels(tmp_path):
    tiles = grid(7, 4)
    tiles = tiles.drop(index=[9, 13])  # glass
    exchange.write_heatmap(tmp_path / "heatmap.ome.tif", tiles, (745, 410), 0.5)
    facts, channels = metadata_of(tmp_path / "heatmap.ome.tif")
    assert channels == ["tumor", "stroma"]
    assert {name: facts[name] for name in ("SizeC", "SizeX", "SizeY", "Type")} == (
        {"SizeC": "2", "SizeX": "8", "SizeY": "5", "Type": "float"}
    )
    assert float(facts["PhysicalSizeX"]) == float(facts["PhysicalSizeY"]) == 50
    assert facts["PhysicalSizeXUnit"] == "µm"
    values = tifffile.imread(tmp_path / "heatmap.ome.tif")
    expected = np.full((2, 5, 8), np.nan, dtype=np.float32)
    expected[0, :4, :7] = np.arange(28).reshape(4, 7) / 100
    expected[1, :4, :7] = np.arange(28, 56).reshape(4, 7) / 100
    expected[:, 1, 2] = expected[:, 1, 6] = np.nan
    np.testing.assert_array_equal(values, expected)


def test_tiles_of_several_grids_and_of_a_step_between_pixels_make_no_holes_and_no_huge_map(tmp_path):
    """CLAM begins a grid at each piece of tissue; tiles of 56.4 pixels lie 56 or 57 pixels apart."""
    pieces = [grid(20, 2), grid(20, 2).assign(x=lambda t: t.x + 1, y=lambda t: t.y + 301)]
    exchange.write_heatmap(tmp_path / "a.ome.tif", pd.concat(pieces, ignore_index=True), (2100, 600), 1)
    assert tifffile.imread(tmp_path / "a.ome.tif").shape == (2, 6, 21)
    places = np.rint(np.arange(700) * 56.4).astype(int)
    tiles = pd.DataFrame({"x": places, "y": 0, "width": 56, "height": 56, "prob_tumor": 0.5})
    exchange.write_heatmap(tmp_path / "b.ome.tif", tiles, (39480, 56), 1)
    assert np.isfinite(tifffile.imread(tmp_path / "b.ome.tif")).mean() > 0.998


def test_overlapping_tiles_are_averaged(tmp_path):
    tiles = grid(2, 1, side=100, step=50, classes=("a",)).assign(prob_a=[0.2, 0.6])
    exchange.write_heatmap(tmp_path / "a.ome.tif", tiles, (200, 100), 1)
    expected = [[0.2, 0.4, 0.6, np.nan]] * 2
    np.testing.assert_allclose(tifffile.imread(tmp_path / "a.ome.tif"), expected, rtol=1e-6)


def test_attention_makes_a_finer_map_with_the_tiles_probability_as_its_largest_value(tmp_path):
    tiles = grid(40, 50, side=70, step=70)
    attention = np.random.default_rng(0).random((len(tiles), 2, 7, 7)).astype(np.float32)
    exchange.write_heatmap(tmp_path / "a.ome.tif", tiles, (2800, 3500), 0.25, attention)
    facts, _ = metadata_of(tmp_path / "a.ome.tif")
    assert float(facts["PhysicalSizeX"]) == 2.5
    blocks = (
        tifffile.imread(tmp_path / "a.ome.tif").reshape(2, 50, 7, 40, 7).transpose(1, 3, 0, 2, 4).reshape(-1, 2, 7, 7)
    )
    scores = tiles[["prob_tumor", "prob_stroma"]].to_numpy()
    np.testing.assert_allclose(blocks.max(axis=(2, 3)), scores, rtol=1e-5)
    np.testing.assert_allclose(
        blocks[77, 1] / blocks[77, 1].max(), attention[77, 1] / attention[77, 1].max(), rtol=1e-5
    )


def test_tiles_of_several_sizes_and_attention_of_other_tiles_are_refused(tmp_path):
    tiles = grid(2, 2)
    with pytest.raises(HistoCLIPError, match="square tiles of one size"):
        exchange.write_heatmap(tmp_path / "a.ome.tif", tiles.assign(width=[1, 2, 3, 4]), (200, 200), 1)
    with pytest.raises(HistoCLIPError, match=r"attention has shape \(4, 3, 7, 7\)"):
        exchange.write_heatmap(tmp_path / "a.ome.tif", tiles, (200, 200), 1, np.ones((4, 3, 7, 7)))
    assert list(tmp_path.iterdir()) == []


# Coordinates


def write_coordinates(path, coords, **facts):
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=coords).attrs.update(facts)
    return path


@pytest.mark.parametrize(
    ("facts", "side"),
    [
        ({"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40}, 512),  # TRIDENT
        ({"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0001, 4.0001]), "name": "s"}, 1024),  # CLAM
        ({"patch_size": 256, "patch_level": 0, "downsample": np.array([1.0, 1.0])}, 256),
        ({"patch_size": 256, "patch_level": 0}, 256),
    ],
)
def test_coordinates_of_trident_and_clam_are_level_0_pixels(tmp_path, facts, side):
    tiles = exchange.read_coordinates(write_coordinates(tmp_path / "a.h5", np.array([[0, 512], [7, 9]]), **facts))
    assert tiles.to_dict("list") == {"x": [0, 7], "y": [512, 9], "width": [side] * 2, "height": [side] * 2}


def test_coordinates_without_a_size_are_refused(tmp_path):
    for facts in ({}, {"patch_size": 256}, {"patch_size": 256, "patch_level": 2}):
        with pytest.raises(HistoCLIPError, match="does not say how large a patch is"):
            exchange.read_coordinates(write_coordinates(tmp_path / "a.h5", np.zeros((3, 2), int), **facts))
    with pytest.raises(
        HistoCLIPError, match=r"needs a data set `coords` with x and y of each patch, but has one of shape \(3,\)"
    ):
        exchange.read_coordinates(write_coordinates(tmp_path / "a.h5", np.zeros(3)))
    (tmp_path / "b.h5").write_text("no")
    with pytest.raises(HistoCLIPError, match="is not an HDF5 file"):
        exchange.read_coordinates(tmp_path / "b.h5")
