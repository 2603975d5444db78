"""open_clip's models: by name and tag or weights file, from a hub (`hf-hub:`), or from a folder (`local-dir:`)."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

from histoclip_lib.clip.registry import OFFLINE_DEFAULT, OPEN_CLIP, SCHEMAS, UNKNOWN_IMAGES, encoder
from histoclip_lib.common.errors import HistoCLIPError

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
RESNET_STRIDE = 32  # pixels from one token of open_clip's ResNets to the next
# What the names of backbones and weights say of the images they were trained on; the first match counts.
PRETRAINING = {
    r"conch|plip|quilt|biomedclip|pathclip|pathgen|musk": (
        "Pathology images with text, from publications, textbooks, Twitter or YouTube, depending on the model. **TCGA "
        "images may be among them.**"
    ),
    r"openai": (
        "WIT, 400 million image-text pairs from the web, which OpenAI has not published. **TCGA images may be among "
        "them.**"
    ),
    r"laion|datacomp|commonpool|dfn|metaclip|webli|cc12m|yfcc": (
        "Image-text pairs collected from the web. **TCGA images may be among them.**"
    ),
}


def pretraining_of(backbone: str, pretrained: str) -> str:
    """Say in Markdown what is known of an encoder's training images, and whether TCGA may be among them."""
    for pattern, text in PRETRAINING.items():
        if re.search(pattern, f"{backbone} {Path(pretrained).name}", re.IGNORECASE):
            return text
    return UNKNOWN_IMAGES


def check_open_clip_name(backbone: str, pretrained: str) -> None:
    """Check that open_clip knows a model and its weights, and warn of a QuickGELU mismatch; nothing is loaded.

    Raises
    ------
    HistoCLIPError
        If it does not, or if `pretrained` is given beside a model that has its own weights.
    """
    if backbone.startswith(SCHEMAS):
        if pretrained:
            raise HistoCLIPError(
                f"pretrained: {pretrained!r} has no meaning for {backbone}, which has its own weights."
            )
        return
    import open_clip

    if backbone not in open_clip.list_models():
        raise HistoCLIPError(
            f"backbone: {backbone!r} is not known. Use {OFFLINE_DEFAULT}, an open_clip name (such as "
            "ViT-L-14-quickgelu), hf-hub:OWNER/NAME or local-dir:FOLDER."
        )
    if not pretrained:
        raise HistoCLIPError(
            f"pretrained: {backbone} needs a tag ({', '.join(open_clip.list_pretrained_tags_by_model(backbone))}) "
            "or the path of a weights file."
        )
    tag = open_clip.get_pretrained_cfg(backbone, pretrained)
    if not tag and not Path(pretrained).is_file():
        raise HistoCLIPError(
            f"pretrained: {pretrained!r} is neither a file nor a tag of {backbone}. Its tags: "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(backbone)) or 'none'}."
        )
    has_quick_gelu = bool(open_clip.get_model_config(backbone).get("quick_gelu", False))
    if tag and bool(tag.get("quick_gelu", False)) != has_quick_gelu:
        better = backbone.removesuffix("-quickgelu") if has_quick_gelu else f"{backbone}-quickgelu"
        remedy = f" Use {better}." if better != backbone and better in open_clip.list_models() else ""
        warnings.warn(
            f"backbone {backbone} with pretrained {pretrained}: these weights were trained "
            f"{'without' if has_quick_gelu else 'with'} QuickGELU, so the features will be off.{remedy}",
            stacklevel=3,
        )


def token_shape(backbone: str, pretrained: str = "") -> tuple[int, int] | None:
    """Return how many tokens L an image gives and their width d; None where only the model itself would tell.

    A model's own configuration says it for open_clip's ViTs and ResNets, not for the towers of timm.
    """
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


def weights_at_hand(backbone: str, pretrained: str) -> str | None:
    """Return where the weights lie on this machine, or None where they would have to be fetched; no network is asked.

    Parameters
    ----------
    backbone, pretrained : str
        As `load_clip` takes them.
    """
    import open_clip

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
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, name)
    except ValueError:  # no name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def _model_config(backbone: str) -> dict | None:
    """Return open_clip's configuration of a model, as far as it lies on this machine."""
    import open_clip

    if not backbone.startswith(SCHEMAS):
        return open_clip.get_model_config(backbone)
    if backbone.startswith("hf-hub:"):
        file = _hub_file(backbone.removeprefix("hf-hub:"), CONFIG_NAME)
    else:
        file = Path(backbone.removeprefix("local-dir:")) / CONFIG_NAME
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        return about.get("model_cfg", about)
    except (OSError, ValueError, AttributeError):
        return None


@encoder(
    OPEN_CLIP,
    title="open_clip",
    licence="That of the weights, which open_clip's list of models or their model card states.",
    takes_weights=True,
    weights_at_hand=weights_at_hand,
    token_shape=token_shape,
    check=check_open_clip_name,
)
def load(backbone: str, pretrained: str) -> tuple:
    """Load an open_clip model, its tokenizer and its preprocessing."""
    import open_clip

    check_open_clip_name(backbone, pretrained)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # said by check_open_clip_name
            model = open_clip.create_model(backbone, pretrained=pretrained or None, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(backbone)
        return model, tokenizer, open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    except Exception as error:  # open_clip and its hub client raise many kinds; each means that a file is missing
        raise HistoCLIPError(
            f"backbone {backbone}, pretrained {pretrained or '(none)'}: the model could not be loaded. Looked for "
            f"{_files_needed(backbone, pretrained)}. Reason: {type(error).__name__}: {str(error).strip()[:300]}\n"
            "Run once with network access, set `pretrained` to a local weights file, or use the offline default "
            f"`backbone: {OFFLINE_DEFAULT}`."
        ) from error


def _files_needed(backbone: str, pretrained: str) -> str:
    import open_clip

    if backbone.startswith(SCHEMAS):
        return f"open_clip_config.json and the weights of {backbone}"
    tag = open_clip.get_pretrained_cfg(backbone, pretrained)
    weights = (tag.get("hf_hub") or tag.get("url")) if tag else pretrained
    tokenizer = open_clip.get_model_config(backbone)["text_cfg"].get("hf_tokenizer_name")
    return f"{weights} and the tokenizer of {tokenizer}" if tokenizer else weights
