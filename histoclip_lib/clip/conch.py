"""CONCH v1 (Lu et al., Nature Medicine 2024): a CoCa for histopathology; its contrastive half, without the decoder.

The image tower is a ViT-B/16 at 448 pixels, whose 785 tokens, the class token among them, are pooled by attention: one
learned query asks them, and a norm and a projection follow. The text tower is CoCa's, with a class token at the end of
the prompt. Both are put together from parts of timm and open_clip under the names of the published file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from histoclip_lib.clip.registry import ENCODERS, OPENAI, encoder
from histoclip_lib.common.errors import HistoCLIPError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

NAME = "conch"
WEIGHTS, TOKENIZER = "pytorch_model.bin", "conch_byte_level_bpe_uncased.json"
UNUSED = ("visual.attn_pool_caption.", "visual.ln_caption.", "text_decoder.")  # of the captioner


@dataclass(frozen=True)
class Sizes:
    """The hyperparameters of the published model."""

    image: int = 448
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    joint: int = 512
    pooler_heads: int = 8
    vocabulary: int = 32007
    prompt: int = 127  # tokens; the class token is the 128th
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12


SIZES = Sizes()


def build(sizes: Sizes) -> nn.Module:
    """Return the two towers with random weights; their parameters have the names of the published file."""
    from open_clip.transformer import TextTransformer
    from timm.models.vision_transformer import VisionTransformer

    from histoclip_lib.clip.text_towers import Towers
    from histoclip_lib.clip.towers import AttentionPooledViT

    text = TextTransformer(
        context_length=sizes.prompt,
        vocab_size=sizes.vocabulary,
        width=sizes.text_width,
        heads=sizes.text_heads,
        layers=sizes.text_layers,
        output_dim=sizes.joint,
        embed_cls=True,
    )
    trunk = VisionTransformer(
        img_size=sizes.image,
        patch_size=sizes.patch,
        embed_dim=sizes.width,
        depth=sizes.layers,
        num_heads=sizes.heads,
        num_classes=0,
    )
    return Towers(AttentionPooledViT(trunk, sizes.joint, sizes.pooler_heads), text)


@encoder(
    NAME,
    title="CONCH v1",
    licence="CC BY-NC-ND 4.0",
    hub="MahmoodLab/CONCH",
    files=(WEIGHTS, TOKENIZER),
    gated=True,
    image_size=SIZES.image,
    patch_px=448,
    mpp=(0.5,),
    **OPENAI,
    templates="pathology",
    tcga="no",
    tcga_source="README of github.com/mahmoodlab/CONCH: no TCGA, PAIP or GTEx slides in its pretraining",
    pretraining="1.17 million histopathology images with captions, from publications and teaching material. **No TCGA "
    "slides, say its authors.** They give no scale; 0.5 micrometres per pixel is the custom of the field.",
    token_shape=lambda backbone, pretrained: ((SIZES.image // SIZES.patch) ** 2, SIZES.joint),
)
def load(backbone: str, pretrained: str) -> tuple:
    """Load CONCH v1.

    A patch token in the joint space is what the pooler would make of this token alone: its value path, the norm and the
    projection. Before the norm, which is not linear, the tokens weighted by the attention of each head add up to the
    pooled embedding.

    Raises
    ------
    HistoCLIPError
        If a file cannot be had or does not hold the weights of CONCH v1.
    """
    from open_clip.transform import PreprocessCfg
    from tokenizers import Tokenizer

    from histoclip_lib.clip.checkpoints import fill, read_weights
    from histoclip_lib.clip.text_towers import fixed_length

    weights, tokenizer = _files(pretrained)
    model = build(SIZES)
    state = read_weights(weights)
    fill(model, {name: value for name, value in state.items() if not name.startswith(UNUSED)}, weights)
    tokenize = fixed_length(Tokenizer.from_file(str(tokenizer)), SIZES.prompt, "<pad>")
    return model, tokenize, PreprocessCfg(size=SIZES.image, **OPENAI)


def _files(pretrained: str) -> list[Path]:
    from histoclip_lib.clip.weights import encoder_files

    try:
        return encoder_files(ENCODERS[NAME], pretrained)
    except HistoCLIPError as error:
        raise HistoCLIPError(
            f"{error}\nThe tokenizer is not on the hub: {TOKENIZER} lies in conch/open_clip_custom/tokenizers of "
            "https://github.com/mahmoodlab/CONCH. Put it beside the weights."
        ) from error
