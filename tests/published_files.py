"""Small models with random weights, written as the publishers of pathology models write theirs.

Names of tensors, configurations and tokenizers are those of the releases, and so are the sizes of images and patches;
widths, depths and vocabularies are small.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional

from histoclip_lib.clip.encoder import CLIP

SENTENCES = [
    "an H&E image of breast invasive carcinoma.",
    "lymphocytes in the tumor stroma",
    "normal tissue of the lung, with no tumor",
    "A Photo of a GLAND",
]


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a tensor for each name; norms are near one, so that no layer dominates."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) >= 2 and "embed" not in name and "query" not in name:
            noise = noise / math.sqrt(math.prod(shape[1:]))
        else:
            noise = 0.3 * noise
        weights[name] = noise + (len(shape) == 1 and name.endswith("weight"))
    return weights


def save(folder: Path, weights: dict[str, torch.Tensor], name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if name.endswith(".safetensors"):
        save_file({key: value.clone().contiguous() for key, value in weights.items()}, path)
    else:
        torch.save(weights, path)
    return path


def save_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values))


def write_bpe_tokenizer(path: Path, vocabulary: int) -> None:
    """Write a byte-level BPE without capitals, with CONCH's special tokens."""
    special = ["<pad>", "<start_of_text>", "<end_of_text>", "<|person|>", "<|mrn|>", "<|specimen_id|>", "<|date|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start_of_text> $A <end_of_text>",
        special_tokens=[("<start_of_text>", 1), ("<end_of_text>", 2)],
    )
    tokenizer.save(str(path))


def token_that_changes_most(clip: CLIP, row: int, column: int, patch: int) -> int:
    """Return the index of the token that changes most when the pixels of one patch are inverted."""
    side = clip.preprocess_cfg.size if isinstance(clip.preprocess_cfg.size, int) else clip.preprocess_cfg.size[0]
    images = torch.randint(256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    other = images.clone()
    area = (..., slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch))
    other[area] = 255 - other[area]
    change = clip.encode_images(images)[1] - clip.encode_images(other)[1]
    return int(change[0].norm(dim=-1).argmax())


# Plain forward passes, for reference


def norm(hidden: torch.Tensor, weights: dict, name: str, eps: float) -> torch.Tensor:
    weight = weights[f"{name}.weight"]
    return functional.layer_norm(hidden, weight.shape, weight, weights[f"{name}.bias"], eps)


def linear(hidden: torch.Tensor, weights: dict, name: str) -> torch.Tensor:
    return hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attention(query, key, value, heads: int, mask: torch.Tensor | float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """From (B, N, w), (B, M, w) and (B, M, w) to the sums (B, N, w) and the attention (B, heads, N, M)."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    shares = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + mask).softmax(dim=-1)
    return (shares @ value).transpose(1, 2).flatten(2), shares


def vit(weights: dict, images: torch.Tensor, heads: int, patch: int, prefix: str = "", eps: float = 1e-6):
    """Return the tokens (B, 1 + L, w) of a ViT under timm's names, behind the final norm."""
    patches = functional.conv2d(
        images, weights[f"{prefix}patch_embed.proj.weight"], weights[f"{prefix}patch_embed.proj.bias"], stride=patch
    )
    hidden = patches.flatten(2).transpose(1, 2)
    first = weights[f"{prefix}cls_token"].expand(len(images), -1, -1)
    hidden = torch.cat([first, hidden], dim=1) + weights[f"{prefix}pos_embed"]
    layer = 0
    while f"{prefix}blocks.{layer}.norm1.weight" in weights:
        block = f"{prefix}blocks.{layer}."
        parts = linear(norm(hidden, weights, f"{block}norm1", eps), weights, f"{block}attn.qkv").chunk(3, dim=-1)
        hidden = hidden + linear(attention(*parts, heads)[0], weights, f"{block}attn.proj")
        inner = functional.gelu(linear(norm(hidden, weights, f"{block}norm2", eps), weights, f"{block}mlp.fc1"))
        hidden = hidden + linear(inner, weights, f"{block}mlp.fc2")
        layer += 1
    return norm(hidden, weights, f"{prefix}norm", eps)


def vit_shapes(prefix: str, width: int, layers: int, patch: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a ViT's parameters under timm's names."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for layer in range(layers):
        for name, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"blocks.{layer}.{name}.weight"] = (out, into)
            shapes[f"blocks.{layer}.{name}.bias"] = (out,)
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{layer}.{name}.weight"] = shapes[f"blocks.{layer}.{name}.bias"] = (width,)
    return {prefix + name: shape for name, shape in shapes.items()}
