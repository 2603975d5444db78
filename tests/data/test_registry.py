"""The registry of data sets: loading by name, options, and what importing it loads."""

import numpy as np
import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.registry import Registry
from histoclip_lib.data import registry
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.registry import DATASETS, dataset, dataset_parameters, load_dataset, load_dataset_from


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        HistoCLIPError, match=r"'consep' is not a known data set\. Use one of synthetic, folder, bcss_wsss"
    ):
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
def test_an_invalid_data_dir_is_refused(dataset, data_dir):
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


def test_every_data_set_says_what_the_report_needs():
    for name in DATASETS:
        entry = DATASETS[name]
        assert entry.name == name
        assert entry.title in entry.about
        assert entry.licence.endswith(".")
    assert {name for name in DATASETS if DATASETS[name].paper} == {"bcss_wsss", "luad_histoseg", "pannuke"}


@pytest.fixture
def toy(monkeypatch):
    """A registry with two toy data sets; what their loaders got is in `calls`."""
    calls = []
    monkeypatch.setattr(registry, "DATASETS", Registry("data set", "dataset"))
    about = {"title": "Toy", "licence": "None.", "about": "A toy."}
    registry.dataset("toy", options=("split", "size"), **about)(lambda folder, **given: calls.append((folder, given)))

    def make(**given):
        calls.append(given)
        return PatchDataset("made", ["a"], ["1.png"], np.ones((1, 1)), source=None)

    registry.dataset("made", options=("n_patches",), needs_folder=False, **about)(make)
    return calls


def test_loaders_get_their_own_options_only(toy, tmp_path):
    load_dataset("toy", tmp_path, size=3, n_patches=4)
    load_dataset("toy", tmp_path, "given")
    load_dataset("made", size=3)
    assert toy == [(tmp_path, {"size": 3, "split": "random"}), (tmp_path, {"split": "given"}), {}]


def test_an_option_of_no_data_set_is_refused(toy, tmp_path):
    with pytest.raises(HistoCLIPError, match=r"n_patch, sise: not an option of any data set\. toy has split, size"):
        load_dataset("toy", tmp_path, sise=3, n_patch=4)
    assert toy == []


def test_a_run_s_parameters_are_enough_to_load_its_data(toy, tmp_path):
    values = {"name": "run", "dataset": "toy", "data_dir": str(tmp_path), "split": "given", "size": 3, "epochs": 8}
    assert dataset_parameters(values) == {name: values[name] for name in ("dataset", "data_dir", "split", "size")}
    load_dataset_from(values)
    load_dataset_from({"dataset": "made"})
    assert toy == [(tmp_path, {"size": 3, "split": "given"}), {}]


def test_two_data_sets_of_one_name_are_refused(toy):
    with pytest.raises(HistoCLIPError, match="'toy' is registered twice"):
        registry.dataset("toy", title="Other", licence="", about="")(print)


def test_a_resolution_that_is_given_counts_before_that_of_the_data(tmp_path, write_folder):
    folder = write_folder(tmp_path, {"a": [0, 1]}, mpp=[0.25, 0.25])
    assert load_dataset("folder", folder).mpp == 0.25
    assert load_dataset("folder", folder, mpp=0.5).mpp == 0.5
    with pytest.raises(HistoCLIPError, match="mpp: 40 micrometres per pixel is out of range"):
        load_dataset("folder", folder, mpp=40)
    assert (DATASETS["pannuke"].mpp, DATASETS["bcss_wsss"].mpp, DATASETS["luad_histoseg"].mpp) == (0.25, 0.25, 0.5)


def test_pictures_of_painted_patches_say_so_and_their_pixels_stay_for_the_encoder(tmp_path, write_folder):
    painted, real = (
        load_dataset("synthetic", n_patches=2),
        load_dataset("folder", write_folder(tmp_path, {"a": [0, 1]})),
    )
    changed = (painted.picture(0) != painted.image(0)).any(axis=2)
    assert 0.005 < changed.mean() < 0.05 and changed[-20:, :60].sum() == changed.sum()
    np.testing.assert_array_equal(real.picture(0), real.image(0))


def test_a_data_set_without_a_folder_is_not_taken_for_a_painted_one(tmp_path, write_folder, monkeypatch):
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS.load()))
    folder = write_folder(tmp_path, {"a": [0, 1]})
    dataset("fetched", title="Fetched", licence="MIT", about="Found by its own code.", needs_folder=False)(
        lambda: load_dataset("folder", folder)
    )
    assert not load_dataset("fetched").generated
