"""A frozen CLIP: loading, image features (pooled and as patch tokens) and text features."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from torch import nn
from torchvision.transforms import Compose, PILToTensor

from histoclip_lib.clip.compute import choose_compute
from histoclip_lib.clip.field import shorter_side
from histoclip_lib.clip.registry import OFFLINE_DEFAULT, EncoderEntry, encoder_entry
from histoclip_lib.clip.text_towers import without_padding
from histoclip_lib.clip.towers import ImageTower, corrected_tokens, digest_of_weights, is_convolutional, onnx_tower
from histoclip_lib.common.cache import cache_dir
from histoclip_lib.common.errors import HistoCLIPError

TOKENS = ("all", "none")


@dataclass(frozen=True, eq=False)
class CLIP:
    """A frozen image and text encoder with one joint space.

    Attributes
    ----------
    model : nn.Module
        open_clip model in eval mode, no parameter of which requires a gradient.
    tokenizer : callable or None
        Maps a list of P strings to token ids (P, context length); None if the model has no text tower.
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
    tokens : {"all", "none"}
        `none`: the pooled embedding stands in for the patch tokens, as the only one.
    token_grid : int
        Side of the grid to which the mean of neighbouring patch tokens is taken; 0 keeps all.
    match_mpp : bool
        Whether patches are resampled to the resolution that the encoder was trained at (`field.match_field`).
    """

    model: nn.Module
    tokenizer: Callable[[list[str]], torch.Tensor] | None
    preprocess_cfg: open_clip.transform.PreprocessCfg
    backbone: str
    pretrained: str
    device: torch.device
    amp_dtype: torch.dtype | None
    compiled: bool = False
    tokens: str = "all"
    token_grid: int = 0
    match_mpp: bool = False

    @property
    def side(self) -> int:
        """Side of the image that the encoder takes, in pixels; the shorter one where they differ."""
        return shorter_side(self.preprocess_cfg.size)

    @property
    def preprocess(self) -> Callable:
        """From a PIL image to a float tensor (3, S, S), as the encoder wants it."""
        return open_clip.transform.image_transform_v2(self.preprocess_cfg, is_train=False)

    @property
    def resize(self) -> Callable:
        """From a PIL image to a uint8 tensor (3, S, S): `preprocess` without the normalisation (the tower's)."""
        return Compose([*self.preprocess.transforms[:-2], PILToTensor()])

    @property
    def entry(self) -> EncoderEntry:
        """What is registered of the encoder."""
        return encoder_entry(self.backbone, self.pretrained)

    @property
    def is_clip(self) -> bool:
        """Whether the backbone was trained on image-text pairs (the offline default was not)."""
        return self.entry.is_clip

    def about(self) -> str:
        """Return a paragraph of Markdown that says what the backbone is."""
        weights = f" with the weights `{self.pretrained}`" if self.pretrained else ""
        return self.entry.about or f"**Backbone: `{self.backbone}`**{weights}, frozen."

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
            raise HistoCLIPError(f"images: {images.dtype} was given; expected uint8, as CLIP.resize returns.")
        if self.fast_tower is not None:
            return self._kept(*self.fast_tower(images))
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        with self.autocast():
            pooled, tokens = self.tower(images)
        return self._kept(pooled.float(), tokens.float())

    def _kept(self, pooled: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pooled features (B, d) and those tokens (B, L, d) that are kept."""
        if self.tokens == "none":
            return pooled, pooled[:, None]
        side = round(tokens.shape[1] ** 0.5)
        if not self.token_grid or side <= self.token_grid or side**2 != tokens.shape[1]:
            return pooled, tokens
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        return pooled, nn.functional.adaptive_avg_pool2d(grid, self.token_grid).flatten(2).transpose(1, 2)

    @torch.inference_mode()
    def corrected_tokens(self, images: torch.Tensor) -> torch.Tensor | None:
        """Return patch tokens (B, L, d) with the last block corrected, see `towers.corrected_tokens`; None where not.

        `images` (B, 3, S, S), uint8, as `resize` gives them.
        """
        images = self._tower.normalize(images.to(self.device))
        with self.autocast():
            tokens = corrected_tokens(self.model.visual, images)
        return None if tokens is None else tokens.float()

    @cached_property
    def tower(self) -> Callable:
        """From pixels to pooled features and tokens, compiled where that was asked for."""
        return torch.compile(self._tower, dynamic=True) if self.compiled else self._tower

    @cached_property
    def _tower(self) -> ImageTower:
        return ImageTower(self.model.visual, self.preprocess_cfg.mean, self.preprocess_cfg.std).to(self.device).eval()

    @cached_property
    def fast_tower(self) -> Callable | None:
        """A convolutional tower through ONNX Runtime, on a CPU in float32 where that is installed."""
        if self.device.type != "cpu" or self.amp_dtype is not None or self.compiled:
            return None
        side = self.preprocess_cfg.size
        size = (side, side) if isinstance(side, int) else tuple(side)
        return onnx_tower(self.tower, size, cache_dir() / "onnx") if is_convolutional(self.model.visual) else None

    @torch.inference_mode()
    def encode_text(self, prompts: list[str], batch_size: int = 64) -> torch.Tensor:
        """Encode prompts, each distinct one once; batches hold prompts of about one length, which need little padding.

        Returns
        -------
        tensor of shape (P, d), float32
            Unit rows.

        Raises
        ------
        HistoCLIPError
            If the encoder has no text tower.
        """
        if self.tokenizer is None:
            raise HistoCLIPError(f"backbone {self.backbone} encodes images alone: it has no text tower for prompts.")
        distinct = list(dict.fromkeys(prompts))
        token_ids = self.tokenizer(distinct)
        padding = self.tokenizer([""])[0, -1]
        if (full := (token_ids[:, -1] != padding).sum().item()) > 0:
            warnings.warn(
                f"{full} of {len(distinct)} prompts fill the {token_ids.shape[1]} tokens that {self.backbone} reads "
                "and may have lost their end.",
                stacklevel=2,
            )
        needs_none = isinstance(getattr(self.model, "text", None), HFTextEncoder)  # it attends to no padding
        by_length = (token_ids != padding).sum(dim=1).argsort(stable=True)
        features = []
        for batch in token_ids[by_length].split(batch_size):
            with self.autocast():
                batch = without_padding(batch, padding)[0] if needs_none else batch
                features.append(self.model.encode_text(batch.to(self.device)).float())
        unit = nn.functional.normalize(torch.cat(features), dim=-1)
        position = {distinct[index]: place for place, index in enumerate(by_length.tolist())}
        return unit[[position[prompt] for prompt in prompts]]

    def fingerprint(self) -> str:
        """Return a hex digest of what determines the image features: tower, weights, preprocessing, precision."""
        # Weights alone do not say it: a model and its -quickgelu twin load the same ones.
        tower = (self.backbone, repr(self.model.visual))
        about = repr((tower, asdict(self.preprocess_cfg), self.amp_dtype))
        if (kept := (self.tokens, self.token_grid, self.match_mpp)) != ("all", 0, False):
            about += repr(kept)
        return digest_of_weights(about, self.model.visual)

    def digest(self) -> str:
        """Return a hex digest of the image tower's weights and preprocessing, whatever the device and precision."""
        return digest_of_weights(repr(asdict(self.preprocess_cfg)), self.model.visual)


def parameters_of(clip: CLIP) -> dict[str, int]:
    """Return the number of parameters of the image tower and of the whole model."""
    image = sum(parameter.numel() for parameter in clip.model.visual.parameters())
    return {"image_parameters": image, "parameters": sum(parameter.numel() for parameter in clip.model.parameters())}


def images_per_second(clip: CLIP, images: torch.Tensor) -> float:
    """Return how many images (B, 3, S, S), uint8, the encoder passes in a second: the fastest of some passes."""
    seconds = []
    for _ in range(4):  # the first one prepares
        started = time.perf_counter()
        for values in clip.encode_images(images):
            values.cpu()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return len(images) / min(seconds)


def load_clip(
    backbone: str = OFFLINE_DEFAULT,
    pretrained: str = "",
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    tokens: str = "all",
    token_grid: int = 0,
    match_mpp: bool = False,
) -> CLIP:
    """Load a CLIP, frozen and in eval mode.

    Parameters
    ----------
    backbone : str
        A registered name such as `lite0-minilm` (the offline default), an open_clip model name such as
        `ViT-L-14-quickgelu`, `hf-hub:` and a repository, or `local-dir:` and a folder.
    pretrained : str
        For an open_clip name: a tag such as `openai`, or a weights file. Empty for the others.
    device : str
        `auto` (CUDA where there is one), or a torch device.
    precision : {"auto", "fp32", "amp"}
        `amp` autocasts to bfloat16, or to float16 on GPUs without bfloat16; `auto` is `amp` on CUDA, else `fp32`.
    compiled : bool
        Encode images through `torch.compile`: slow to start, features equal up to rounding. Needs a C++
        compiler on a CPU and Triton on CUDA.
    tokens, token_grid, match_mpp
        As in `CLIP`.

    Raises
    ------
    HistoCLIPError
        For an unknown name, tag, device or precision, for other `tokens` or a negative
        `token_grid`, for `pretrained` beside a backbone that takes none, and for
        weights that cannot be loaded; that message names the model, the file looked for and the offline default.

    Examples
    --------
    >>> clip = load_clip(device="cpu")
    >>> clip.encode_text(["a photo of a tumor"]).shape
    torch.Size([1, 384])
    """
    torch_device, amp_dtype = choose_compute(device, precision)
    if tokens not in TOKENS:
        raise HistoCLIPError(f"tokens: {tokens!r} is not known. Use one of {', '.join(TOKENS)}.")
    if token_grid < 0:
        raise HistoCLIPError(f"token_grid: {token_grid} is not a valid grid size. Use 7, or 0 to keep all tokens.")
    entry = encoder_entry(backbone, pretrained)
    if pretrained and not entry.takes_weights:
        raise HistoCLIPError(f"pretrained: {pretrained!r} has no meaning for {backbone}, which has its own weights.")
    model, tokenizer, preprocess_cfg = entry.load(backbone, pretrained)
    model.to(torch_device, memory_format=torch.channels_last).eval().requires_grad_(False)
    loaded = (model, tokenizer, preprocess_cfg, backbone, pretrained, torch_device, amp_dtype, compiled)
    return CLIP(*loaded, tokens, token_grid, match_mpp)
