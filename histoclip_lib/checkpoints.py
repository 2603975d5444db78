"""The state of an interrupted training, kept so that it ends as one that was not interrupted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from histoclip_lib.files import replacing
from histoclip_lib.head_files import require_shapes


def training_identity(
    head: torch.nn.Module, n_views: int, labels: np.ndarray, train: np.ndarray, options: dict[str, object]
) -> str:
    """Return what a checkpoint must agree in to be gone on with: options, labels, split, class matrix and features."""
    digest = hashlib.sha256(train.tobytes() + labels[train].tobytes())
    for buffer in head.buffers():  # the class matrix, and the mean and scale of the features
        digest.update(buffer.cpu().numpy().tobytes())
    return json.dumps({**options, **head.options, "views": n_views, "data": digest.hexdigest()}, sort_keys=True)


def save_checkpoint(
    path: Path,
    identity: str,
    head: torch.nn.Module,
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    history: list[dict],
) -> None:
    """Write the state of a training as safetensors: weights, optimiser, loss scaling and history.

    Parameters
    ----------
    path : Path
        The file.
    identity : str
        As `training_identity` returns.
    head : Module
        What is trained.
    optimizer : AdamW
        Its optimiser.
    scaler : GradScaler
        Its loss scaling.
    history : list of dict
        One entry for each finished epoch.
    """
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    about = {"identity": identity, "history": json.dumps(history), "scaler": json.dumps(scaler.state_dict())}
    with replacing(path) as temporary:
        save_file(state, temporary, about)


def load_checkpoint(
    path: Path, identity: str, head: torch.nn.Module, optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler
) -> list[dict]:
    """Load an interrupted training of the same identity and return its history.

    A file that is missing, damaged or of another training leaves all as it is and gives an empty history: training then
    starts anew.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("identity") != identity:
                return []
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        history, scales = json.loads(about["history"]), json.loads(about["scaler"])
        if not isinstance(history, list) or not all(isinstance(epoch, dict) for epoch in history):
            return []
        weights = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
        require_shapes(_shapes(weights), _shapes(head.state_dict()))
        moments = optimizer.state_dict()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                expected = () if key == "step" else tuple(parameters[int(number)].shape)
                require_shapes({name: tuple(value.shape)}, {name: expected})
                moments["state"].setdefault(int(number), {})[key] = value
        scaler.load_state_dict(scales)
        optimizer.load_state_dict(moments)
        head.load_state_dict(weights)
    except (FileNotFoundError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError):
        return []
    return history


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}
