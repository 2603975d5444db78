"""A convolutional image trunk through ONNX Runtime, which on a CPU is several times faster than eager PyTorch."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from histoclip_lib.files import replacing

NEEDED = ("onnxruntime", "onnx", "onnxscript")
TOLERANCE = 1e-4  # relative to the features of eager PyTorch


def onnx_trunk(trunk: nn.Module, size: tuple[int, int], folder: Path) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return a function that computes `trunk.forward_features` on the CPU, or None.

    The first call exports the trunk and keeps the file; a file that cannot be read is made again.

    Parameters
    ----------
    trunk : nn.Module
        Of timm, in eval mode and float32; its `forward_features` gives a feature map (B, C, h, w).
    size : tuple of int
        Height and width of the images, in pixels.
    folder : Path
        Where exported trunks are kept.

    Returns
    -------
    callable or None
        From images (B, 3, H, W) to feature maps (B, C, h, w). None where ONNX Runtime is not installed
        (`pip install histoclip[cpu]`), the trunk is no CNN or cannot be exported, or its features differ from those of
        PyTorch by more than TOLERANCE: then PyTorch does it.
    """
    if not all(importlib.util.find_spec(name) for name in NEEDED):
        return None
    example = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = trunk.forward_features(example)
    if expected.ndim != 4 or getattr(trunk, "output_fmt", "NCHW") != "NCHW":
        return None  # a transformer, left to PyTorch
    path = folder / f"{_digest(trunk, size)}.onnx"
    try:
        run = _session(path) if path.is_file() else None
        if run is None:
            _export(trunk, example, path)
            run = _session(path)
    except Exception as error:  # the exporter and the runtime raise many kinds; PyTorch can do what they cannot
        logging.getLogger(__name__).info("no ONNX trunk: %s", error)
        return None
    if run is None or (run(example) - expected).norm() > TOLERANCE * expected.norm():
        return None
    return run


def _digest(trunk: nn.Module, size: tuple[int, int]) -> str:
    digest = hashlib.sha256(repr((trunk, size, torch.__version__)).encode())
    for name, value in trunk.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


class _Features(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.trunk.forward_features(images)


def _export(trunk: nn.Module, example: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own parts
        program = torch.onnx.export(
            _Features(trunk).eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(program.model_proto.SerializeToString())


def _session(path: Path) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return a function that runs an exported trunk; None where the file is damaged."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None
    [images] = session.get_inputs()

    def run(batch: torch.Tensor) -> torch.Tensor:
        [features] = session.run(None, {images.name: batch.contiguous().numpy()})
        return torch.from_numpy(features)

    return run
