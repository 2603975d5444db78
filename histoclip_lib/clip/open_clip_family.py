"""open_clip's models: by name and tag or weights file, from a hub (`hf-hub:`), or from a folder (`local-dir:`)."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from histoclip_lib.clip.registry import LOCAL, OFFLINE_DEFAULT, OPEN_CLIP, SCHEMAS, UNKNOWN_IMAGES, encoder
from histoclip_lib.clip.weights import cached_file, fetched_file
from histoclip_lib.common.errors import HistoCLIPError

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
HF_CONFIG = "config.json"  # of a text tower, or of a whole model in the layout of transformers
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# Text towers that are BERT base in the layout of its authors: the shapes of the weights then tell the configuration.
BERT_BASE = re.compile(r"(Biomed|PubMed)BERT-base", re.IGNORECASE)
BERT_HEAD_WIDTH = 64
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
    twin = backbone.removesuffix("-quickgelu") if has_quick_gelu else f"{backbone}-quickgelu"
    has_twin = twin != backbone and twin in open_clip.list_models()
    needs_quick_gelu = bool(tag.get("quick_gelu", False)) if tag else quick_gelu_of_file(Path(pretrained))
    if needs_quick_gelu is None and has_twin:
        warnings.warn(
            f"pretrained {pretrained}: nothing says whether these weights were trained with QuickGELU, and the weights "
            f"themselves do not show it. {backbone} computes {'QuickGELU' if has_quick_gelu else 'GELU'}; if that is "
            f"wrong the features are off, without an error. Weights fine-tuned from OpenAI's CLIP mostly need "
            f"{twin if not has_quick_gelu else backbone}. Ask their authors, try {twin} too, and settle it with a file "
            f'{CONFIG_NAME} beside them that holds {{"model_cfg": {{"quick_gelu": true}}}} or false.',
            stacklevel=3,
        )
    elif needs_quick_gelu is not None and needs_quick_gelu != has_quick_gelu:
        warnings.warn(
            f"backbone {backbone} with pretrained {pretrained}: these weights were trained "
            f"{'without' if has_quick_gelu else 'with'} QuickGELU, so the features will be off."
            + (f" Use {twin}." if has_twin else ""),
            stacklevel=3,
        )


def quick_gelu_of_file(path: Path) -> bool | None:
    """Say whether the weights of a file need QuickGELU; None where nothing tells.

    A configuration beside the file tells, open_clip's or that of transformers; and so do the file's name, if it is that
    under which open_clip fetches known weights, and the repository in whose part of the hub's cache the file lies.
    """
    import open_clip

    config = _read_json(path.with_name(CONFIG_NAME))
    if "quick_gelu" in (model_config := config.get("model_cfg", config)):
        return bool(model_config["quick_gelu"])
    if activation := (_read_json(path.with_name(HF_CONFIG)).get("vision_config") or {}).get("hidden_act"):
        return activation == "quick_gelu"
    for model, name in open_clip.list_pretrained():
        tag = open_clip.get_pretrained_cfg(model, name)
        repository = tag.get("hf_hub", "").rsplit("/", 1)[0]
        same_file = Path(tag.get("url", "")).name == path.name
        if same_file or (repository and f"models--{repository.replace('/', '--')}" in path.parts):
            return bool(tag.get("quick_gelu", False))
    return None


def _read_json(file: Path | None) -> dict:
    """Return the mapping of a JSON file; an empty one without the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, AttributeError):
        return {}
    return content if isinstance(content, dict) else {}


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
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def weights_at_hand(backbone: str, pretrained: str) -> str | None:
    """Return where the weights lie on this machine, or None where they would have to be fetched; no network is asked.

    Parameters
    ----------
    backbone, pretrained : str
        As `load_clip` takes them.
    """
    import open_clip

    if backbone.startswith(LOCAL):
        files = [Path(backbone.removeprefix(LOCAL)) / name for name in WEIGHTS_NAMES]
    elif backbone.startswith("hf-hub:"):
        files = [cached_file(backbone.removeprefix("hf-hub:"), name) for name in WEIGHTS_NAMES]
    elif (tag := open_clip.get_pretrained_cfg(backbone, pretrained)).get("hf_hub"):
        repository, _, name = tag["hf_hub"].rpartition("/")
        files = [cached_file(repository, name) for name in ([name] if name else WEIGHTS_NAMES)]
    elif tag:
        files = [Path("~/.cache/clip").expanduser() / Path(tag["url"]).name]
    else:
        files = [Path(pretrained)]
    return next((str(file) for file in files if file is not None and file.is_file()), None)


def _model_config(backbone: str) -> dict:
    """Return open_clip's configuration of a model, as far as it lies on this machine."""
    import open_clip

    if not backbone.startswith(SCHEMAS):
        return open_clip.get_model_config(backbone)
    if backbone.startswith("hf-hub:"):
        file = cached_file(backbone.removeprefix("hf-hub:"), CONFIG_NAME)
    else:
        file = Path(backbone.removeprefix(LOCAL)) / CONFIG_NAME
    about = _read_json(file)
    return about.get("model_cfg", about)


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
    check_open_clip_name(backbone, pretrained)
    if _is_in_layout_of_transformers(backbone):
        from histoclip_lib.clip.transformers_family import load_transformers

        return load_transformers(backbone)
    return _load(backbone, pretrained)


def load_from_files(backbone: str, config: Path, weights: Path) -> tuple:
    """Load a model in open_clip's layout of which the configuration and the weights are given.

    Parameters
    ----------
    backbone : str
        What an error calls it.
    config, weights : Path
        `open_clip_config.json`, beside which the tokenizer's files lie where there are any; and the weights.
    """
    return _load(f"local-dir:{config.parent}", "", backbone, weights)


def _load(backbone: str, pretrained: str, called: str = "", weights: Path | None = None) -> tuple:
    import open_clip

    try:
        with _in_one_folder(backbone, weights) as name, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # said by check_open_clip_name
            model = open_clip.create_model(name, pretrained=pretrained or None, require_pretrained=True)
            tokenizer = open_clip.get_tokenizer(name)
        return model, tokenizer, open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    except Exception as error:  # open_clip and its hub client raise many kinds; each means that a file is missing
        raise HistoCLIPError(
            f"backbone {called or backbone}, pretrained {pretrained or '(none)'}: the model could not be loaded. "
            f"Looked for {_files_needed(backbone, pretrained)}. Reason: {type(error).__name__}: "
            f"{str(error).strip()[:300]}\nRun once with network access, set `pretrained` to a local weights file, or "
            f"use the offline default `backbone: {OFFLINE_DEFAULT}`."
        ) from error


def _is_in_layout_of_transformers(backbone: str) -> bool:
    """Whether a model with a schema is a CLIP or SigLIP as transformers saves it, and not as open_clip does."""
    if not backbone.startswith(SCHEMAS) or _file_of(backbone, CONFIG_NAME)[0] is not None:
        return False
    return _read_json(_file_of(backbone, HF_CONFIG)[0]).get("model_type") in ("clip", "siglip")


@contextmanager
def _in_one_folder(backbone: str, weights: Path | None = None) -> Iterator[str]:
    """Gather what a model with a schema needs in a temporary folder, for which no network is asked; yield its name.

    open_clip asks the hub for the configuration of a text tower of transformers even where the weights are at hand.
    Here it is taken from beside the weights or from the cache, or worked out from the weights.

    Raises
    ------
    OSError
        If a file can neither be found nor fetched.
    """
    if not backbone.startswith(SCHEMAS):
        yield backbone
        return
    with TemporaryDirectory(prefix="histoclip-") as name:
        folder = Path(name)
        about = _read_json(_needed(backbone, CONFIG_NAME))
        if "model_cfg" not in about:
            raise OSError(f"{CONFIG_NAME} has no model_cfg")
        weights = weights or _needed(backbone, "|".join(WEIGHTS_NAMES))
        standard = "open_clip_model.safetensors" if weights.suffix == ".safetensors" else "open_clip_pytorch_model.bin"
        (folder / standard).symlink_to(weights.absolute())
        text = about["model_cfg"]["text_cfg"]
        if text.get("hf_model_name"):
            config = _text_config(backbone, text["hf_model_name"], weights)
            (folder / HF_CONFIG).write_text(json.dumps(config), encoding="utf-8")
            text["hf_model_name"] = str(folder)
        if text.get("hf_tokenizer_name"):
            for file in _tokenizer_files(backbone, text["hf_tokenizer_name"]):
                (folder / file.name).symlink_to(file.absolute())
        (folder / CONFIG_NAME).write_text(json.dumps(about), encoding="utf-8")
        yield f"local-dir:{folder}"


def _file_of(backbone: str, names: str) -> tuple[Path | None, str]:
    """Return a file of a model with a schema, or None and why there is none; names joined by | are alternatives."""
    if backbone.startswith("hf-hub:"):
        return fetched_file(backbone.removeprefix("hf-hub:"), names)
    folder = Path(backbone.removeprefix(LOCAL))
    found = next((folder / name for name in names.split("|") if (folder / name).is_file()), None)
    return found, f"{folder} has no {names.replace('|', ' and no ')}"


def _needed(backbone: str, names: str) -> Path:
    file, reason = _file_of(backbone, names)
    if file is None:
        raise OSError(reason)
    return file


def _text_config(backbone: str, text_tower: str, weights: Path) -> dict:
    """Return the configuration of a text tower: from beside the weights, the hub's cache, the weights, or the hub."""
    if "model_type" in (config := _read_json(_file_of(backbone, HF_CONFIG)[0])):
        return config
    if "model_type" in (config := _read_json(cached_file(text_tower, HF_CONFIG))):
        return config
    if BERT_BASE.search(text_tower):
        return _bert_config(weights)
    file, reason = fetched_file(text_tower, HF_CONFIG)
    if file is None:
        raise OSError(f"{reason}; put the {HF_CONFIG} of {text_tower} beside the weights")
    return _read_json(file)


def _bert_config(weights: Path) -> dict:
    """Return the configuration of a BERT whose weights are `text.transformer.*` of a file, from their shapes."""
    import open_clip

    prefix = "text.transformer."
    shapes = {
        name.removeprefix(prefix): tuple(value.shape)
        for name, value in open_clip.factory.load_state_dict(str(weights)).items()
        if name.startswith(prefix)
    }
    vocabulary, width = shapes["embeddings.word_embeddings.weight"]
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": width // BERT_HEAD_WIDTH,
        "num_hidden_layers": len({name.split(".")[2] for name in shapes if name.startswith("encoder.layer.")}),
        "intermediate_size": shapes["encoder.layer.0.intermediate.dense.weight"][0],
        "max_position_embeddings": shapes["embeddings.position_embeddings.weight"][0],
        "type_vocab_size": shapes["embeddings.token_type_embeddings.weight"][0],
    }


def _tokenizer_files(backbone: str, tokenizer: str) -> list[Path]:
    """Return the files of a tokenizer: those beside the weights, else those of the repository that is named."""
    own = [file for name in TOKENIZER_NAMES if (file := _file_of(backbone, name)[0]) is not None]
    if any(file.name in ("tokenizer.json", "vocab.txt", "spiece.model") for file in own):
        return own
    named = [file for name in TOKENIZER_NAMES if (file := fetched_file(tokenizer, name)[0]) is not None]
    if not named:
        raise OSError(f"neither {backbone} nor {tokenizer} gives the files of the tokenizer, such as tokenizer.json")
    return named


def _files_needed(backbone: str, pretrained: str) -> str:
    import open_clip

    if backbone.startswith(SCHEMAS):
        return f"open_clip_config.json and the weights of {backbone}"
    tag = open_clip.get_pretrained_cfg(backbone, pretrained)
    weights = (tag.get("hf_hub") or tag.get("url")) if tag else pretrained
    tokenizer = open_clip.get_model_config(backbone)["text_cfg"].get("hf_tokenizer_name")
    return f"{weights} and the tokenizer of {tokenizer}" if tokenizer else weights
