"""Models of images alone from their published files: features of timm's and transformers' own models."""

import json
from dataclasses import replace

import published_files as files
import pytest
import timm
import tiny_clip
import torch
from timm.layers import SwiGLUPacked
from torch import nn
from transformers import AutoModel, Dinov2Config, Dinov2Model

from histoclip_lib.clip import vision_only
from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.clip.registry import ENCODERS
from histoclip_lib.common.errors import HistoCLIPError

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
# Of each: the architecture and arguments of its config.json, what its model card passes beside them, its patch, its
# class and register tokens, its attention heads and its number of parameters.
CARDS = {
    "uni": ("vit_large_patch16_224", {}, {"init_values": 1e-5, "dynamic_img_size": True}, 16, 1, 16, 303_350_784),
    "uni2-h": (
        "vit_giant_patch14_224",
        {},
        {
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "num_classes": 0,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **SWIGLU,
        },
        14,
        9,
        24,
        681_394_176,
    ),
    "virchow2": (
        "vit_huge_patch14_224",
        {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "global_pool": ""},
        SWIGLU,
        14,
        5,
        16,
        631_239_424,
    ),
    "h-optimus-0": (
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224, "global_pool": "token"},
        {"init_values": 1e-5, "dynamic_img_size": False},
        14,
        5,
        24,
        1_134_774_272,
    ),
    "h-optimus-1": (
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224, "global_pool": "token"},
        {"init_values": 1e-5, "dynamic_img_size": False},
        14,
        5,
        24,
        1_134_774_272,
    ),
    "prov-gigapath": (
        "vit_giant_patch14_dinov2",
        {
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
        },
        {},
        16,
        1,
        24,
        1_134_953_984,
    ),
}
NAMES = [*CARDS, "phikon-v2"]


def write(name, folder):
    """Write a small model as its publisher does, and return how it is loaded by timm: the reference."""
    architecture, arguments, passed, *_ = CARDS[name]
    model = timm.create_model(
        architecture, num_classes=0, **(arguments | {k: v for k, v in passed.items() if k != "num_classes"} | SMALL)
    )
    weights = files.random_weights({key: tuple(value.shape) for key, value in model.state_dict().items()})
    files.save(folder, weights, ENCODERS[name].files[0].split("|")[-1])  # pytorch_model.bin
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": SMALL["embed_dim"],
        "model_args": arguments | SMALL,
        "pretrained_cfg": {"input_size": [3, 224, 224], "num_classes": 0},
    }
    files.save_json(folder / "config.json", config)
    reference = {key: value for key, value in passed.items() if key not in SMALL}
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **reference).eval().requires_grad_(False)


def write_phikon(folder):
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=16, mlp_ratio=4
    )
    model = Dinov2Model(config).eval().requires_grad_(False)
    weights = files.random_weights({key: tuple(value.shape) for key, value in model.state_dict().items()})
    model.load_state_dict(weights)
    names = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    published = {}
    for key, value in weights.items():
        for new, old in names.items():
            key = key.replace(f"attention.{new}", f"attention.{old}")
        published[key] = value
    files.save(folder, published, "model.safetensors")
    config.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    files.save_json(folder / "config.json", values | {"architectures": ["Dinov2Model"]})
    assert "encoder.layer.0.attention.attention.query.weight" in published
    return AutoModel.from_pretrained(folder).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=NAMES)
def loaded(request, tmp_path_factory):
    """The encoder by its name, from the files of its publisher, and the publisher's way to load them."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    if name == "phikon-v2":
        return name, load_clip(name, _written(write_phikon, folder), device="cpu"), write_phikon(folder)
    reference = write(name, folder)
    tower = vision_only.TOWERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vision_only.TOWERS, name, replace(tower, arguments=tower.arguments | SMALL))
        return name, load_clip(name, str(folder), device="cpu"), reference


def _written(function, folder):
    function(folder)
    return str(folder)


@torch.inference_mode()
def test_features_are_those_of_the_publisher_s_way(loaded):
    name, clip, reference = loaded
    images = tiny_clip.pixels(2, 224)
    pooled, tokens = clip.encode_images(images)
    entry = ENCODERS[name]
    normal = (images / 255 - torch.tensor(entry.mean)[:, None, None]) / torch.tensor(entry.std)[:, None, None]
    if name == "phikon-v2":
        hidden = reference(normal).last_hidden_state
        expected, patches = hidden[:, 0], hidden[:, 1:]
    elif name == "virchow2":
        hidden = reference(normal)
        patches = hidden[:, 5:]
        expected, patches = (
            torch.cat([hidden[:, 0], patches.mean(dim=1)], dim=-1),
            torch.cat([patches, patches], dim=-1),
        )
        torch.testing.assert_close(tokens.mean(dim=1)[:, 32:], pooled[:, 32:], rtol=1e-4, atol=1e-5)
    else:
        expected, patches = reference(normal), reference.forward_features(normal)[:, CARDS[name][4] :]
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens, patches, rtol=1e-4, atol=1e-5)


def test_patch_tokens_lie_row_by_row_from_the_top_left_without_class_and_register_tokens(loaded):
    name, clip, _ = loaded
    patch = 16 if name == "phikon-v2" else CARDS[name][3]
    grid = 224 // patch
    assert files.token_that_changes_most(clip, row=0, column=0, patch=patch) == 0
    assert files.token_that_changes_most(clip, row=3, column=grid - 1, patch=patch) == 4 * grid - 1
    assert clip.encode_images(tiny_clip.pixels(1, 224))[1].shape[1] == grid**2


def test_models_of_images_alone_say_that_they_read_no_prompt(loaded):
    _, clip, _ = loaded
    assert not clip.entry.has_text
    assert "no text tower" in clip.about()
    with pytest.raises(HistoCLIPError, match="encodes images alone: it has no text tower for prompts"):
        clip.encode_text(["tumor"])


@pytest.mark.parametrize("name", CARDS)
def test_published_sizes(name):
    with torch.device("meta"):
        tower = vision_only.build(vision_only.TOWERS[name])
    assert sum(parameter.numel() for parameter in tower.parameters()) == CARDS[name][6]
    assert tower.trunk.blocks[0].attn.num_heads == CARDS[name][5]
    width = tower.trunk.num_features * (2 if tower.with_mean else 1)
    assert ENCODERS[name].token_shape(name, "") == (tower.trunk.patch_embed.num_patches, width)
    assert tower.trunk.num_prefix_tokens == CARDS[name][4]


def test_weights_of_another_model_are_refused(tmp_path, monkeypatch):
    write("h-optimus-0", tmp_path)
    tower = vision_only.TOWERS["uni2-h"]
    monkeypatch.setitem(vision_only.TOWERS, "uni2-h", replace(tower, arguments=tower.arguments | SMALL))
    with pytest.raises(
        HistoCLIPError, match=r"(?s)pytorch_model.bin: these are not the weights of this model.*reg_token"
    ):
        load_clip("uni2-h", str(tmp_path), device="cpu")
