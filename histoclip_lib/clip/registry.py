"""The encoders by name: how each is loaded, what it is, what it was trained on, and whether it can be had here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from histoclip_lib.common.registry import Registry

OPEN_CLIP = "open_clip"  # the family of every name that is not registered: its own names, hf-hub: and local-dir:
LOCAL = "local-dir:"
SCHEMAS = ("hf-hub:", LOCAL)
OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OFFLINE_DEFAULT = "lite0-minilm"
UNKNOWN_IMAGES = (
    "Images that this software does not know. **TCGA images may be among them.** Ask whoever trained the weights."
)


def _unknown(backbone: str, pretrained: str) -> None:
    """Know nothing before the encoder is loaded."""


def _all_files_at_hand(backbone: str, pretrained: str) -> str | None:
    """Return where the files of an encoder lie, None where one is missing."""
    from histoclip_lib.clip.weights import files_at_hand

    entry = ENCODERS[backbone]
    found = files_at_hand(entry, pretrained)
    return str(next(iter(found.values())).parent) if found and len(found) == len(entry.files) else None


@dataclass(frozen=True)
class EncoderEntry:
    """What is known of an encoder without loading it.

    Attributes
    ----------
    name : str
        The parameter `backbone`.
    title, licence : str
        For the report.
    load : callable
        From `backbone` and `pretrained` to a model with open_clip's `visual` and `encode_text`, its tokenizer and its
        `PreprocessCfg`.
    is_clip : bool
        Whether it was trained on image-text pairs; the offline default was not.
    about : str
        A paragraph of Markdown, instead of one that names the backbone and its weights.
    pretraining : str
        What it was trained on, and whether TCGA images may be among that; Markdown.
    takes_weights : bool
        Whether `pretrained` has a meaning. It has for an encoder with `files`: a local folder, or a weights file.
    has_text : bool
        Whether there is a text tower in the space of the images; without one the zero-shot methods do not apply.
        Then `load` returns None for the tokenizer.
    hub : str
        Its repository on the Hugging Face hub, `OWNER/NAME`; empty where it has none.
    files : tuple of str
        The files that `load` reads of that repository, or of a local folder that `pretrained` names. Names joined by
        `|` are alternatives, the first that is there counts. `histoclip_lib.clip.weights.encoder_files` finds them.
    gated : bool
        Whether the hub gives the files only to accounts that have accepted the terms.
    image_size : int or None
        Side of the square image that the tower takes, in pixels.
    patch_px : int or None
        Side of the patches that it was trained on, in pixels at `mpp`; None where that is not published.
    mpp : tuple of float
        Micrometres per pixel of its training patches, several where there were several; empty where not published.
    mean, std : tuple of 3 floats
        Normalisation of the channels, for pixels from 0 to 1; empty where only the files tell.
    templates : str
        Name of the set of prompts in `prompting/words/templates/` that its authors' usage suggests; empty for the
        general one.
    tcga : {"yes", "no", "unknown"}
        Whether its training images held any of TCGA, from which BCSS-WSSS and a part of PanNuke come.
    tcga_source : str
        Where that is stated.
    weights_at_hand : callable
        From `backbone` and `pretrained` to where the weights lie on this machine, None where they would be fetched.
        By default, of an encoder with `files`, where its `files` are; without `files` and `hub`, its own code.
    token_shape : callable
        From the same to the number of tokens L and their width d, None where only the model itself tells.
    check : callable
        Raises HistoCLIPError for a `backbone` or `pretrained` that does not exist; nothing is loaded.
    """

    name: str
    title: str
    licence: str
    load: Callable[[str, str], tuple]
    is_clip: bool = True
    about: str = ""
    pretraining: str = UNKNOWN_IMAGES
    takes_weights: bool = False
    has_text: bool = True
    hub: str = ""
    files: tuple[str, ...] = ()
    gated: bool = False
    image_size: int | None = None
    patch_px: int | None = None
    mpp: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    templates: str = ""
    tcga: str = "unknown"
    tcga_source: str = ""
    weights_at_hand: Callable[[str, str], str | None] = _unknown
    token_shape: Callable[[str, str], tuple[int, int] | None] = _unknown
    check: Callable[[str, str], None] = _unknown


ENCODERS: Registry[EncoderEntry] = Registry(
    "encoder",
    "backbone",
    (
        "histoclip_lib.clip.lite0_minilm",
        "histoclip_lib.clip.pathology_clips",
        "histoclip_lib.clip.conch",
        "histoclip_lib.clip.keep",
        "histoclip_lib.clip.musk",
        "histoclip_lib.clip.vision_only",
        "histoclip_lib.clip.open_clip_family",
    ),
)


def encoder(name: str, title: str, licence: str, **about: object) -> Callable[[Callable], Callable]:
    """Register the decorated `load(backbone, pretrained)` as an encoder; `EncoderEntry` has the arguments.

    Examples
    --------
    >>> from histoclip_lib import encoder
    >>> @encoder("mine", title="My encoder", licence="MIT")
    ... def load(backbone, pretrained):
    ...     model, tokenizer = ...  # as open_clip makes them
    ...     return model, tokenizer, open_clip.transform.PreprocessCfg(size=224)
    """
    if about.get("files"):
        about = {"takes_weights": True, "weights_at_hand": _all_files_at_hand} | about
    elif not about.get("hub"):  # no file is named that could be missing
        about = {"weights_at_hand": lambda backbone, pretrained: "its own code"} | about

    def register(load: Callable) -> Callable:
        ENCODERS.add(name, EncoderEntry(name, title, licence, load, **about))
        return load

    return register


def encoder_entry(backbone: str, pretrained: str = "") -> EncoderEntry:
    """Return what is known of an encoder; a name that is not registered is one of open_clip's."""
    if backbone in ENCODERS:
        return ENCODERS[backbone]
    from histoclip_lib.clip.open_clip_family import pretraining_of

    return replace(ENCODERS[OPEN_CLIP], pretraining=pretraining_of(backbone, pretrained))
