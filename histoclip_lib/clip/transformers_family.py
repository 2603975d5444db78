"""CLIP and SigLIP as transformers saves them (`CLIPModel`, `SiglipModel`): the layout of PLIP.

transformers computes the features; here its model gets the interface of open_clip's, and patch tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import nn

from histoclip_lib.clip.registry import ENCODERS, SCHEMAS, EncoderEntry
from histoclip_lib.clip.towers import one_by_one
from histoclip_lib.clip.weights import TRANSFORMERS_FILES, encoder_files, fetched_file
from histoclip_lib.common.errors import HistoCLIPError, bullet_list

if TYPE_CHECKING:
    from open_clip.transform import PreprocessCfg

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")  # taken where they are there
INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


class ImageTowerOfTransformers(nn.Module):
    """The image tower of a `CLIPModel` or `SiglipModel`, with its projection into the joint space.

    Parameters
    ----------
    model : CLIPModel or SiglipModel
        Of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.vision = model.vision_model
        self.projection = getattr(model, "visual_projection", nn.Identity())
        self.has_class_token = model.config.model_type == "clip"

    def pooled_and_tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From images (B, 3, S, S) to pooled features (B, d) and tokens (B, L, d), as `towers.image_features`."""
        found = self.vision(images)
        pooled = self.projection(found.pooler_output)
        if self.has_class_token:  # the class token is normalised after it is taken: the others likewise
            return pooled, self.projection(self.vision.post_layernorm(found.last_hidden_state[:, 1:]))
        return pooled, self.projection(one_by_one(self.vision.head, found.last_hidden_state))  # normalised already


class ModelOfTransformers(nn.Module):
    """A `CLIPModel` or `SiglipModel` with the interface of an open_clip model.

    Parameters
    ----------
    model : CLIPModel or SiglipModel
        Of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.visual = ImageTowerOfTransformers(model)

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor of cosines before a softmax."""
        return self.model.logit_scale

    def encode_text(self, token_ids: torch.Tensor) -> torch.Tensor:
        """From token ids (P, context length) to features (P, d).

        No attention mask is needed: CLIP's text is read from left to right up to its end, and SigLIP was trained
        without one.
        """
        pooled = self.model.text_model(input_ids=token_ids).pooler_output
        return self.model.text_projection(pooled) if hasattr(self.model, "text_projection") else pooled


def _token_ids(tokenizer: Callable, length: int, zero_padding: bool, prompts: list[str]) -> torch.Tensor:
    """Return token ids (P, length) of a tokenizer of transformers.

    With `zero_padding` prompts are filled with 0, as open_clip has it. CLIP's own padding is the token that ends a
    prompt; it reads none of it.
    """
    found = tokenizer(
        prompts,
        padding="max_length",
        truncation=True,
        max_length=length,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return found["input_ids"] * found["attention_mask"] if zero_padding else found["input_ids"]


def load_transformers(backbone: str, pretrained: str = "") -> tuple[ModelOfTransformers, Callable, PreprocessCfg]:
    """Load a CLIP or SigLIP as transformers saves it.

    Parameters
    ----------
    backbone : str
        A registered name with `hub` and TRANSFORMERS_FILES; `hf-hub:` and a repository; or `local-dir:` and a folder.
    pretrained : str
        For a registered name: a local folder or weights file, if not the hub.

    Raises
    ------
    HistoCLIPError
        If a file is missing, is not what it should be, or lacks weights of the model.
    """
    if backbone.startswith(SCHEMAS):
        schema, _, name = backbone.partition(":")
        hub, pretrained = (name, "") if schema == "hf-hub" else ("", name)
        entry = EncoderEntry(backbone, "", "", load_transformers, hub=hub, files=TRANSFORMERS_FILES)
    else:
        entry = ENCODERS[backbone]
    files = encoder_files(entry, pretrained)
    beside = [files[-1].with_name(name) for name in BESIDE]
    if entry.hub and not pretrained:
        beside = [fetched_file(entry.hub, name)[0] for name in BESIDE]
    try:
        return _build(files, [file for file in beside if file is not None and file.is_file()])
    except HistoCLIPError:
        raise
    except Exception as error:  # transformers raises many kinds; each means that a file is not what it should be
        raise HistoCLIPError(
            f"backbone {backbone}: {files[0].parent} holds no CLIP or SigLIP of transformers that can be loaded "
            f"({type(error).__name__}: {str(error).strip()[:300]}). Fetch its files again."
        ) from error


def _build(files: list[Path], beside: list[Path]) -> tuple[ModelOfTransformers, Callable, PreprocessCfg]:
    import transformers

    config, weights, preprocessor, _ = files
    kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    model_class = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}[kind]
    with TemporaryDirectory(prefix="histoclip-") as name:
        folder = Path(name)
        for file in dict.fromkeys([*files, *beside]):
            (folder / file.name).symlink_to(file.absolute())
        if weights.name not in ("model.safetensors", "pytorch_model.bin"):  # a file with a name of its own
            standard = "model.safetensors" if weights.suffix == ".safetensors" else "pytorch_model.bin"
            (folder / standard).symlink_to(weights.absolute())
        model, found = model_class.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if missing := sorted(found["missing_keys"]):
        raise HistoCLIPError(f"{weights}: these weights of the model are not there:\n{bullet_list(missing)}")
    context_length = model.config.text_config.max_position_embeddings
    return (
        ModelOfTransformers(model),
        partial(_token_ids, tokenizer, context_length, kind == "clip"),
        _preprocessing(json.loads(preprocessor.read_text(encoding="utf-8"))),
    )


def _preprocessing(about: dict) -> PreprocessCfg:
    """Return as open_clip has it how an image processor of transformers resizes, crops and normalises."""
    from open_clip.transform import PreprocessCfg

    about = about.get("image_processor", about)  # newer versions save it beside the tokenizer's options
    size, crop = about["size"], about.get("crop_size")
    whole = isinstance(size, dict) and "height" in size and not about.get("do_center_crop", False)
    side = size if isinstance(size, int) else size.get("shortest_edge") or (size["height"], size["width"])
    if about.get("do_center_crop", False) and crop and crop != size:
        cropped = crop if isinstance(crop, int) else crop["height"]
        if cropped != side:
            raise HistoCLIPError(
                f"preprocessing: images are resized to {side} and then cropped to {cropped}, which is not supported."
            )
    return PreprocessCfg(
        size=side,
        mean=tuple(about["image_mean"]),
        std=tuple(about["image_std"]),
        interpolation=INTERPOLATION[about.get("resample", 3)],
        resize_mode="squash" if whole else "shortest",
    )
