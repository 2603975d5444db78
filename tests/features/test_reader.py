"""The eight views of a patch, and batches of features in the order asked for, resident or read ahead."""

import os

import numpy as np
import pytest
import torch

from histoclip_lib.features.reader import FeatureReader, undo_view, view_of
from histoclip_lib.features.store import SHARD_SIZE, Shards

CPU = torch.device("cpu")
VIEWS = range(8)


@pytest.mark.parametrize("n_batches", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("limit", [0, 10**9])
def test_batches_come_in_the_order_asked_for(n_batches, limit):
    arrays = np.arange(20 * 2 * 3, dtype=np.float16).reshape(20, 2, 3, 1)
    draw = np.random.default_rng(0)
    wanted = [(draw.integers(0, 20, 4), draw.integers(0, 2, 4)) for _ in range(n_batches)]
    found = list(FeatureReader(Shards([arrays]), CPU, resident_limit=limit).batches(wanted))
    assert len(found) == n_batches
    for batch, (index, views) in zip(found, wanted, strict=True):
        assert np.array_equal(batch.numpy(), arrays[index, views])


def test_error_while_reading_ahead_reaches_the_reader_of_that_batch():
    arrays = np.zeros((5, 1, 3, 1), dtype=np.float16)
    batches = FeatureReader(Shards([arrays]), CPU, resident_limit=0).batches(
        [(np.array([index]), np.array([0])) for index in (0, 1, 99)]
    )
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(IndexError):
        next(batches)


@pytest.mark.parametrize("names", [{}, {"SC_PHYS_PAGES": 85}])
def test_a_system_that_does_not_tell_its_free_memory_keeps_small_features_resident(monkeypatch, names):
    monkeypatch.setattr(os, "sysconf_names", names)
    arrays = np.zeros((5, 1, 3, 1), dtype=np.float16)
    assert FeatureReader(Shards([arrays]), CPU).resident is not None


def test_reader_gives_the_patches_and_views_asked_for():
    arrays = np.random.default_rng(0).normal(size=(SHARD_SIZE + 5, 2, 3, 4)).astype(np.float16)
    shards = Shards([arrays[:SHARD_SIZE], arrays[SHARD_SIZE:]])
    index, views = np.array([SHARD_SIZE + 1, 0, 0, 7]), np.array([1, 0, 1, 1])
    for limit in (0, 10**9):
        batch = FeatureReader(shards, CPU, resident_limit=limit).take(index, views)
        assert np.array_equal(batch.numpy(), arrays[index, views])


def test_pooled_features_come_as_one_key():
    shards = Shards([np.zeros((5, 2, 4), dtype=np.float32)])
    assert FeatureReader(shards, CPU).take(np.arange(3)).shape == (3, 1, 4)


# Views


def test_views_are_the_eight_flips_and_rotations_and_the_first_is_the_image():
    image = torch.arange(9).reshape(3, 3)
    seen = {tuple(view_of(image, view).flatten().tolist()) for view in VIEWS}
    transposed = [image, image.T]
    flipped = [one.flip(dims) for one in transposed for dims in ((), (0,), (1,), (0, 1))]
    assert seen == {tuple(one.flatten().tolist()) for one in flipped}
    assert len(seen) == 8
    assert torch.equal(view_of(image, 0), image)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(4, 4), (2, 5, 5), (2, 3, 6, 6)])
def test_undo_view_inverts_view_of(view, shape):
    images = torch.rand(shape)
    assert torch.equal(undo_view(view_of(images, view), view), images)


def test_undo_view_puts_a_token_grid_back_in_place():
    """The mean over 2x2 cells stands for an encoder."""
    image = torch.rand(1, 8, 8)
    for view in VIEWS:
        on_view = torch.nn.functional.avg_pool2d(view_of(image, view), 2)
        torch.testing.assert_close(undo_view(on_view, view), torch.nn.functional.avg_pool2d(image, 2))
