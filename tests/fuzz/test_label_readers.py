"""Importers of files from outside: a plan or a HistoCLIPError, whatever the file holds."""

import json

import h5py
import numpy as np
import pytest
from cases import changed, damaged, fuzz, try_case, written
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from histoclip_lib.data.importers import ImportOptions, plan_import
from histoclip_lib.data.importers.split_files import read_split
from histoclip_lib.slides.exchange import read_coordinates, read_geojson, read_wsinfer_csv

CSV = [
    "file", "image", "label", "group", "split", "tumor", "a.png", "b.png", ",", ";", "\t", "|", "\n", "\r", '"', "0",
    "1", "-1", "1e999", "nan", "TRUE", "train", "val", "#", "\ufeff", "\0", " ", "../a.png", "9" * 40,
]  # fmt: skip
COLUMNS = b"file,case,split,tumor,stroma\na.png,p1,train,1,0\nb.png,p2,val,0,3\n"
NAMES = b"Image;labels\na.png;tumor|stroma\nb.png;No Finding\na.png;glands\n"
RING = [[0, 0], [20, 0], [20, 20], [0, 0]]
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 20, 0, 20, 20]]},
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": {"size": [40, 40], "counts": [100, 500, 1000]}},
    ],
    "categories": [{"id": 1, "name": "tumor"}],
}
GEOJSON = {
    "type": "FeatureCollection",
    "features": [
        {"geometry": {"type": "Polygon", "coordinates": [RING]}, "properties": {"classification": {"name": "tumor"}}},
        {"geometry": {"type": "MultiPolygon", "coordinates": [[RING]]}, "properties": {"measurements": {"a": 0.5}}},
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in "ab":
        Image.new("RGB", (40, 40)).save(folder / f"{name}.png")
    return folder


def put(path, content):
    path.write_bytes(content)
    return path


@given(written(CSV) | damaged(COLUMNS) | damaged(NAMES))
@fuzz
def test_tables(place, content):
    plan = try_case("imported tables", lambda: plan_import(put(place / "table.csv", content), ImportOptions()))
    if plan is not None:
        assert {patch.file for patch in plan.patches} <= {"a.png", "b.png"}
        assert {label for patch in plan.patches for label in patch.labels} <= {0, 1, None}
        plan.describe().encode()


@given(changed(COCO).map(lambda value: json.dumps(value).encode()) | damaged(json.dumps(COCO).encode()))
@fuzz
def test_coco(place, content):
    plan = try_case("COCO", lambda: plan_import(put(place / "coco.json", content), ImportOptions(), "coco"))
    if plan is not None and plan.has_masks:
        assert all(plan._mask(patch).max() <= len(plan.classes) for patch in plan.patches)


@given(changed(GEOJSON).map(lambda value: json.dumps(value).encode()) | damaged(json.dumps(GEOJSON).encode()))
@fuzz
def test_geojson(place, content):
    try_case("GeoJSON", lambda: read_geojson(put(place / "a.geojson", content)))


@given(damaged(b"minx,miny,width,height,prob_a,prob_b\n0,0,10,10,0.5,1e-9\n10,0,10,10,0.1,1\n"))
@fuzz
def test_wsinfer(place, content):
    tiles = try_case("wsinfer CSV", lambda: read_wsinfer_csv(put(place / "tiles.csv", content)))
    assert tiles is None or np.isfinite(tiles[["x", "y", "width", "height"]].to_numpy(float)).all()


@given(
    st.sampled_from([b"", b",train,val,test\n0,a,b,c\n", b",train,val\na,True,False\n"]).flatmap(damaged), st.booleans()
)
@fuzz
def test_splits(place, content, as_json):
    try_case("split files", lambda: read_split(put(place / f"split.{'json' if as_json else 'csv'}", content)))


@given(st.data())
@fuzz
def test_coordinates(place, data):
    path = place / "whole.h5"
    if not path.exists():
        with h5py.File(path, "w") as file:
            file.create_dataset("coords", data=np.array([[0, 1], [2, 3]])).attrs["patch_size_level0"] = 512
    content = data.draw(damaged(path.read_bytes()))
    try_case("coordinates", lambda: read_coordinates(put(place / "damaged.h5", content)))
