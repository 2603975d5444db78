"""The state of an interrupted training: whatever is wrong with the file, training starts anew and says nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from histoclip_lib.models.cmm import CMM
from histoclip_lib.models.training import load_checkpoint, save_checkpoint

HISTORY = [{"epoch": 1, "loss": 0.5}]


def parts(seed=0):
    torch.manual_seed(seed)
    head = CMM(torch.randn(3, 8), heads=2, hidden=6)
    return head, torch.optim.AdamW(head.parameters()), torch.amp.GradScaler("cpu", enabled=False)


@pytest.fixture
def path(tmp_path):
    head, optimizer, scaler = parts()
    head(torch.randn(2, 4, 8))[0].sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "state", "mine", head, optimizer, scaler, HISTORY)
    return tmp_path / "state"


def state_of(head, optimizer):
    moments = optimizer.state_dict()["state"]
    return [*head.state_dict().values(), *(value for number in moments for value in moments[number].values())]


def metadata(**changes):
    return {"identity": "mine", "history": json.dumps(HISTORY), "scaler": "{}"} | changes


def assert_passed_over(path):
    head, optimizer, scaler = parts(seed=1)
    before = [value.clone() for value in state_of(head, optimizer)]
    assert load_checkpoint(path, "mine", head, optimizer, scaler) == []
    after = state_of(head, optimizer)
    assert len(after) == len(before)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_what_was_saved_comes_back(path):
    head, optimizer, scaler = parts(seed=1)
    assert load_checkpoint(path, "mine", head, optimizer, scaler) == HISTORY
    stored = load_file(path)
    assert torch.equal(head.state_dict()["token_mean"], stored["head.token_mean"])
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], stored["optimizer.0.exp_avg"])


@pytest.mark.parametrize("content", [b"", b"half a file", b"\xff" * 100, b"PK\x03\x04"])
def test_what_is_no_safetensors_file_is_passed_over(path, content):
    path.write_bytes(content)
    assert_passed_over(path)


def test_a_truncated_or_missing_file_is_passed_over(path):
    path.write_bytes(path.read_bytes()[:-1])
    assert_passed_over(path)
    path.unlink()
    assert_passed_over(path)


@pytest.mark.parametrize(
    "about",
    [
        {},
        metadata(identity="another"),
        metadata(history="no JSON"),
        metadata(history="3"),
        metadata(history="[3]"),
        metadata(history="[" * 100_000),
        {key: value for key, value in metadata().items() if key != "scaler"},
    ],
)
def test_a_file_that_says_something_else_of_itself_is_passed_over(path, about):
    save_file(load_file(path), path, about)
    assert_passed_over(path)


@pytest.mark.parametrize(
    "change",
    [
        {"head.token_mean": torch.zeros(9)},
        {"head.more": torch.zeros(9)},
        {"optimizer.0.exp_avg": torch.zeros(9)},
        {"optimizer.0.step": torch.zeros(2)},
        {"optimizer.99.exp_avg": torch.zeros(9)},
        {"optimizer.zero.exp_avg": torch.zeros(9)},
        {"optimizer.0": torch.zeros(9)},
    ],
)
def test_tensors_of_another_training_are_passed_over(path, change):
    save_file(load_file(path) | change, path, metadata())
    assert_passed_over(path)
