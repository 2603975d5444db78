"""Batches of features: the rows and views asked for, in their order, resident or read ahead."""

import numpy as np
import pytest
import torch

from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.features.store import SHARD_SIZE, Shards

CPU = torch.device("cpu")


@pytest.mark.parametrize("n_batches", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("limit", [0, 10**9])
def test_batches_come_in_the_order_asked_for(n_batches, limit):
    arrays = np.arange(20 * 2 * 3, dtype=np.float16).reshape(20, 2, 3, 1)
    draw = np.random.default_rng(0)
    wanted = [(draw.integers(0, 20, 4), draw.integers(0, 2, 4)) for _ in range(n_batches)]
    found = list(FeatureReader(Shards([arrays]), CPU, resident_limit=limit).batches(wanted))
    assert len(found) == n_batches
    for batch, (rows, views) in zip(found, wanted, strict=True):
        assert np.array_equal(batch.numpy(), arrays[rows, views])


def test_error_while_reading_ahead_reaches_the_reader_of_that_batch():
    arrays = np.zeros((5, 1, 3, 1), dtype=np.float16)
    batches = FeatureReader(Shards([arrays]), CPU, resident_limit=0).batches(
        [(np.array([row]), np.array([0])) for row in (0, 1, 99)]
    )
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(IndexError):
        next(batches)


def test_reader_gives_the_rows_and_views_asked_for():
    arrays = np.random.default_rng(0).normal(size=(SHARD_SIZE + 5, 2, 3, 4)).astype(np.float16)
    shards = Shards([arrays[:SHARD_SIZE], arrays[SHARD_SIZE:]])
    rows, views = np.array([SHARD_SIZE + 1, 0, 0, 7]), np.array([1, 0, 1, 1])
    for limit in (0, 10**9):
        batch = FeatureReader(shards, CPU, resident_limit=limit).take(rows, views)
        assert np.array_equal(batch.numpy(), arrays[rows, views])


def test_pooled_features_come_as_one_key():
    shards = Shards([np.zeros((5, 2, 4), dtype=np.float32)])
    assert FeatureReader(shards, CPU).take(np.arange(3)).shape == (3, 1, 4)
