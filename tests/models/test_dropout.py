"""Dropout with fast masks: the share, the scale, the gradient and the seed of PyTorch's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from histoclip_lib.models.cmm import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_share_and_scale_are_those_of_torch(p):
    torch.manual_seed(0)
    ones = torch.ones(400_003)
    found = dropout(ones, p)
    dropped = (found == 0).float().mean().item()
    assert dropped == pytest.approx(round(256 * p) / 256, abs=4 * (p * (1 - p) / len(ones)) ** 0.5)
    assert found.mean().item() == pytest.approx(1, abs=0.03)
    assert found[found > 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=0.02)
    assert functional.dropout(ones, p).mean().item() == pytest.approx(found.mean().item(), abs=0.03)


def test_each_place_is_dropped_as_often_and_independently_of_its_neighbours():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(4000, 64), 0.5) > 0).double().numpy()
    assert np.abs(kept.mean(axis=0) - 0.5).max() < 0.04  # five standard deviations; every eighth byte too
    correlations = np.corrcoef(kept.T)[~np.eye(64, dtype=bool)]
    assert np.abs(correlations).max() < 0.08


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), max_size=4), st.floats(0, 0.9999))
def test_any_shape_keeps_its_shape_and_passes_its_gradient(shape, p):
    values = torch.full(shape, 2.0, dtype=torch.float32, requires_grad=True)
    found = dropout(values, p)
    assert found.shape == values.shape
    found.sum().backward()
    torch.testing.assert_close(values.grad, found.detach() / 2)


def test_draws_follow_the_seed():
    torch.manual_seed(3)
    first, second = dropout(torch.ones(100), 0.5), dropout(torch.ones(100), 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(torch.ones(100), 0.5))
    assert not torch.equal(first, second)


def test_nothing_is_dropped_in_prediction_or_at_zero():
    values = torch.randn(10)
    module = Dropout(0.5)
    assert (module(torch.ones(1000)) == 0).any()
    assert module.eval()(values) is values
    assert dropout(values, 0.0) is values


def test_module_has_no_parameters_of_its_own():
    assert Dropout(0.5).state_dict() == {}
