"""A step in two halves where memory is too small, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.models.training import TrainingStep, not_finite

WIDTH = 8


class Head(nn.Module):
    """A linear head on the mean token, with room for `room` patches at once."""

    def __init__(self, room):
        super().__init__()
        self.linear, self.room, self.sizes = nn.Linear(WIDTH, 3), room, []

    def forward(self, tokens):
        self.sizes.append(len(tokens))
        if len(tokens) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.linear(tokens.mean(dim=1)), None


def new_step(room, dtype=None):
    torch.manual_seed(0)
    head = Head(room)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    return TrainingStep(head, optimizer, torch.amp.GradScaler("cpu", enabled=False), dtype)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(7, 4, WIDTH), (torch.rand(7, 3) > 0.5).float()


def test_a_batch_that_does_not_fit_is_taken_in_halves_with_the_same_result(batch):
    whole, halved = new_step(7), new_step(4)
    expected = whole(*batch)
    with pytest.warns(UserWarning, match="batch of 7 patches does not fit"):
        loss = halved(*batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(halved.head.linear.weight, whole.head.linear.weight)
    assert halved.head.sizes == [7, 4, 3]


@pytest.mark.filterwarnings("error")
def test_later_batches_are_halved_without_another_try_or_notice(batch):
    step = new_step(4)
    step.parts = 2
    step(*batch)
    assert step.head.sizes == [4, 3]


@pytest.mark.filterwarnings("ignore:A batch of")
def test_half_a_batch_that_does_not_fit_is_an_error_and_changes_nothing(batch):
    step = new_step(3)
    before = copy.deepcopy(step.head.state_dict())
    with pytest.raises(HistoCLIPError, match=r"half a batch of 7 patches with 4 tokens .* Lower batch_size"):
        step(*batch)
    assert all(torch.equal(before[name], value) for name, value in step.head.state_dict().items())
    assert step.head.sizes == [7, 4]


def test_one_patch_cannot_be_halved(batch):
    tokens, truth = batch
    with pytest.raises(HistoCLIPError, match="half a batch of 1 patches"):
        new_step(0)(tokens[:1], truth[:1])


def test_parameters_that_are_not_finite_are_named():
    head = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not_finite(head) == []
    with torch.no_grad():
        head[1].weight[0, 0] = float("nan")
    assert not_finite(head) == ["1.weight"]
