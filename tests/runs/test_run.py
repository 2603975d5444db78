"""A run as one object: what a notebook hands over, what later ones read, and what is never loaded twice."""

import json

import numpy as np
import pytest
from tiny_clip import clip_of

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import alone_in
from histoclip_lib.runs.record import read_record
from histoclip_lib.runs.run import Run, open_run


def notebook(**values):
    """Return the globals of a notebook whose parameters cell declares these values."""
    return {**values, "helper": 1, "__annotations__": {name: type(value) for name, value in values.items()}}


def test_only_declared_parameters_are_kept_and_later_notebooks_read_them(tmp_path):
    first = open_run("a", tmp_path, notebook(name="a", reports_dir=str(tmp_path), seed=3))
    assert first["seed"] == 3
    open_run("a", tmp_path, notebook(name="a", reports_dir=str(tmp_path), epochs=5))
    assert open_run("a", tmp_path).parameters == {"name": "a", "seed": 3, "epochs": 5}


def test_a_parameter_that_no_notebook_has_declared_is_named(tmp_path):
    with pytest.raises(HistoCLIPError, match="the parameter views is not set"):
        open_run("a", tmp_path, {"seed": 0})["views"]


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(HistoCLIPError, match="the run 'absent' was not found"):
        open_run("absent", tmp_path)


def test_a_run_that_is_being_executed_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    with alone_in(tmp_path / "a"), pytest.raises(HistoCLIPError, match="is at work here"):
        open_run("a", tmp_path, {"seed": 1})
    assert not (tmp_path / "a" / "run.json").exists()


@pytest.fixture
def run(tmp_path, write_folder, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "cache"))
    data = write_folder(tmp_path / "data", {"a": [1, 0, 1, 0, 1, 1], "b": [0, 1, 1, 0, 1, 0]})
    given = {"dataset": "folder", "data_dir": str(data), "split": "random", "val_fraction": 0.5, "seed": 0}
    given |= {"backbone": "tiny-vit", "pretrained": "", "device": "cpu", "precision": "fp32", "compiled": False}
    given |= {
        "tokens": "all",
        "token_grid": 0,
        "match_mpp": False,
        "mpp": 0.5,
        "prompts": "paper",
        "text_encoder": "",
        "text_pretrained": "",
    }
    return open_run("a", tmp_path / "reports", given | {"views": 1, "encode_batch_size": 4, "prompts_file": ""})


def test_features_and_class_matrix_are_read_without_loading_the_encoder(run, monkeypatch):
    run.__dict__["encoder"] = clip_of("vit")
    features, matrix = run.encode(), run.embed_classes()
    monkeypatch.setattr("histoclip_lib.clip.encoder.load_clip", lambda *_: pytest.fail("the encoder was loaded"))
    later = open_run("a", run.folder.parent)
    index = np.arange(6)
    assert np.array_equal(later.features.pooled.take(index), features.pooled.take(index))
    assert np.array_equal(later.class_matrix, matrix)
    assert later.compute.device.type == "cpu"
    assert "at 32 pixels" in later.field_note()


def test_features_that_were_removed_from_the_cache_are_encoded_again(run):
    run.__dict__["encoder"] = clip_of("vit")
    expected = run.encode().pooled.take(np.arange(6))
    for marker in (run.folder.parents[1] / "cache" / "features").rglob("*.json"):
        marker.unlink()
    later = Run(run.folder, run.parameters)
    later.__dict__["encoder"] = clip_of("vit")
    assert np.array_equal(later.features.pooled.take(np.arange(6)), expected)
    assert later.features.encoded == 6


def test_a_class_matrix_of_other_classes_is_refused(run):
    with pytest.raises(HistoCLIPError, match=r"class_matrix.npy cannot be read .* Run the notebook 02_zero_shot first"):
        run.class_matrix  # noqa: B018
    np.save(run.folder / "class_matrix.npy", np.zeros((3, 4)))
    with pytest.raises(HistoCLIPError, match="was written for other classes"):
        run.class_matrix  # noqa: B018


def test_the_record_survives_a_garbled_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("{")
    assert open_run("a", tmp_path, {"seed": 1})["seed"] == 1
    assert read_record(tmp_path / "a")["parameters"] == json.loads('{"name": "a", "seed": 1}')
