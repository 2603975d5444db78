"""A convolutional image tower through ONNX Runtime, which on a CPU is several times faster than eager PyTorch."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from histoclip_lib.files import replacing

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
            _export(tower, example, path)
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
    digest = hashlib.sha256(repr((tower, size, torch.__version__)).encode())
    for name, value in tower.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _export(tower: nn.Module, example: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own parts
        program = torch.onnx.export(
            tower,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
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
