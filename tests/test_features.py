"""Features: encoded once, in every view, and never read from a shard that is stale or half written."""

import hashlib
import itertools
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_clip import tiny_clip

from histoclip_lib import features
from histoclip_lib.clip import CLIP
from histoclip_lib.datasets.base import PatchDataset
from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.features import Shards, encode_dataset, undo_view, view_of

SHARD_SIZE = 4
VIEWS = range(8)


@dataclass(frozen=True)
class Pixels:
    """Patches that lie in memory."""

    images: np.ndarray

    def image(self, index):
        return self.images[index]

    def digest(self, index):
        return hashlib.sha256(self.images[index].tobytes()).hexdigest()


def patches(n=10, name="made", changed=None):
    images = np.random.default_rng(0).integers(0, 256, (n, 40, 40, 3), dtype=np.uint8)
    if changed is not None:
        images[changed] = 255 - images[changed]
    files = [f"{index}.png" for index in range(n)]
    return PatchDataset(name, ["a"], files, np.zeros((n, 1), np.uint8), Pixels(images))


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(features, "SHARD_SIZE", SHARD_SIZE)


@pytest.fixture
def passes(monkeypatch):
    """How many images went through the encoder in each call."""
    counts = []
    encode = CLIP.encode_images

    def counting(self, images):
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(CLIP, "encode_images", counting)
    return counts


@pytest.fixture
def encode(tmp_path):
    def run(clip, dataset, **options):
        options = {"workers": 0, "cache": tmp_path, "progress": False, "batch_size": 3} | options
        return encode_dataset(clip, dataset, **options)

    return run


def everything(shards):
    return np.concatenate(shards.pieces)


def stop_after(monkeypatch, calls):
    """Let the encoder fail as if the user had stopped the run."""
    encode, count = CLIP.encode_images, itertools.count()

    def failing(self, images):
        if next(count) == calls:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(CLIP, "encode_images", failing)


# Views


def test_the_eight_views_are_distinct_and_the_first_is_the_image():
    image = torch.arange(9).reshape(3, 3)
    seen = {tuple(view_of(image, view).flatten().tolist()) for view in VIEWS}
    assert len(seen) == 8
    assert torch.equal(view_of(image, 0), image)


def test_views_are_flips_and_rotations():
    image = torch.arange(9).reshape(3, 3)
    seen = {tuple(view_of(image, view).flatten().tolist()) for view in VIEWS}
    transposed = [image, image.T]
    flipped = [one.flip(dims) for one in transposed for dims in ((), (0,), (1,), (0, 1))]
    assert seen == {tuple(one.flatten().tolist()) for one in flipped}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(4, 4), (2, 5, 5), (2, 3, 6, 6)])
def test_undo_view_inverts_view_of(view, shape):
    images = torch.rand(shape)
    assert torch.equal(undo_view(view_of(images, view), view), images)


def test_what_is_computed_on_a_view_lies_right_after_undo_view():
    """Token grids turn with their image: the mean over 2x2 cells stands for an encoder."""
    image = torch.rand(1, 8, 8)
    for view in VIEWS:
        on_view = torch.nn.functional.avg_pool2d(view_of(image, view), 2)
        torch.testing.assert_close(undo_view(on_view, view), torch.nn.functional.avg_pool2d(image, 2))


@pytest.mark.parametrize("views", [0, 9, -1])
def test_number_of_views_is_checked(encode, clip, views):
    with pytest.raises(HistoCLIPError, match=f"views: {views} is out of range"):
        encode(clip, patches(), views=views)


# Shards


@given(st.data())
def test_take_is_plain_indexing(data):
    size = features.SHARD_SIZE
    n_rows, n_views = data.draw(st.integers(1, 3 * size)), data.draw(st.integers(1, 3))
    array = np.arange(n_rows * n_views * 2).reshape(n_rows, n_views, 2)
    shards = Shards([array[start : start + size] for start in range(0, n_rows, size)])
    rows = np.array(data.draw(st.lists(st.integers(0, n_rows - 1), max_size=20)), dtype=int)
    one_view = st.integers(0, n_views - 1)
    views = data.draw(st.one_of(one_view, st.lists(one_view, min_size=len(rows), max_size=len(rows)).map(np.array)))
    views = views.astype(int) if isinstance(views, np.ndarray) else views
    np.testing.assert_array_equal(shards.take(rows, views), array[rows, views])
    assert shards.shape == array.shape
    assert shards.nbytes == array.nbytes


# Encoding


@pytest.mark.parametrize("views", [1, 8])
def test_features_are_what_the_encoder_gives_for_each_view(encode, clip, views):
    dataset = patches()
    result = encode(clip, dataset, views=views)
    images = torch.stack([clip.resize(Image.fromarray(dataset.image(row))) for row in range(len(dataset))])
    assert result.pooled.shape == (10, views, 12)
    assert result.tokens.shape == (10, views, 16, 12)
    for view in range(views):
        pooled, tokens = clip.encode_images(view_of(images, view))
        np.testing.assert_allclose(everything(result.pooled)[:, view], pooled, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(everything(result.tokens)[:, view], tokens, rtol=2e-3, atol=1e-3)
    assert everything(result.pooled).dtype == np.float32
    assert everything(result.tokens).dtype == np.float16


def test_features_are_read_as_memory_maps(encode, clip):
    result = encode(clip, patches())
    assert [len(piece) for piece in result.pooled.pieces] == [4, 4, 2]
    assert all(isinstance(piece, np.memmap) for piece in result.pooled.pieces + result.tokens.pieces)


def test_what_is_in_the_result(encode, clip):
    result = encode(clip, patches(), views=2)
    assert (result.n_views, result.grid, result.encoded) == (2, 4, 10)
    assert result.of_kind("global") is result.pooled
    assert result.of_kind("patch") is result.tokens
    assert "10 patches in 2 views, 16 tokens of width 12" in result.about()
    assert "20 passes of the encoder, of which 20 in this notebook. One view would take 1/2" in result.about()
    one_view = encode(clip, patches())
    assert "in 1 view," in one_view.about()
    assert "would take" not in one_view.about()


def test_workers_keep_the_order(encode, clip, tmp_path):
    alone = encode(clip, patches(), cache=tmp_path / "alone")
    helped = encode(clip, patches(), cache=tmp_path / "helped", workers=2)
    np.testing.assert_array_equal(everything(alone.pooled), everything(helped.pooled))
    np.testing.assert_array_equal(everything(alone.tokens), everything(helped.tokens))


def test_the_environment_names_the_cache(encode, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "named"))
    encode(clip, patches(2), cache=None)
    assert len(list((tmp_path / "named" / "features").rglob("*.json"))) == 1


@pytest.mark.parametrize("which", ["pooled", "tokens"])
def test_features_that_are_not_finite_are_refused_and_not_kept(encode, clip, tmp_path, monkeypatch, which):
    encode_images = CLIP.encode_images

    def overflowing(self, images):
        pooled, tokens = encode_images(self, images)
        return (pooled / 0, tokens) if which == "pooled" else (pooled, tokens * 1e6)

    monkeypatch.setattr(CLIP, "encode_images", overflowing)
    with pytest.raises(HistoCLIPError, match="backbone tiny-vit: features are not finite"):
        encode(clip, patches(2))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# The cache


def test_a_second_run_encodes_nothing(encode, clip, passes):
    first = encode(clip, patches(), views=2)
    assert sum(passes) == 20
    passes.clear()
    second = encode(clip, patches(), views=2)
    assert passes == []
    assert second.encoded == 0
    np.testing.assert_array_equal(everything(first.tokens), everything(second.tokens))


def test_a_changed_image_encodes_its_shard_alone(encode, clip, passes, tmp_path):
    encode(clip, patches())
    passes.clear()
    dataset = patches(changed=5)
    result = encode(clip, dataset)
    assert sum(passes) == result.encoded == SHARD_SIZE
    expected = encode(clip, dataset, cache=tmp_path / "fresh")
    np.testing.assert_allclose(everything(result.pooled), everything(expected.pooled), rtol=1e-4, atol=1e-5)


def test_more_patches_encode_the_last_shard_and_the_new_ones(encode, clip):
    encode(clip, patches(10))
    images = np.concatenate([patches(10).source.images, patches(3, changed=[0, 1, 2]).source.images])
    longer = replace(patches(13), source=Pixels(images))
    assert encode(clip, longer).encoded == 5


def test_other_weights_views_or_precision_encode_anew_and_the_first_stay(encode, clip, passes):
    encode(clip, patches())
    for other, views in (
        (tiny_clip(seed=1), 1),
        (tiny_clip(quick_gelu=True), 1),
        (replace(clip, amp_dtype=torch.bfloat16), 1),
        (clip, 2),
    ):
        passes.clear()
        assert encode(other, patches(), views=views).encoded == 10
        assert sum(passes) == 10 * views
    passes.clear()
    encode(clip, patches())
    assert passes == []


def test_the_same_pixels_under_another_name_are_found(encode, clip):
    encode(clip, patches(name="one"))
    assert encode(clip, patches(name="other"), batch_size=2).encoded == 0


def test_an_interrupted_run_goes_on_with_what_is_missing(encode, clip, tmp_path, monkeypatch):
    expected = everything(encode(clip, patches(12), cache=tmp_path / "fresh").pooled)
    with monkeypatch.context() as patch:
        stop_after(patch, calls=3)  # batches of 3: nine patches are encoded, two shards of four are whole
        with pytest.raises(KeyboardInterrupt):
            encode(clip, patches(12), cache=tmp_path / "stopped")
    again = encode(clip, patches(12), cache=tmp_path / "stopped")
    assert again.encoded == 4
    np.testing.assert_allclose(everything(again.pooled), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stopped_at", [".pooled.npy", ".tokens.npy", ".json"])
def test_a_half_written_shard_is_never_read(encode, clip, tmp_path, monkeypatch, stopped_at):
    dataset = patches(SHARD_SIZE)
    expected = encode(clip, dataset, cache=tmp_path / "fresh")
    real_replace = features.os.replace

    def stop(source, target):
        if str(target).endswith(stopped_at):
            raise KeyboardInterrupt
        real_replace(source, target)

    cache = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            encode(clip, dataset, cache=cache)
    left = [path for path in cache.rglob("*") if path.is_file()]
    assert all(path.suffix == ".npy" and not path.name.startswith(".") for path in left)
    for path in left:  # what the broken run left may be anything
        path.write_bytes(b"half")
    result = encode(clip, dataset, cache=cache)
    assert result.encoded == SHARD_SIZE
    np.testing.assert_array_equal(everything(result.pooled), everything(expected.pooled))
    np.testing.assert_array_equal(everything(result.tokens), everything(expected.tokens))


def test_the_sidecar_says_what_the_shard_holds(encode, clip, tmp_path):
    encode(clip, patches(3), views=2)
    about = json.loads(next(tmp_path.rglob("*.json")).read_text())
    assert about == {
        "backbone": "tiny-vit",
        "pretrained": "",
        "dataset": "made",
        "pooled": [3, 2, 12],
        "tokens": [3, 2, 16, 12],
        "bytes": 3 * 2 * 12 * 4 + 3 * 2 * 16 * 12 * 2,
    }


def test_the_default_backbone_on_the_real_patches(lite0, encode, shared_data):
    paths = sorted((shared_data / "pannuke" / "images").glob("*.png"))[:5]
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    result = encode(lite0, replace(patches(5), source=Pixels(images)))
    assert (result.pooled.shape, result.tokens.shape, result.grid) == ((5, 1, 384), (5, 1, 49, 384), 7)
    pooled, tokens = result.pooled.take(np.arange(5)), result.tokens.take(np.arange(5))
    np.testing.assert_allclose(tokens.mean(axis=1, dtype=np.float32), pooled, atol=0.01 * np.abs(pooled).max())
