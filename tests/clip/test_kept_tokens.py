"""Which tokens are kept, and that half precision decides as full precision does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_clip import clip_of, images_for, tiny_clip

from histoclip_lib.clip.availability import feature_bytes
from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.registry import load_dataset
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models.training import TrainingOptions, new_head, predict, random_queries, train_head


def test_tokens_are_averaged_on_a_smaller_grid():
    clip = clip_of("vit")
    pooled, tokens = clip.encode_images(images_for("vit"))
    again, small = replace(clip, token_grid=2).encode_images(images_for("vit"))
    assert torch.equal(pooled, again)
    corner = tokens.unflatten(1, (4, 4))[:, :2, 2:].mean(dim=(1, 2))  # the second cell, top right
    torch.testing.assert_close(small[:, 1], corner)
    assert torch.equal(replace(clip, token_grid=9).encode_images(images_for("vit"))[1], tokens)


def test_without_tokens_the_pooled_embedding_stands_in_and_the_cache_is_small(tmp_path, write_folder):
    patches = load_dataset("folder", write_folder(tmp_path / "data", {"a": [0, 1, 1]}))
    clip = replace(tiny_clip(), tokens="none")
    features = encode_dataset(clip, patches, 2, workers=0, cache=tmp_path, progress=False)
    assert features.tokens.shape == (3, 2, 1, 12)
    np.testing.assert_allclose(features.tokens.take([0])[:, 0], features.pooled.take([0]), rtol=1e-3, atol=1e-3)
    assert features.pooled.nbytes + features.tokens.nbytes == feature_bytes(3, 2, (1, 12))


def test_each_choice_of_tokens_has_features_of_its_own():
    clip = tiny_clip()
    kinds = [
        clip,
        *(replace(clip, **change) for change in ({"tokens": "none"}, {"token_grid": 2}, {"match_mpp": True})),
    ]
    assert len({one.fingerprint() for one in kinds}) == 4
    for wrong in ({"tokens": "some"}, {"token_grid": -1}):
        with pytest.raises(HistoCLIPError, match=next(iter(wrong))):
            load_clip(device="cpu", **wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decides_as_full_precision_on_999_of_1000_labels(tmp_path, dtype):
    """Features of 400 images whose labels are their colours; the head is trained on those of full precision."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, (400, 3)).astype(np.uint8)
    noise = draw.integers(0, 120, (400, 3, 32, 32))
    images = torch.from_numpy(np.clip(noise + 120 * labels[:, :, None, None], 0, 255).astype(np.uint8))
    head, exact = None, None
    for clip in (tiny_clip(), replace(tiny_clip(), amp_dtype=dtype)):
        pooled, tokens = clip.encode_images(images)
        found = features_in_memory(pooled, tokens)
        if head is None:
            train = np.arange(400)
            head = new_head(random_queries(3, 12, 0), {"heads": 2, "dropout": 0.0}, found.tokens, train, 0)
            options = TrainingOptions(epochs=25, warmup_epochs=2, batch_size=50)
            reader = FeatureReader(found.tokens, torch.device("cpu"))
            train_head(head, reader, labels, train, train[:0], options, progress=False)
        decisions = predict(head, found, "patch", np.arange(400), torch.device("cpu")).decisions
        exact = decisions if exact is None else exact
    assert (exact == labels).mean() > 0.95  # the decisions mean something
    assert (decisions == exact).mean() >= 0.999


def features_in_memory(pooled, tokens):
    from histoclip_lib.features.store import ImageFeatures, Shards

    def pieces(values):
        return Shards([values[start : start + 256].numpy() for start in range(0, len(values), 256)])

    return ImageFeatures(pieces(pooled[:, None]), pieces(tokens[:, None].half()), 0)
