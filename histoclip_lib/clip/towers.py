"""Image towers, run once for the pooled embedding and the projected patch tokens; CNNs through ONNX Runtime."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import AttentionalPooler, VisionTransformer
from torch import nn

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import replacing


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


class ClassTokenViT(nn.Module):
    """A ViT of timm, its class token projected by a head; patch tokens are projected by the same head.

    Parameters
    ----------
    trunk : nn.Module
        A `VisionTransformer` of timm with a class token, register tokens or none behind it, and a final norm that
        comes before any pooling.
    head : nn.Module or None
        From the width of the trunk to the joint space; None leaves the tokens as they are.
    with_mean : bool
        Whether the mean of the patch tokens follows the class token in the embedding, which is twice as wide then. A
        patch token is written twice: an image of this token alone would have it as class token and as mean.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module | None = None, with_mean: bool = False) -> None:
        super().__init__()
        self.trunk, self.head, self.with_mean = trunk, head or nn.Identity(), with_mean

    def pooled_and_tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From normalised images (B, 3, S, S) to the embedding (B, d) and patch tokens (B, L, d)."""
        hidden = self.trunk.forward_features(images)  # (B, prefix + L, width)
        first, patches = hidden[:, 0], hidden[:, self.trunk.num_prefix_tokens :]
        if self.with_mean:
            first, patches = torch.cat([first, patches.mean(dim=1)], dim=-1), torch.cat([patches, patches], dim=-1)
        return self.head(first), self.head(patches)


class AttentionPooledViT(nn.Module):
    """A ViT of timm whose tokens one learned query asks, with a norm and a projection behind it, as in CONCH.

    A patch token is what the pooler makes of this token alone. Its softmax is 1 then, and what is left is the value
    path. Up to the norm, which is not linear, the value paths of the tokens, the class token's too, add up to the
    pooled embedding when each head weights its part by its attention.

    Parameters
    ----------
    trunk : nn.Module
        A `VisionTransformer` of timm, of width w.
    joint : int
        Width d of the joint space.
    heads : int
        Of the pooler.
    """

    def __init__(self, trunk: nn.Module, joint: int, heads: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionalPooler(joint, trunk.num_features, heads, n_queries=1)
        self.ln_contrast = nn.LayerNorm(joint)
        self.proj_contrast = nn.Parameter(torch.zeros(joint, joint))

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """From the tokens that the query sees (B, N, w) to the joint space (B, d)."""
        return self.ln_contrast(self.attn_pool_contrast(tokens)[:, 0]) @ self.proj_contrast

    def pooled_and_tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From normalised images (B, 3, S, S) to the embedding (B, d) and patch tokens (B, L, d)."""
        hidden = self.trunk.forward_features(images)  # (B, prefix + L, w)
        patches = hidden[:, self.trunk.num_prefix_tokens :]
        return self.project(hidden), one_by_one(self.project, patches)


class Dinov2Tower(nn.Module):
    """A DINOv2 of transformers without register tokens; its class token is the embedding.

    Parameters
    ----------
    dinov2 : nn.Module
        `Dinov2Model`.
    """

    def __init__(self, dinov2: nn.Module) -> None:
        super().__init__()
        self.dinov2 = dinov2

    def pooled_and_tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From normalised images (B, 3, S, S) to the embedding (B, d) and patch tokens (B, L, d)."""
        hidden = self.dinov2(pixel_values=images).last_hidden_state  # (B, 1 + L, d), behind the final norm
        return hidden[:, 0], hidden[:, 1:]


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
        `model.visual` of an open_clip model; or any module with a method `pooled_and_tokens` that returns what this
        function does.
    images : tensor of shape (B, 3, S, S)
        Preprocessed.

    Returns
    -------
    pooled : tensor of shape (B, d)
    tokens : tensor of shape (B, L, d)
    """
    if hasattr(visual, "pooled_and_tokens"):  # a tower of another library that knows its own tokens
        return visual.pooled_and_tokens(images)
    if isinstance(visual, VisionTransformer):
        found = visual.forward_intermediates(images, indices=1, output_fmt="NLC")
        tokens = found["image_intermediates"][0]
        if visual.attn_pool is None:
            tokens = visual.ln_post(tokens)
        else:  # each token as a sequence of one
            tokens = visual.ln_post(one_by_one(lambda one: visual.attn_pool(one)[:, -1], tokens))
        return found["image_features"], tokens if visual.proj is None else tokens @ visual.proj
    if isinstance(visual, ModifiedResNet):
        found, pool = visual.forward_intermediates(images, indices=1), visual.attnpool
        cells = found["image_intermediates"][0].flatten(2).transpose(1, 2)
        return found["image_features"], pool.c_proj(pool.v_proj(cells))
    if isinstance(visual, TimmModel):
        hidden = visual.trunk.forward_features(images)
        pooled = visual.head(visual.trunk.forward_head(hidden))
        if hidden.ndim == 4:  # (B, C, h, w), or (B, h, w, C) in towers that say so
            if getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC":
                hidden = hidden.permute(0, 3, 1, 2)
            return pooled, _cnn_tokens(visual, hidden)
        prefix = visual.trunk.num_prefix_tokens
        return pooled, one_by_one(
            lambda sequence: visual.head(visual.trunk.forward_head(sequence)),
            hidden[:, prefix:],
            copies=prefix + 1,
        )
    raise HistoCLIPError(f"backbone: image towers of type {type(visual).__name__} give no patch tokens here.")


def corrected_tokens(visual: nn.Module, images: torch.Tensor) -> torch.Tensor | None:
    """Return patch tokens (B, L, d) with the last block of a ViT corrected as in ClearCLIP; None for other towers.

    The last block is reduced to its attention, without residual and feed-forward network, and queries are compared with
    each other in place of the keys; then final norm and projection as always. The dense similarity of such tokens with
    text is cleaner than that of the tower's own.

    Parameters
    ----------
    visual : nn.Module
        `model.visual` of an open_clip model.
    images : tensor of shape (B, 3, S, S)
        Preprocessed.

    References
    ----------
    Lan et al., ClearCLIP: decomposing CLIP representations for dense vision-language inference, ECCV 2024.
    """
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
        return None
    block = visual.transformer.resblocks[-1]
    if not isinstance(block.attn, nn.MultiheadAttention):
        return None
    found = visual.forward_intermediates(
        images, indices=2, output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
    )
    before = torch.cat([found["image_intermediates_prefix"][0], found["image_intermediates"][0]], dim=1)
    mha = block.attn
    projected = nn.functional.linear(block.ln_1(before), mha.in_proj_weight, mha.in_proj_bias)
    query, _, value = projected.unflatten(2, (3, mha.num_heads, mha.head_dim)).permute(
        2, 0, 3, 1, 4
    )  # (B, heads, L, c)
    mixed = nn.functional.scaled_dot_product_attention(query, query, value).transpose(1, 2).flatten(2)
    tokens = visual.ln_post(mha.out_proj(mixed)[:, found["image_intermediates_prefix"][0].shape[1] :])
    return tokens if visual.proj is None else tokens @ visual.proj


def _cnn_tokens(visual: TimmModel, feature_map: torch.Tensor) -> torch.Tensor:
    """Return the joint embeddings of the cells of a feature map (B, C, h, w), shape (B, h * w, d)."""
    batch, channels, height, width = feature_map.shape
    cells = feature_map.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
    if getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC":
        cells = cells.permute(0, 2, 3, 1)
    return visual.head(visual.trunk.forward_head(cells)).reshape(batch, height * width, -1)


def one_by_one(project: Callable, tokens: torch.Tensor, copies: int = 1) -> torch.Tensor:
    """Project each token (B, L, w) as a sequence of `copies` of itself: prefix and patch positions hold the same."""
    batch, length, width = tokens.shape
    sequences = tokens.reshape(batch * length, 1, width).expand(-1, copies, -1)
    return project(sequences).reshape(batch, length, -1)


NEEDED = ("onnxruntime", "onnx", "onnxscript")
TOLERANCE = 1e-4  # relative to the features of eager PyTorch

Features = tuple[torch.Tensor, torch.Tensor]  # pooled (B, d) and tokens (B, L, d)


def onnx_tower(tower: nn.Module, size: tuple[int, int], folder: Path) -> Callable[[torch.Tensor], Features] | None:
    """Return a function that computes `tower` on the CPU, or None.

    The first call exports the tower and keeps the file; a file that cannot be read is made again.

    Parameters
    ----------
    tower : nn.Module
        In eval mode and float32; from uint8 images to pooled features and tokens.
    size : tuple of int
        Height and width of the images, in pixels.
    folder : Path
        Where exported towers are kept.

    Returns
    -------
    callable or None
        From uint8 images (B, 3, H, W) to pooled features (B, d) and tokens (B, L, d). None where ONNX Runtime is not
        installed (`pip install histoclip[cpu]`), the tower cannot be exported, or its features differ from those of
        PyTorch by more than TOLERANCE: then PyTorch does it.
    """
    if not all(importlib.util.find_spec(name) for name in NEEDED):
        return None
    example = torch.randint(256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = folder / f"{_digest(tower, size)}.onnx"
    try:
        run = _session(path) if path.is_file() else None
        if run is not None:
            with suppress(OSError):  # a cache that others own can still be read
                path.touch()  # when it was last used
        if run is None:
            _export(tower, example[:1], path)
            run = _session(path)
    except Exception as error:  # the exporter and the runtime raise many kinds; PyTorch can do what they cannot
        logging.getLogger(__name__).info("no ONNX tower: %s", error)
        return None
    return run if run is not None and _agree(run(example), tower, example) else None


@torch.inference_mode()
def _agree(found: Features, tower: nn.Module, images: torch.Tensor) -> bool:
    return all(
        one.shape == other.shape and (one - other).norm() <= TOLERANCE * other.norm()
        for one, other in zip(found, tower(images), strict=True)
    )


def _digest(tower: nn.Module, size: tuple[int, int]) -> str:
    return digest_of_weights(repr((tower, size, torch.__version__)), tower)[:32]


def digest_of_weights(about: str, module: nn.Module) -> str:
    """Return a hex digest of a text, and of the names and values of a module's parameters and buffers."""
    digest = hashlib.sha256(about.encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _export(tower: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write a tower that takes images (1, 3, H, W) like the example."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own parts
        program = torch.onnx.export(tower, (example,), dynamo=True, verbose=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(program.model_proto.SerializeToString())


def _session(path: Path) -> Callable[[torch.Tensor], Features] | None:
    """Return a function that runs an exported tower; None where the file is damaged.

    Each image is a run of its own, on one of as many threads as there are cores: its feature maps stay in that core's
    cache, no core waits for another between two layers, and its features do not depend on its neighbours in the batch.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None
    [images] = session.get_inputs()
    pool = ThreadPoolExecutor(torch.get_num_threads())

    def encode(image: np.ndarray) -> list[np.ndarray]:
        return session.run(None, {images.name: image})

    def run(batch: torch.Tensor) -> Features:
        pooled, tokens = zip(*pool.map(encode, batch.contiguous().numpy()[:, None]), strict=True)
        return torch.from_numpy(np.concatenate(pooled)), torch.from_numpy(np.concatenate(tokens))

    return run
