"""KEEP (Zhou et al., Cancer Cell 2026): a ViT-L/16 of timm and PubMedBERT, joined through a graph of diseases.

The published configuration names code of the repository (`auto_map`). None of it is run: the image tower is timm's, the
text tower transformers' BERT, and the image head two linear layers with a GELU between them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from histoclip_lib.clip.registry import ENCODERS, IMAGENET, encoder
from histoclip_lib.common.errors import HistoCLIPError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

NAME = "keep"
IMAGE, PATCH, WIDTH = 224, 16, 768
TOWER = {"init_values": 1e-5}  # of timm's vit_large_patch16_224
PROMPT = 256  # tokens
UNUSED = "text.embeddings.position_ids"  # a constant that old files hold
RENAMED = {"visual_head.": "head.", "visual.": "trunk."}  # of the image tower


def image_tower(joint: int) -> nn.Module:
    """Return the image tower with random weights; `joint` is the width of the joint space."""
    import timm
    from torch import nn

    from histoclip_lib.clip.towers import ClassTokenViT

    trunk = timm.create_model("vit_large_patch16_224", num_classes=0, **TOWER)
    head = nn.Sequential(nn.Linear(trunk.num_features, joint), nn.GELU(), nn.Linear(joint, joint))
    return ClassTokenViT(trunk, head)


@encoder(
    NAME,
    title="KEEP",
    licence="MIT",
    hub="Astaxanthin/KEEP",
    files=("config.json", "model.safetensors|pytorch_model.bin", "tokenizer.json|vocab.txt"),
    image_size=IMAGE,
    **IMAGENET,
    templates="pathology",
    tcga="unknown",
    tcga_source="training guide of github.com/MAGIC-AI4Med/KEEP: OpenPath and Quilt-1M, whose images are not traced",
    pretraining="Images with text of OpenPath (Twitter) and Quilt-1M (videos, the web), in 143,000 groups of one "
    "meaning by a graph of 11,454 diseases; the image tower began as UNI. **TCGA images may be among them.** No scale "
    "is published.",
    token_shape=lambda backbone, pretrained: ((IMAGE // PATCH) ** 2, WIDTH),
)
def load(backbone: str, pretrained: str) -> tuple:
    """Load KEEP; patch tokens go through the image head as the class token does.

    Raises
    ------
    HistoCLIPError
        If a file cannot be had or does not hold the weights of KEEP.
    """
    from open_clip.transform import PreprocessCfg
    from transformers import BertConfig, BertModel

    from histoclip_lib.clip.checkpoints import fill, read_weights, transformers_model
    from histoclip_lib.clip.text_towers import BertText, Towers, fixed_length
    from histoclip_lib.clip.weights import encoder_files

    config, weights, tokenizer = encoder_files(ENCODERS[NAME], pretrained)
    text_config, joint = _read_config(config)
    state = {name: value for name, value in read_weights(weights).items() if name != UNUSED}
    text = {name.removeprefix("text."): state.pop(name) for name in list(state) if name.startswith("text.")}
    bert = transformers_model(BertModel, BertConfig(**text_config), text, weights)
    towers = Towers(image_tower(joint), BertText(bert))
    towers.logit_scale.data = state.pop("logit_scale", towers.logit_scale.data)
    fill(towers.visual, {_renamed(name): value for name, value in state.items()}, weights)
    tokenize = fixed_length(_tokenizer(tokenizer), PROMPT, "[PAD]")
    return towers, tokenize, PreprocessCfg(size=IMAGE, **IMAGENET)


def _read_config(path: Path) -> tuple[dict, int]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return dict(config["text_config"]), int(config["projection_dim"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HistoCLIPError(
            f"{path}: this is not KEEP's configuration ({type(error).__name__}: {error}); text_config and "
            "projection_dim are needed. Fetch the file again."
        ) from error


def _renamed(name: str) -> str:
    return next((name.replace(old, new, 1) for old, new in RENAMED.items() if name.startswith(old)), name)


def _tokenizer(path: Path) -> object:
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    if path.suffix == ".json":
        return Tokenizer.from_file(str(path))
    return BertWordPieceTokenizer(str(path), lowercase=True)
