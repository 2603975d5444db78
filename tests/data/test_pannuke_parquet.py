"""PanNuke as parquet: tissues, faulty tables and cells."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pannuke_files import png

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.checks import check_images
from histoclip_lib.data.pannuke import parquet as pannuke_parquet
from histoclip_lib.data.pannuke.layouts import load_pannuke
from histoclip_lib.data.pannuke.parquet import TISSUES


def test_parquet_tissues_are_those_of_the_real_arrays(shared_data):
    for fold in (1, 3):
        types = np.load(shared_data / f"pannuke/types_fold{fold}.npy", allow_pickle=False)
        assert np.unique(types).tolist() == list(TISSUES)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("categories", [[0, 5], []], r"row 0: categories \[5\] do not name a class"),
        ("tissue", [0, 19], "row 1: tissue 19"),
        ("tissue", None, "lacks tissue; it has image"),
        ("tissue", [0, None], "row 1: tissue None does not name an organ"),
        ("tissue", [0.0, 1.0], "column tissue holds double, expected integers or text"),
        ("categories", [0, 1], "column categories holds int64, expected a list of integers"),
        ("categories", [["0"], []], "column categories holds list<.*string>, expected"),
        ("categories", [[None], [0]], r"row 0: categories \[None\] do not name a class"),
        ("categories", [[-1, 7], []], r"row 0: categories \[-1, 7\] do not name a class"),
        ("image", [b"x", b"y"], "column image holds binary, expected a struct"),
        ("image", [{"path": "a.png"}] * 2, "column image holds struct<path: string>, expected a struct with `bytes`"),
        ("image", [{"bytes": "a"}] * 2, "column image holds struct<bytes: string>"),
        ("instances", [0, 1], "column instances holds int64"),
        ("instances", [[b"x"], []], "column instances holds list<.*binary>"),
    ],
)
def test_wrong_parquet_is_refused(tmp_path, column, values, message):
    picture = png(np.zeros((32, 32, 3), np.uint8))
    columns = {"image": [picture] * 2, "instances": [[], []], "categories": [[], []], "tissue": [0, 1]}
    columns[column] = values
    if values is None:
        del columns[column]
    pq.write_table(pa.table(columns), tmp_path / "fold1.parquet")
    with pytest.raises(HistoCLIPError, match=message):
        load_pannuke(tmp_path)


def write(path, **columns):
    picture = png(np.zeros((32, 32, 3), np.uint8))
    plain = {"image": [picture] * 2, "instances": [[], []], "categories": [[], []], "tissue": ["Breast"] * 2}
    pq.write_table(pa.table(plain | columns), path)


def test_all_faults_of_all_files_are_listed(tmp_path):
    write(tmp_path / "fold1-a.parquet", tissue=[1.0, 2.0], categories=[1, 2])
    write(tmp_path / "fold1-b.parquet", tissue=[99, 0], categories=[[], [5]])
    (tmp_path / "fold2.parquet").write_bytes(b"no table")
    with pytest.raises(HistoCLIPError) as raised:
        load_pannuke(tmp_path)
    for fault in (
        "fold1-a.parquet: column categories", "fold1-a.parquet: column tissue", "fold1-b.parquet, row 0: tissue 99",
        "fold1-b.parquet, row 1: categories [5]", "fold2.parquet cannot be read as parquet",
    ):  # fmt: skip
        assert fault in str(raised.value)


def test_every_invalid_parquet_cell_is_listed(tmp_path):
    good, small = png(np.zeros((32, 32, 3), np.uint8)), png(np.ones((30, 32), np.uint8))
    write(
        tmp_path / "fold1.parquet",
        image=[good, {"bytes": b"no picture", "path": "/etc/hostname"}, None, good, good],
        instances=[[], [], [], [small], [good]],
        categories=[[], [], [], [0], [0]],
        tissue=["Breast"] * 5,
    )
    with pytest.raises(HistoCLIPError) as raised:
        check_images(load_pannuke(tmp_path), progress=False)
    for fault in (
        "4 of 5 patches", "fold1/00001: patch 1, column image: is not an image", "fold1/00002: PanNuke, patch 2",
        "fold1/00003: PanNuke, patch 3, column instances: a nucleus is 32x30, the image 32x32",
        "fold1/00004: patch 4, column instances: one channel was expected",
    ):  # fmt: skip
        assert fault in str(raised.value)


def test_check_images_finds_damage_within_parquet_files(tmp_path):
    path = tmp_path / "fold1.parquet"
    write(path)
    dataset, content = load_pannuke(tmp_path), bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises(HistoCLIPError, match=r"(?s)2 of 2 .*column image: cannot be read"):
        check_images(dataset, progress=False)


def test_what_unpacks_to_more_than_memory_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "fold1.parquet")
    monkeypatch.setattr(pannuke_parquet, "MAX_ROW_GROUP", 100)
    with pytest.raises(HistoCLIPError, match=r"row group 0 unpacks to [0-9,]+ bytes, more than 100"):
        load_pannuke(tmp_path)


def test_parquet_faults_found_while_reading(tmp_path):
    picture = png(np.zeros((32, 32, 3), np.uint8))
    empty = {"bytes": None, "path": "lost.png"}
    columns = {
        "image": [picture, empty],
        "instances": [[picture], []],
        "categories": [[], []],
        "tissue": ["Breast"] * 2,
    }
    pq.write_table(pa.table(columns), tmp_path / "fold1.parquet")
    dataset = load_pannuke(tmp_path)
    assert dataset.tissue.tolist() == ["Breast", "Breast"]
    with pytest.raises(HistoCLIPError, match="1 instances but 0 categories"):
        dataset.mask(0)
    with pytest.raises(HistoCLIPError, match="patch 1, column image"):
        dataset.image(1)
    (tmp_path / "fold2.parquet").write_bytes(b"no table")
    with pytest.raises(HistoCLIPError, match=r"fold2\.parquet cannot be read as parquet"):
        load_pannuke(tmp_path)
