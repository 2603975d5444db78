"""PanNuke as parquet: tissues, faulty tables and cells."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pannuke_files import png

from histoclip_lib.datasets.pannuke import load_pannuke
from histoclip_lib.datasets.pannuke_parquet import TISSUES
from histoclip_lib.errors import HistoCLIPError


def test_parquet_tissues_are_those_of_the_real_arrays(shared_data):
    for fold in (1, 3):
        types = np.load(shared_data / f"pannuke/types_fold{fold}.npy", allow_pickle=False)
        assert np.unique(types).tolist() == list(TISSUES)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("categories", [[0, 5], []], r"row 0: categories \[5\] name no class"),
        ("tissue", [0, 19], "row 1: tissue 19"),
        ("tissue", None, "lacks tissue; it has image"),
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
