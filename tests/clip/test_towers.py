"""Image towers: pooled features are open_clip's, tokens are projected as the tower projects one cell, ONNX agrees."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from tiny_clip import TOWERS, clip_of, images_for, pixels, tiny_clip
from torch.nn import functional

from histoclip_lib.clip import towers
from histoclip_lib.clip.towers import corrected_tokens, image_features, onnx_tower
from histoclip_lib.common.errors import HistoCLIPError

KINDS = list(TOWERS)


def visual_and_tokens(kind):
    clip, images = clip_of(kind), images_for(kind)
    return clip.model.visual, clip.tower.normalize(images), clip.encode_images(images)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_features_are_open_clips(kind):
    clip, images = clip_of(kind), images_for(kind)
    pooled, _ = clip.encode_images(images)
    with torch.inference_mode():
        expected = clip.model.encode_image(clip.tower.normalize(images), normalize=False)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    assert pooled.dtype == torch.float32
    assert not torch.allclose(pooled.norm(dim=1), torch.ones(3), atol=0.01)


def test_pooled_features_of_the_default_are_open_clips(lite0):
    images = pixels(2, 224)
    with torch.inference_mode():
        expected = lite0.model.encode_image(lite0.tower.normalize(images), normalize=False)
    torch.testing.assert_close(lite0.encode_images(images)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_one_token_of_the_joint_width_for_each_cell_of_the_grid(kind):
    pooled, tokens = clip_of(kind).encode_images(images_for(kind))
    assert tokens.shape == (3, TOWERS[kind][1] ** 2, pooled.shape[1])
    assert tokens.dtype == torch.float32
    assert tokens.std(dim=1).min() > 1e-3  # the cells differ


def test_default_gives_7_by_7_tokens(lite0):
    pooled, tokens = lite0.encode_images(pixels(1, 224))
    assert (pooled.shape, tokens.shape) == ((1, 384), (1, 49, 384))


def test_mean_of_tokens_is_the_pooled_feature_for_average_pooled_cnns(lite0):
    images = pixels(2, 224, seed=2)
    for clip in (lite0, clip_of("timm_channels_last")):
        pooled, tokens = clip.encode_images(images)
        torch.testing.assert_close(tokens.mean(dim=1), pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "vit_average_pool"])
@torch.inference_mode()
def test_vit_tokens_are_ln_post_then_proj(kind):
    visual, images, tokens = visual_and_tokens(kind)
    hidden = visual.transformer(visual._embeds(images))[:, 1:]
    torch.testing.assert_close(tokens, visual.ln_post(hidden) @ visual.proj, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "prefix"), [("timm_vit", 1), ("timm_vit_average_pool", 1)])
@torch.inference_mode()
def test_timm_vit_tokens_are_final_norm_then_head(kind, prefix):
    visual, images, tokens = visual_and_tokens(kind)
    trunk = visual.trunk
    assert trunk.num_prefix_tokens == prefix
    hidden = trunk.forward_features(images)[:, prefix:]
    torch.testing.assert_close(tokens, visual.head(trunk.fc_norm(hidden)), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_tokens_under_attention_pooling_are_its_answer_to_one_token():
    visual, images, tokens = visual_and_tokens("timm_vit_attention_pool")
    hidden = visual.trunk.forward_features(images)[:, visual.trunk.num_prefix_tokens :]
    alone = visual.trunk.attn_pool(hidden.reshape(-1, 1, hidden.shape[-1]))
    torch.testing.assert_close(tokens, visual.trunk.fc_norm(alone).reshape(tokens.shape), rtol=1e-4, atol=1e-5)

    visual, images, tokens = visual_and_tokens("coca_vit")
    hidden = visual.transformer(visual._embeds(images))[:, 1:]
    alone = visual.ln_post(visual.attn_pool(hidden.reshape(-1, 1, hidden.shape[-1])))[:, 0] @ visual.proj
    torch.testing.assert_close(tokens, alone.reshape(tokens.shape), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_resnet_tokens_are_the_value_path_of_its_attention_pool():
    visual, images, tokens = visual_and_tokens("resnet")
    pool = visual.attnpool
    cells = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))).flatten(2)
    keys = cells.permute(2, 0, 1).reshape(1, -1, cells.shape[1])  # a sequence of one: its softmax is 1
    alone, _ = functional.multi_head_attention_forward(
        *(keys,) * 3,
        embed_dim_to_check=keys.shape[-1],
        num_heads=pool.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        training=False,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    expected = alone[0].reshape(cells.shape[2], cells.shape[0], -1).transpose(0, 1)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_cnn_tokens_lie_row_by_row():
    visual, images, tokens = visual_and_tokens("timm_cnn")
    feature_map = visual.trunk.forward_features(images)  # (B, C, 2, 2)
    for row in range(2):
        for column in range(2):
            expected = visual.head(feature_map[:, :, row, column])
            torch.testing.assert_close(tokens[:, 2 * row + column], expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_corrected_tokens_are_self_self_attention_without_residual_and_feed_forward():
    """ClearCLIP head by head, with nothing of the block but its norm, its attention's projections and their biases."""
    visual = clip_of("vit").model.visual
    images = torch.randn(2, 3, 32, 32)
    hidden = visual._embeds(images)
    for block in visual.transformer.resblocks[:-1]:
        hidden = block(hidden)
    block = visual.transformer.resblocks[-1]
    projected = functional.linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias)
    query, _, value = projected.chunk(3, dim=-1)
    heads = []
    for q, v in zip(query.split(8, dim=-1), value.split(8, dim=-1), strict=True):
        heads.append((q @ q.transpose(1, 2) / 8**0.5).softmax(dim=-1) @ v)
    expected = visual.ln_post(block.attn.out_proj(torch.cat(heads, dim=-1)))[:, 1:] @ visual.proj
    torch.testing.assert_close(corrected_tokens(visual, images), expected, rtol=1e-4, atol=1e-5)
    assert corrected_tokens(clip_of("resnet").model.visual, torch.randn(1, 3, 64, 64)) is None


def test_towers_without_patch_tokens_are_refused():
    with pytest.raises(HistoCLIPError, match="type Linear give no patch tokens"):
        image_features(torch.nn.Linear(3, 3), torch.zeros(1, 3))


# Through ONNX Runtime

SIZE = (64, 64)


@pytest.fixture(scope="module")
def tower():
    return tiny_clip("timm_cnn").tower


@pytest.fixture(scope="module")
def cache(tower, tmp_path_factory):
    """A cache with the exported tower."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    cache = tmp_path_factory.mktemp("cache")
    assert onnx_tower(tower, SIZE, cache / "onnx") is not None
    return cache


@pytest.fixture
def folder(cache):
    return cache / "onnx"


@pytest.fixture
def no_export(monkeypatch):
    monkeypatch.setattr(towers, "_export", lambda *arguments: pytest.fail("exported again"))


def eager(tower, images):
    with torch.inference_mode():
        return tower(images)


def assert_near(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() < 1e-4 * other.norm()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_features_are_those_of_pytorch(tower, folder, batch):
    images = pixels(batch, SIZE[0])
    assert_near(onnx_tower(tower, SIZE, folder)(images), eager(tower, images))


def test_features_do_not_depend_on_the_rest_of_the_batch(tower, folder):
    images, run = pixels(5, SIZE[0]), onnx_tower(tower, SIZE, folder)
    for whole, *parts in zip(run(images), run(images[:2]), run(images[2:]), strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_default_backbone_has_the_features_of_pytorch(lite0):
    images = pixels(3, 224)
    assert lite0.fast_tower is not None
    assert_near(lite0.fast_tower(images), eager(lite0.tower, images))


def test_layout_of_the_images_does_not_matter(tower, folder):
    images = pixels(2, SIZE[0])
    run = onnx_tower(tower, SIZE, folder)
    for one, other in zip(run(images), run(images.contiguous(memory_format=torch.channels_last)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("no_export")
def test_cached_tower_is_not_exported_again(tower, folder):
    assert onnx_tower(tower, SIZE, folder) is not None


@pytest.mark.usefixtures("no_export")
def test_clip_encodes_through_the_cached_tower(tower, cache, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(cache))
    clip, images = tiny_clip("timm_cnn"), pixels(3, SIZE[0])
    assert clip.fast_tower is not None
    assert_near(clip.encode_images(images), eager(tower, images))


def test_name_of_an_exported_tower_follows_its_weights_and_size(tower):
    names = {
        towers._digest(tower, SIZE),
        towers._digest(tower, (32, 32)),
        towers._digest(tiny_clip("timm_cnn", 1).tower, SIZE),
    }
    assert len(names) == 3
    assert towers._digest(tiny_clip("timm_cnn").tower, SIZE) in names


def test_damaged_file_is_exported_again(tower, folder, tmp_path):
    name = f"{towers._digest(tower, SIZE)}.onnx"
    (tmp_path / name).write_bytes((folder / name).read_bytes()[:1000])
    images = pixels(2, SIZE[0])
    assert_near(onnx_tower(tower, SIZE, tmp_path)(images), eager(tower, images))
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.usefixtures("no_export")
def test_file_of_another_tower_under_this_name_is_rejected(tower, folder, tmp_path):
    other = tiny_clip("timm_cnn", seed=2).tower
    exported = (folder / f"{towers._digest(tower, SIZE)}.onnx").read_bytes()
    (tmp_path / f"{towers._digest(other, SIZE)}.onnx").write_bytes(exported)
    assert onnx_tower(other, SIZE, tmp_path) is None


def test_pytorch_is_used_without_onnx_runtime(tower, folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert onnx_tower(tower, SIZE, folder) is None


def test_pytorch_is_used_where_the_export_fails(tower, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(towers, "_export", fail)
    assert onnx_tower(tower, SIZE, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm_vit", "timm_channels_last"])
def test_only_convolutional_towers_of_timm_are_exported(kind):
    assert clip_of(kind).fast_tower is None


def test_reduced_precision_is_left_to_pytorch():
    assert replace(clip_of("timm_cnn"), amp_dtype=torch.bfloat16).fast_tower is None
