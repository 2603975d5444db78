"""Small random CLIPs of every kind of image tower, for tests."""

import json
from functools import cache
from pathlib import Path

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file

from histoclip_lib.clip.encoder import CLIP

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
# Each kind: the configuration of the image tower and the side of the grid of tokens.
TOWERS = {
    "vit": (VIT, 4),
    "vit_average_pool": (VIT | {"pool_type": "avg", "final_ln_after_pool": True}, 4),
    "coca_vit": (VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5}, 4),
    "resnet": ({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}, 2),
    "timm_vit": ({"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}, 10),
    "timm_vit_average_pool": (
        {"timm_model_name": "test_vit2", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
        4,
    ),
    "timm_vit_attention_pool": (
        {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        10,
    ),
    "timm_cnn": ({"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "mlp", "image_size": 64}, 2),
    "timm_channels_last": (
        {
            "timm_model_name": "swin_tiny_patch4_window7_224",
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 224,
        },
        7,
    ),
}


def config(kind: str = "vit") -> dict:
    embed_dim = 96 if kind == "timm_vit_attention_pool" else 12
    return {"embed_dim": embed_dim, "vision_cfg": dict(TOWERS[kind][0]), "text_cfg": dict(TEXT)}


def tiny_model(kind: str = "vit", seed: int = 0, **changes) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config(kind), **changes)
        for parameter in model.visual.parameters():  # no norm or bias is left at one or zero
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def tiny_clip(kind: str = "vit", seed: int = 0, **changes) -> CLIP:
    size = TOWERS[kind][0]["image_size"]
    return CLIP(
        model=tiny_model(kind, seed, **changes),
        tokenizer=open_clip.get_tokenizer("ViT-B-32"),
        preprocess_cfg=PreprocessCfg(size=size),
        backbone=f"tiny-{kind}",
        pretrained="",
        device=torch.device("cpu"),
        amp_dtype=None,
    )


@cache
def clip_of(kind: str) -> CLIP:
    return tiny_clip(kind)


def images_for(kind: str, batch: int = 3) -> torch.Tensor:
    size = TOWERS[kind][0]["image_size"]
    return pixels(batch, size)


def pixels(batch: int, size: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def save_local_dir(folder: Path, model: torch.nn.Module, **preprocess) -> str:
    """Write a tiny ViT as open_clip's `local-dir:` wants it, and return its name."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_cfg": config(), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
