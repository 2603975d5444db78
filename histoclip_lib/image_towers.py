"""Image towers of open_clip run once for both: the pooled embedding and the projected patch tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from histoclip_lib.errors import HistoCLIPError


class ImageTower(nn.Module):
    """An open_clip image tower from pixels to the output of `image_features`, normalisation included.

    Parameters
    ----------
    visual : nn.Module
        `model.visual` of an open_clip model.
    mean, std : sequence of 3 floats
        Of the channels, as the tower's preprocessing has them (pixels from 0 to 1).
    """

    def __init__(self, visual: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """From uint8 pixels (B, 3, S, S) to what the tower's preprocessing makes of them."""
        return (pixels.float() / 255 - self.mean) / self.std

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From uint8 pixels (B, 3, S, S) to pooled features (B, d) and tokens (B, L, d)."""
        return image_features(self.visual, self.normalize(pixels))


def is_convolutional(visual: nn.Module) -> bool:
    """Whether a tower is a CNN of timm with channels first; transformers are left to PyTorch."""
    if not isinstance(visual, TimmModel) or getattr(visual.trunk, "output_fmt", "NCHW") != "NCHW":
        return False
    return not hasattr(visual.trunk, "num_prefix_tokens")


def image_features(visual: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run an open_clip image tower once, for the pooled embedding and the projected patch tokens.

    A patch token is projected as the tower would project an image that consists of this token alone: the tower's own
    final norm, pooling and projection are applied to it. For an average-pooled CNN the mean of the tokens is then
    the pooled embedding; for a ViT this is `ln_post` and `proj`; for attention pooling it is the value path
    (MaskCLIP, Zhou et al. 2022).

    Parameters
    ----------
    visual : nn.Module
        `model.visual` of an open_clip model.
    images : tensor of shape (B, 3, S, S)
        Preprocessed.

    Returns
    -------
    pooled : tensor of shape (B, d)
    tokens : tensor of shape (B, L, d)
    """
    if isinstance(visual, VisionTransformer):
        hidden = visual.transformer(visual._embeds(images))  # (B, 1 + L, width)

        def project(sequence: torch.Tensor) -> torch.Tensor:
            pooled = visual._pool(sequence)[0]
            return pooled if visual.proj is None else pooled @ visual.proj

        return project(hidden), _one_by_one(project, hidden[:, 1:], copies=2)
    if isinstance(visual, ModifiedResNet):
        feature_map = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
        pool = visual.attnpool
        return pool(feature_map), pool.c_proj(pool.v_proj(feature_map.flatten(2).transpose(1, 2)))
    if isinstance(visual, TimmModel):
        hidden = visual.trunk.forward_features(images)
        pooled = visual.head(visual.trunk.forward_head(hidden))
        if hidden.ndim == 4:  # (B, C, h, w), or (B, h, w, C) in towers that say so
            if getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC":
                hidden = hidden.permute(0, 3, 1, 2)
            return pooled, _cnn_tokens(visual, hidden)
        prefix = visual.trunk.num_prefix_tokens
        return pooled, _one_by_one(
            lambda sequence: visual.head(visual.trunk.forward_head(sequence)),
            hidden[:, prefix:],
            copies=prefix + 1,
        )
    raise HistoCLIPError(f"backbone: image towers of type {type(visual).__name__} give no patch tokens here.")


def _cnn_tokens(visual: TimmModel, feature_map: torch.Tensor) -> torch.Tensor:
    """Return the joint embeddings of the cells of a feature map (B, C, h, w), shape (B, h * w, d)."""
    batch, channels, height, width = feature_map.shape
    cells = feature_map.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
    if getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC":
        cells = cells.permute(0, 2, 3, 1)
    return visual.head(visual.trunk.forward_head(cells)).reshape(batch, height * width, -1)


def _one_by_one(project: Callable, tokens: torch.Tensor, copies: int) -> torch.Tensor:
    """Project each token as a sequence of `copies` of itself, so that prefix and patch positions hold the same."""
    batch, length, width = tokens.shape
    sequences = tokens.reshape(batch * length, 1, width).expand(-1, copies, -1)
    return project(sequences).reshape(batch, length, -1)
