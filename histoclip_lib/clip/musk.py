"""MUSK (Xiang et al., Nature 2025): a BEiT-3 large for pathology images and text.

A BEiT-3 is one transformer with two sets of weights in each layer, A for images and B for text, and a norm inside the
attention and the feed-forward network (sub-LN). An image alone meets only A and a prompt alone only B, so the two are
set up as towers of their own from timm's blocks, and the published weights are sorted into them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

from histoclip_lib.clip.registry import ENCODERS, encoder
from histoclip_lib.common.errors import HistoCLIPError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from tokenizers import Tokenizer
    from torch import nn

NAME = "musk"
MEAN = STD = (0.5, 0.5, 0.5)
PADDING = 1
FIRST_POSITION = 2  # fairseq's custom: the first two rows of a table of positions are never used
UNUSED = {"beit3.vision_embed.mask_token"}
NAMES = {  # of a layer, in timm and in torchscale, whose X is the branch
    "norm1": "self_attn_layer_norm.X",
    "attn.norm": "self_attn.inner_attn_ln.X",
    "attn.proj": "self_attn.out_proj.X",
    "norm2": "final_layer_norm.X",
    "mlp.fc1": "ffn.X.fc1",
    "mlp.norm": "ffn.X.ffn_layernorm",
    "mlp.fc2": "ffn.X.fc2",
}


@dataclass(frozen=True)
class Sizes:
    """The hyperparameters of the published model."""

    image: int = 384
    patch: int = 16
    width: int = 1024
    layers: int = 24
    heads: int = 16
    vocabulary: int = 64010
    positions: int = 1024
    prompt: int = 100  # tokens


SIZES = Sizes()


def build(sizes: Sizes) -> nn.Module:
    """Return the two towers with random weights."""
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    from histoclip_lib.clip.text_towers import BlocksText, Towers
    from histoclip_lib.clip.towers import ClassTokenViT

    def branch() -> VisionTransformer:
        return VisionTransformer(
            img_size=sizes.image,
            patch_size=sizes.patch,
            embed_dim=sizes.width,
            depth=sizes.layers,
            num_heads=sizes.heads,
            num_classes=0,
            scale_attn_norm=True,
            scale_mlp_norm=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
        )

    image, text = branch(), branch()  # of the second, only the blocks and the norm are kept
    heads = [nn.Linear(sizes.width, sizes.width, bias=False) for _ in range(2)]
    positions = sizes.positions - FIRST_POSITION
    return Towers(
        ClassTokenViT(image, heads[0]),
        BlocksText(sizes.vocabulary, positions, text.blocks, text.norm, heads[1], PADDING),
    )


def towers_of(weights: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Sort the published weights into the two towers of `build`.

    Parameters
    ----------
    weights : dict of str to tensor
        Under the names of torchscale's BEiT-3.
    layers : int

    Raises
    ------
    KeyError
        If one is missing.
    ValueError
        If some have no place.
    """
    import torch

    left = dict(weights)
    found = {
        "visual.trunk.cls_token": left.pop("beit3.vision_embed.cls_token"),
        "visual.trunk.pos_embed": left.pop("beit3.encoder.embed_positions.A.weight")[None, FIRST_POSITION:],
        "visual.head.weight": left.pop("vision_head.weight"),
        "text.embedding.weight": left.pop("beit3.text_embed.weight"),
        "text.positions.weight": left.pop("beit3.encoder.embed_positions.B.weight")[FIRST_POSITION:],
        "text.head.weight": left.pop("language_head.weight"),
        "logit_scale": left.pop("logit_scale"),
    }
    for kind in ("weight", "bias"):
        found[f"visual.trunk.patch_embed.proj.{kind}"] = left.pop(f"beit3.vision_embed.proj.{kind}")
        for tower, branch in (("visual.trunk.", "A"), ("text.", "B")):
            found[f"{tower}norm.{kind}"] = left.pop(f"beit3.encoder.layer_norm.{branch}.{kind}")
            for layer in range(layers):
                here, there = f"{tower}blocks.{layer}.", f"beit3.encoder.layers.{layer}."
                for ours, theirs in NAMES.items():
                    found[f"{here}{ours}.{kind}"] = left.pop(f"{there}{theirs.replace('X', branch)}.{kind}")
                parts = [left.pop(f"{there}self_attn.{part}_proj.{branch}.{kind}") for part in "qkv"]
                found[f"{here}attn.qkv.{kind}"] = torch.cat(parts)
    if surplus := sorted(left.keys() - UNUSED):
        raise ValueError(f"{len(surplus)} weights without a place, such as {surplus[0]}")
    return found


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a SentencePiece model as XLM-RoBERTa does: four special tokens, then its pieces from the fourth on.

    Raises
    ------
    HistoCLIPError
        If the file is none, or protobuf, which reads it, is not installed.
    """
    from transformers.convert_slow_tokenizer import XLMRobertaConverter

    special = {"<s>": 0, "</s>": 2}
    try:
        return XLMRobertaConverter(
            SimpleNamespace(vocab_file=str(path), convert_tokens_to_ids=special.__getitem__)
        ).converted()
    except ImportError as error:
        raise HistoCLIPError(f"backbone {NAME}: protobuf, which reads {path}, is missing. pip install protobuf") from (
            error
        )
    except Exception as error:  # protobuf and tokenizers raise their own kinds
        raise HistoCLIPError(
            f"{path}: this is not the tokenizer of MUSK ({type(error).__name__}: {str(error)[:200]}). Fetch the file "
            "again."
        ) from error


@encoder(
    NAME,
    title="MUSK",
    licence="CC BY-NC-ND 4.0",
    hub="xiangjx/musk",
    files=("model.safetensors", "tokenizer.spm"),
    gated=True,
    image_size=SIZES.image,
    patch_px=384,
    mpp=(0.5,),
    mean=MEAN,
    std=STD,
    templates="pathology",
    tcga="yes",
    tcga_source="Xiang et al., Nature 2025: 50 million images of 11,577 patients with 33 kinds of tumor",
    pretraining="50 million images of 11,577 patients with 33 kinds of tumor and a billion tokens of text, then a "
    "million images with captions. **The images are those of TCGA.** No scale is published; 0.5 micrometres per pixel "
    "is the custom of the field.",
    token_shape=lambda backbone, pretrained: ((SIZES.image // SIZES.patch) ** 2, SIZES.width),
)
def load(backbone: str, pretrained: str) -> tuple:
    """Load MUSK; patch tokens go through the image head as the class token does.

    Raises
    ------
    HistoCLIPError
        If a file cannot be had or does not hold the weights of MUSK.
    """
    from open_clip.transform import PreprocessCfg

    from histoclip_lib.clip.checkpoints import fill, read_weights
    from histoclip_lib.clip.text_towers import fixed_length
    from histoclip_lib.clip.weights import encoder_files

    weights, tokenizer = encoder_files(ENCODERS[NAME], pretrained)
    model = build(SIZES)
    try:
        state = towers_of(read_weights(weights), SIZES.layers)
    except (KeyError, ValueError) as error:
        raise HistoCLIPError(
            f"{weights}: these are not the weights of MUSK ({type(error).__name__}: {error}). Use the file that the "
            "publisher gives."
        ) from error
    fill(model, state, weights)
    tokenize = fixed_length(read_tokenizer(tokenizer), SIZES.prompt, "<pad>")
    return model, tokenize, PreprocessCfg(size=SIZES.image, mean=MEAN, std=STD)
