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
    """Load an interrupted training of the same identity and return its history; else leave all as it is."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (FileNotFoundError, SafetensorError):
        return []
    if about["identity"] != identity:
        return []
    head.load_state_dict({name[5:]: value for name, value in state.items() if name.startswith("head.")})
    saved = optimizer.state_dict()
    for name, value in state.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            saved["state"].setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(saved)
    scaler.load_state_dict(json.loads(about["scaler"]))
    return json.loads(about["history"])
