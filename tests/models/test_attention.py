import numpy as np
import pytest
import torch
from torch import nn

from histoclip_lib.features.reader import FeatureReader, view_of
from histoclip_lib.features.store import Shards
from histoclip_lib.models.attention import attention_maps, enlarge, square_crop
from histoclip_lib.models.cmm import CMM


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return CMM(nn.functional.normalize(torch.randn(2, 16), dim=-1), heads=2).eval()


def reader_of(grids):
    """A reader for token grids (B, V, d, g, g)."""
    tokens = grids.flatten(3).transpose(2, 3).numpy()
    return FeatureReader(Shards([np.ascontiguousarray(tokens)]), torch.device("cpu"))


def test_map_is_attention_times_gradient_of_the_own_logit(head):
    grids = torch.randn(3, 1, 16, 4, 4)
    rows = np.array([2, 0])
    maps = attention_maps(head, reader_of(grids), rows)
    tokens = grids[rows, 0].flatten(2).transpose(1, 2)
    for k in range(2):
        logits, attention = head(tokens)
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), attention)
        evidence = (attention * gradient)[:, :, k].clamp_min(0).mean(dim=1).detach()
        expected = (evidence / evidence.sum(dim=-1, keepdim=True)).unflatten(-1, (4, 4))
        np.testing.assert_allclose(maps[:, k], expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), 1, rtol=1e-5)


def test_map_is_uniform_where_nothing_speaks_for_the_class(head):
    grids = torch.randn(1, 1, 16, 1, 1).expand(1, 1, 16, 4, 4)  # the same token everywhere: no gradient is kept apart
    maps = attention_maps(head, reader_of(grids), np.array([0]))
    np.testing.assert_allclose(maps, 1 / 16, rtol=1e-3)


def test_maps_of_turned_views_are_turned_back(head):
    """When each view's tokens are the image's tokens turned, all views have the same upright map."""
    upright = torch.randn(3, 16, 4, 4)
    turned = torch.stack([view_of(upright, view) for view in range(8)], dim=1)
    one, all_views = (attention_maps(head, reader_of(grids), np.arange(3)) for grids in (turned[:, :1], turned))
    np.testing.assert_allclose(all_views, one, rtol=1e-4)


@pytest.mark.parametrize(("shape", "top", "left", "side"), [((6, 10), 0, 2, 6), ((9, 4), 2, 0, 4), ((5, 5), 0, 0, 5)])
def test_square_crop_is_the_centre(shape, top, left, side):
    image = np.arange(np.prod(shape)).reshape(shape)
    assert np.array_equal(square_crop(image), image[top : top + side, left : left + side])


def test_enlarged_map_equals_torch_bilinear():
    small = np.random.default_rng(0).random((7, 7)).astype(np.float32)
    expected = nn.functional.interpolate(torch.from_numpy(small)[None, None], size=56, mode="bilinear")[0, 0]
    np.testing.assert_allclose(enlarge(small, 56), expected, atol=1e-5)
