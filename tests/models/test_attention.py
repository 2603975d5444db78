"""Attention maps against their formula, and the reference maps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from histoclip_lib.features.reader import FeatureReader, undo_view, view_of
from histoclip_lib.features.store import Shards
from histoclip_lib.models import attention
from histoclip_lib.models.attention import (
    MAP_LABELS,
    SHIFTED,
    attention_maps,
    central_part,
    deletion_test,
    enlarge,
    linear_maps,
    maps_to_compare,
    shifted_maps,
    square_crop,
)
from histoclip_lib.models.baselines import LinearProbe
from histoclip_lib.models.cmm import CMM


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return CMM(nn.functional.normalize(torch.randn(2, 16), dim=-1), heads=2).eval()


def reader_of(grids):
    """A reader for token grids (B, V, d, g, g)."""
    tokens = grids.flatten(3).transpose(2, 3).numpy()
    return FeatureReader(Shards([np.ascontiguousarray(tokens)]), torch.device("cpu"))


def test_map_is_attention_times_gradient_of_the_own_logit_for_tokens_of_equal_length(head):
    grids = torch.randn(3, 1, 16, 4, 4)
    index = np.array([2, 0])
    maps = attention_maps(head, reader_of(grids), index)
    tokens = grids[index, 0].flatten(2).transpose(1, 2)
    tokens = nn.functional.normalize(tokens, dim=2) * tokens.norm(dim=2).mean(dim=1)[:, None, None]
    for k in range(2):
        logits, attention = head(tokens)
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), attention)
        evidence = (attention * gradient)[:, :, k].clamp_min(0).mean(dim=1).detach()
        expected = (evidence / evidence.sum(dim=-1, keepdim=True)).unflatten(-1, (4, 4))
        np.testing.assert_allclose(maps[:, k], expected, rtol=1e-4, atol=1e-7)
        logits, attention = head(grids[index, 0].flatten(2).transpose(1, 2))
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), attention)
        raw = (attention * gradient)[:, :, k].clamp_min(0).mean(dim=1).detach().unflatten(-1, (4, 4))
        as_is = attention_maps(head, reader_of(grids), index, equal_length=False)[:, k]
        np.testing.assert_allclose(as_is, raw / raw.sum(dim=(1, 2), keepdim=True), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), 1, rtol=1e-5)


def test_map_is_uniform_without_evidence(head):
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


# Reference maps


def fresh(seed=3):
    generator = torch.Generator().manual_seed(1)
    embeddings = nn.functional.normalize(torch.randn(2, 16, generator=generator), dim=-1)
    torch.manual_seed(seed)
    return CMM(embeddings, heads=2, hidden=32)


PROBE = LinearProbe(
    np.full(16, 3.0, np.float32), np.linspace(1, 2, 16, dtype=np.float32),
    np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32), np.array([5.0, -1.0]), 1.0, {}, None,
)  # fmt: skip


@pytest.fixture(scope="module")
def grids():
    return torch.randn(5, 3, 16, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def compared(grids):
    """A head whose weights were changed, and what `maps_to_compare` makes of it."""
    head, before = fresh(), fresh()
    for module in (head, before):
        module.fit_scale(grids.movedim(2, -1))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    index = np.array([4, 0, 2])
    state = torch.get_rng_state()
    corrected = grids[index, 0].flatten(2).transpose(1, 2).numpy()
    maps = maps_to_compare(head, PROBE.directions, reader_of(grids), index, 3, corrected)
    assert torch.equal(torch.get_rng_state(), state)  # drawing the untrained head leaves no trace
    return head, before, index, maps


def test_every_map_is_a_distribution_over_the_patch(compared):
    *_, maps = compared
    assert list(maps) == [name for name in MAP_LABELS if name != SHIFTED]
    for values in maps.values():
        assert values.shape == (3, 2, 4, 4)
        assert values.dtype == np.float32
        assert values.min() >= 0
        np.testing.assert_allclose(values.sum(axis=(2, 3)), 1, rtol=1e-5)


def test_trained_and_untrained_are_the_attention_of_the_head_now_and_at_its_start(compared, grids):
    head, before, index, maps = compared
    np.testing.assert_allclose(maps["trained"], attention_maps(head, reader_of(grids), index), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(maps["untrained"], attention_maps(before, reader_of(grids), index), rtol=1e-4, atol=1e-7)
    assert np.abs(maps["trained"] - maps["untrained"]).max() > 0.01


def test_the_centre_prior_is_a_gaussian_of_a_quarter_of_the_side(compared):
    *_, maps = compared
    offsets = (np.arange(4) + 0.5) / 4 - 0.5
    expected = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 0.25**2))
    np.testing.assert_allclose(maps["centre"][1, 0], expected / expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(maps["uniform"], 1 / 16, rtol=1e-6)


def test_maps_of_the_probe_order_tokens_by_its_logit(compared, grids):
    """Each token as an image of its own: mean over the views, turned back, from the lowest on."""
    _, _, index, maps = compared
    for name, tokens in (("probe", grids), ("probe_unit", nn.functional.normalize(grids, dim=2))):
        upright = torch.stack([undo_view(tokens[index][:, view], view) for view in range(3)], dim=1)
        standardised = (upright.movedim(2, -1).numpy() - PROBE.mean) / PROBE.scale
        logits = (standardised @ PROBE.weights + PROBE.intercepts).mean(axis=1)
        above = np.moveaxis(logits, -1, 1) - logits.min(axis=(1, 2))[:, :, None, None]
        np.testing.assert_allclose(maps[name], above / above.sum(axis=(2, 3), keepdims=True), atol=1e-5)


def test_corrected_tokens_are_compared_with_the_words(compared, grids):
    head, _, index, maps = compared
    expected = linear_maps(head.class_embeddings, reader_of(grids[:, :1]), index)
    np.testing.assert_allclose(maps["corrected"], expected, atol=1e-6)


class MeanHead(nn.Module):
    """Its logits are the mean of what the tokens hold."""

    def forward(self, tokens):
        return tokens.mean(dim=1), None


def test_deletion_by_hand(monkeypatch):
    """One of 16 tokens holds 16: the logit is 1 whatever else is there, 0 without it, 16 / n among n that remain."""
    monkeypatch.setattr("histoclip_lib.models.attention.BATCH", 2)
    tokens = torch.zeros(3, 16, 2)
    tokens[:, 3] = 16
    reader = FeatureReader(Shards([tokens[:, None].numpy()]), torch.device("cpu"))
    spot = np.zeros((3, 2, 16))
    spot[:, :, 3] = 1
    maps = {"right": spot.reshape(3, 2, 4, 4), "wrong": -spot.reshape(3, 2, 4, 4)}
    falls = deletion_test(MeanHead(), reader, np.arange(3), maps, draws=3000)
    kept = np.mean([16 / (16 - removed) for removed in (2, 3, 5, 8)])
    np.testing.assert_allclose(falls["right"], 1, atol=0.05)
    np.testing.assert_allclose(falls["wrong"], 1 - kept, atol=0.05)


def test_similarity_is_the_cosine_of_token_and_class(grids):
    classes = fresh().class_embeddings
    maps = linear_maps(classes, reader_of(grids[:, :1]), np.array([3, 1]))
    for position, patch in enumerate((3, 1)):
        for k in range(2):
            cosines = nn.functional.cosine_similarity(grids[patch, 0], classes[k][:, None, None], dim=0).numpy()
            above = cosines - cosines.min()
            np.testing.assert_allclose(maps[position, k], above / above.sum(), atol=1e-6)


def test_similarity_of_turned_views_is_turned_back():
    upright = torch.randn(3, 16, 4, 4)
    turned = torch.stack([view_of(upright, view) for view in range(8)], dim=1)
    classes = fresh().class_embeddings
    one, every = (linear_maps(classes, reader_of(grids), np.arange(3)) for grids in (turned[:, :1], turned))
    np.testing.assert_allclose(every, one, atol=1e-5)


def test_similarity_of_equal_tokens_is_uniform():
    grids = torch.ones(1, 1, 16, 1, 1).expand(1, 1, 16, 4, 4)
    np.testing.assert_allclose(
        linear_maps(fresh().class_embeddings, reader_of(grids), np.array([0])), 1 / 16, rtol=1e-5
    )


def test_the_central_part_of_a_map_is_where_a_mirrored_patch_lies():
    """On a plane, bilinear interpolation is exact."""
    plane = np.add.outer(np.arange(8), 10 * np.arange(8)) + 1
    maps = np.broadcast_to(plane.astype(np.float32), (2, 1, 8, 8))
    found = central_part(maps, np.array([1.0, 0.5]))
    inner = np.linspace(1.75, 5.25, 8)  # of 8 cells the central 4, each halved
    expected = np.add.outer(inner, 10 * inner) + 1
    np.testing.assert_allclose(found[0, 0], plane / plane.sum(), rtol=1e-5)
    np.testing.assert_allclose(found[1, 0], expected / expected.sum(), rtol=1e-5)


def test_shifted_images_make_a_grid_whose_cells_lie_between_those_of_the_encoder(head, monkeypatch):
    """With the mean brightness of a cell as its evidence, a ramp is seen at the centres of the finer cells."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    means = lambda images: functional.avg_pool2d(images.float(), 16).flatten(2).transpose(1, 2)  # noqa: E731
    clip = SimpleNamespace(
        device=torch.device("cpu"),
        resize=lambda image: torch.from_numpy(np.array(image)).movedim(2, 0),
        encode_images=lambda images: (None, means(images)),
    )
    patches = SimpleNamespace(classes=["a", "b"], image=lambda index: ramp)
    monkeypatch.setattr(attention, "evidence", lambda head, tokens: tokens[..., :2].transpose(1, 2))
    found = shifted_maps(head, clip, patches, np.arange(3), side=4, batch_size=2)
    assert found.shape == (3, 2, 8, 8)
    centres = (np.arange(8) + 0.5) * 8 - 0.5
    np.testing.assert_allclose(4 * found[2, 1, 5, 1:-1], centres[1:-1], atol=0.01)
    np.testing.assert_array_equal(found[0, 0], np.broadcast_to(found[0, 0, 0], (8, 8)))
