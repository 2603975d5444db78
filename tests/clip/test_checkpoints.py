"""Weights files: nothing in them is run, wrappers of training scripts come off, and what does not fit is an error."""

import pickle

import published_files as files
import pytest
import torch
from torch import nn

from histoclip_lib.clip.checkpoints import fill, read_weights
from histoclip_lib.common.errors import HistoCLIPError

WEIGHTS = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "wrapped", [WEIGHTS, {"state_dict": WEIGHTS}, {"model": WEIGHTS}, {"epoch": 3, "module": WEIGHTS}]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_below_what_training_scripts_put_around_them(tmp_path, wrapped, prefix):
    [key] = [name for name, value in wrapped.items() if value is WEIGHTS] or [None]
    table = {prefix + name: value for name, value in WEIGHTS.items()}
    path = files.save(tmp_path, table if key is None else wrapped | {key: table}, "pytorch_model.bin")
    found = read_weights(path)
    assert {name: value.tolist() for name, value in found.items()} == {k: v.tolist() for k, v in WEIGHTS.items()}


class Opens:
    def __reduce__(self):
        return open, ("opened", "w")


def test_code_in_a_weights_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(WEIGHTS | {"more": Opens()}, path)
    with pytest.raises(HistoCLIPError, match="the weights cannot be read"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Opens(), protocol=2))
    with pytest.raises(HistoCLIPError, match="cannot be read"):
        read_weights(path)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("content", [[1, 2], {"weight": 3}, torch.ones(2)])
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(HistoCLIPError, match="does not contain a state dict"):
        read_weights(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_file_is_refused(tmp_path, name):
    path = files.save(tmp_path, WEIGHTS, name)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(HistoCLIPError, match=f"{name}: the weights cannot be read"):
        read_weights(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, 'Missing key.*"bias"'),
        ({"more": torch.ones(1)}, 'Unexpected key.*"more"'),
        ({"bias": torch.ones(3)}, "size mismatch"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    weights = {name: value for name, value in (WEIGHTS | change).items() if value is not None}
    with pytest.raises(HistoCLIPError, match=rf"^{tmp_path}: these are not the weights of this model.*{message}"):
        fill(nn.Linear(3, 2), weights, tmp_path)
