"""A frozen CLIP: loading, image features (pooled and as patch tokens) and text features."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import open_clip
import torch
from torch import nn
from torchvision.transforms import Compose, PILToTensor

from histoclip_lib.clip import lite0_minilm
from histoclip_lib.clip.towers import ImageTower, is_convolutional, onnx_tower
from histoclip_lib.common.cache import cache_dir
from histoclip_lib.common.errors import HistoCLIPError

PRECISIONS = ("auto", "fp32", "amp")
SCHEMAS = ("hf-hub:", "local-dir:")


@dataclass(frozen=True, eq=False)
class CLIP:
    """A frozen image and text encoder with one joint space.

    Attributes
    ----------
    model : nn.Module
        open_clip model in eval mode, no parameter of which requires a gradient.
    tokenizer : callable
        From a list of P strings to token ids (P, context length).
    preprocess_cfg : open_clip.transform.PreprocessCfg
        The encoder's own resizing, cropping and normalisation.
    backbone, pretrained : str
        What was asked for.
    device : torch.device
        Where the model is.
    amp_dtype : torch.dtype or None
        Autocast type, or None for float32.
    compiled : bool
        Whether images are encoded through `torch.compile`.
    """

    model: nn.Module
    tokenizer: Callable[[list[str]], torch.Tensor]
    preprocess_cfg: open_clip.transform.PreprocessCfg
    backbone: str
    pretrained: str
    device: torch.device
    amp_dtype: torch.dtype | None
    compiled: bool = False

    @property
    def preprocess(self) -> Callable:
        """From a PIL image to a float tensor (3, S, S), as the encoder wants it."""
        return open_clip.transform.image_transform_v2(self.preprocess_cfg, is_train=False)

    @property
    def resize(self) -> Callable:
        """From a PIL image to a uint8 tensor (3, S, S): `preprocess` without the normalisation (the tower's)."""
        return Compose([*self.preprocess.transforms[:-2], PILToTensor()])

    @property
    def is_clip(self) -> bool:
        """Whether the backbone was trained on image-text pairs (the offline default was not)."""
        return self.backbone != lite0_minilm.NAME

    def about(self) -> str:
        """Return a paragraph of Markdown that says what the backbone is."""
        if not self.is_clip:
            return (
                f"**Backbone: `{self.backbone}`, which is not CLIP.** An ImageNet EfficientNet-Lite0 and the sentence "
                "encoder all-MiniLM-L6-v2, joined by a ridge regression from ImageNet class weights to embeddings of "
                "the class names. It has seen no image with its caption and no tissue. It stands in where no CLIP "
                "weights can be downloaded; its numbers say nothing of the paper's."
            )
        weights = f" with the weights `{self.pretrained}`" if self.pretrained else ""
        return f"**Backbone: `{self.backbone}`**{weights}, frozen."

    def autocast(self) -> torch.autocast:
        """Return the autocast context that belongs to the chosen precision."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    @torch.inference_mode()
    def encode_images(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode images.

        Parameters
        ----------
        images : tensor of shape (B, 3, S, S), uint8
            As `resize` gives them; they are normalised on the device.

        Returns
        -------
        pooled : tensor of shape (B, d), float32
            The global embedding z of eq. (1), as open_clip's `encode_image` returns it (not normalised).
        tokens : tensor of shape (B, L, d), float32
            Patch tokens in the same space, row by row from the top left.

        Raises
        ------
        HistoCLIPError
            If the images are not uint8, as those of `preprocess` are not.
        """
        if images.dtype != torch.uint8:
            raise HistoCLIPError(f"images: {images.dtype} was given, uint8 is expected, as CLIP.resize gives it.")
        if self.fast_tower is not None:
            return self.fast_tower(images)
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        with self.autocast():
            pooled, tokens = self.tower(images)
        return pooled.float(), tokens.float()

    @cached_property
    def tower(self) -> Callable:
        """From pixels to pooled features and tokens, compiled where that was asked for."""
        tower = ImageTower(self.model.visual, self.preprocess_cfg.mean, self.preprocess_cfg.std).to(self.device).eval()
        return torch.compile(tower, dynamic=True) if self.compiled else tower

    @cached_property
    def fast_tower(self) -> Callable | None:
        """A convolutional tower through ONNX Runtime, on a CPU in float32 where that is installed."""
        if self.device.type != "cpu" or self.amp_dtype is not None or self.compiled:
            return None
        side = self.preprocess_cfg.size
        size = (side, side) if isinstance(side, int) else tuple(side)
        return onnx_tower(self.tower, size, cache_dir() / "onnx") if is_convolutional(self.model.visual) else None

    @torch.inference_mode()
    def encode_text(self, prompts: list[str], batch_size: int = 256) -> torch.Tensor:
        """Encode prompts, each distinct one once.

        Returns
        -------
        tensor of shape (P, d), float32
            Unit rows.
        """
        distinct = list(dict.fromkeys(prompts))
        token_ids = self.tokenizer(distinct)
        padding = self.tokenizer([""])[0, -1]
        if (full := (token_ids[:, -1] != padding).sum().item()) > 0:
            warnings.warn(
                f"{full} of {len(distinct)} prompts fill the {token_ids.shape[1]} tokens that {self.backbone} reads "
                "and may have lost their end.",
                stacklevel=2,
            )
        features = []
        for batch in token_ids.split(batch_size):
            with self.autocast():
                features.append(self.model.encode_text(batch.to(self.device)).float())
        unit = nn.functional.normalize(torch.cat(features), dim=-1)
        position = {prompt: row for row, prompt in enumerate(distinct)}
        return unit[[position[prompt] for prompt in prompts]]

    def fingerprint(self) -> str:
        """Return a hex digest of what determines the image features: tower, weights, preprocessing, precision."""
        # Weights alone do not say it: a model and its -quickgelu twin load the same ones.
        tower = (self.backbone, repr(self.model.visual))
        digest = hashlib.sha256(repr((tower, asdict(self.preprocess_cfg), self.amp_dtype)).encode())
        for name, value in self.model.visual.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def load_clip(
    backbone: str = lite0_minilm.NAME,
    pretrained: str = "",
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
) -> CLIP:
    """Load a CLIP, frozen and in eval mode.

    Parameters
    ----------
    backbone : str
        `lite0-minilm` (the offline default), an open_clip model name such as `ViT-L-14-quickgelu`, an `hf-hub:` id,
        or `local-dir:` and a folder.
    pretrained : str
        For an open_clip name: a tag such as `openai`, or a weights file. Empty for the others.
    device : str
        `auto` (CUDA where there is one), or a torch device.
    precision : {"auto", "fp32", "amp"}
        `amp` autocasts to bfloat16, or to float16 on GPUs without bfloat16; `auto` is `amp` on CUDA, else `fp32`.
    compiled : bool
        Encode images through `torch.compile`: slow to start, features equal up to rounding. Needs a C++
        compiler on a CPU and Triton on CUDA.

    Raises
    ------
    HistoCLIPError
        For an unknown name, tag, device or precision, for `pretrained` beside a backbone that takes none, and for
        weights that cannot be had; that message names the model, the file looked for and the offline default.
    """
    torch_device, amp_dtype = _device(device), None
    if precision not in PRECISIONS:
        raise HistoCLIPError(f"precision: {precision!r} is not known. Use one of {', '.join(PRECISIONS)}.")
    if precision == "amp" or (precision == "auto" and torch_device.type == "cuda"):
        has_bfloat16 = torch_device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        amp_dtype = torch.bfloat16 if has_bfloat16 else torch.float16
    if pretrained and (backbone == lite0_minilm.NAME or backbone.startswith(SCHEMAS)):
        raise HistoCLIPError(f"pretrained: {pretrained!r} has no meaning for {backbone}, which has its own weights.")
    if backbone == lite0_minilm.NAME:
        model, tokenizer, preprocess_cfg = lite0_minilm.build()
    else:
        model, tokenizer = _load_open_clip(backbone, pretrained)
        preprocess_cfg = open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    model.to(torch_device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return CLIP(model, tokenizer, preprocess_cfg, backbone, pretrained, torch_device, amp_dtype, compiled)


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise HistoCLIPError(f"device: {device!r} is no torch device. Use auto, cpu, cuda or cuda:0.") from error
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # no such GPU, or a torch built without this kind of device
        raise HistoCLIPError(f"device: torch sees no {device!r} on this machine. Use auto or cpu.") from error
    return chosen


def _load_open_clip(backbone: str, pretrained: str) -> tuple[nn.Module, Callable]:
    if not backbone.startswith(SCHEMAS):
        check_open_clip_name(backbone, pretrained)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # said by check_open_clip_name
            model = open_clip.create_model(backbone, pretrained=pretrained or None, require_pretrained=True)
        return model, open_clip.get_tokenizer(backbone)
    except Exception as error:  # open_clip and its hub client raise many kinds; each means that a file is missing
        raise HistoCLIPError(
            f"backbone {backbone}, pretrained {pretrained or '(none)'}: the model could not be loaded. Looked for "
            f"{_files_needed(backbone, pretrained)}. Reason: {type(error).__name__}: {str(error).strip()[:300]}\n"
            "Run once with network access, set `pretrained` to a local weights file, or use the offline default "
            f"`backbone: {lite0_minilm.NAME}`."
        ) from error


def check_open_clip_name(backbone: str, pretrained: str) -> None:
    """Hold that open_clip knows a model and its weights, and warn of a QuickGELU mismatch; nothing is loaded.

    Raises
    ------
    HistoCLIPError
        If it does not.
    """
    if backbone not in open_clip.list_models():
        raise HistoCLIPError(
            f"backbone: {backbone!r} is not known. Use {lite0_minilm.NAME}, an open_clip name (such as "
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


def _files_needed(backbone: str, pretrained: str) -> str:
    if backbone.startswith(SCHEMAS):
        return f"open_clip_config.json and the weights of {backbone}"
    tag = open_clip.get_pretrained_cfg(backbone, pretrained)
    weights = (tag.get("hf_hub") or tag.get("url")) if tag else pretrained
    tokenizer = open_clip.get_model_config(backbone)["text_cfg"].get("hf_tokenizer_name")
    return f"{weights} and the tokenizer of {tokenizer}" if tokenizer else weights
