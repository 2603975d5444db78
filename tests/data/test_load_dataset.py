"""Loading by name, and that data errors come before any model is loaded."""

import subprocess
import sys

import numpy as np
import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data import registry as about
from histoclip_lib.data.registry import DATASETS, load_dataset


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(HistoCLIPError, match=r"'consep' is not known\. Use one of synthetic, folder, bcss_wsss"):
        load_dataset("consep")


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name != "synthetic"])
def test_data_that_lies_somewhere_needs_data_dir(dataset):
    with pytest.raises(HistoCLIPError, match=f"data_dir: {dataset} needs the folder"):
        load_dataset(dataset)


@pytest.mark.parametrize(
    ("dataset", "looked_for"),
    [("bcss_wsss", "BCSS-WSSS"), ("luad_histoseg", "LUAD-HistoSeg"), ("pannuke", "PanNuke")],
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_public_set_says_what_was_looked_for_and_where_it_comes_from(tmp_path, dataset, looked_for, exists):
    data_dir = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(HistoCLIPError) as raised:
        load_dataset(dataset, str(data_dir))
    message = str(raised.value)
    assert f"{looked_for} was not found in {data_dir}" in message
    assert "Looked for" in message
    assert "Unpack it and set data_dir" in message


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name != "synthetic"])
@pytest.mark.parametrize("data_dir", ["x" * 300, "a/" * 5000, "a\0b"])
def test_what_can_be_no_folder_is_refused(dataset, data_dir):
    with pytest.raises(HistoCLIPError, match=r"data_dir: '[ax].* cannot be read") as raised:
        load_dataset(dataset, data_dir)
    assert len(str(raised.value)) < 400


def test_the_folder_format_loads_by_name(tmp_path, write_folder):
    dataset = load_dataset("folder", str(write_folder(tmp_path, {"tumor": [0, 1]})))
    assert dataset.name == "folder"
    assert dataset.labels.tolist() == [[0], [1]]


def test_the_synthetic_set_is_painted_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path))
    dataset = load_dataset("synthetic", n_patches=4)
    assert len(dataset) == 4
    assert dataset.has_masks
    assert dataset.groups is not None
    assert np.array_equal(load_dataset("synthetic", n_patches=4).labels, dataset.labels)
    assert any(tmp_path.rglob("labels.csv"))


def test_every_data_set_has_a_paragraph_in_the_report():
    assert len({about(name) for name in DATASETS}) == len(DATASETS)


def test_data_is_checked_without_loading_a_model():
    names = "('torch', 'timm', 'open_clip', 'transformers')"
    code = f"import sys, histoclip_lib.data.registry; print([n for n in {names} if n in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout == "[]\n"
