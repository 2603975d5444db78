"""Weights files: read without running code that they may hold, and given to a module whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from histoclip_lib.common.errors import HistoCLIPError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file by name, on the CPU.

    Parameters
    ----------
    path : Path
        A `.safetensors` file, or one of `torch.save`, of which nothing but tensors is read. Tensors below a key
        `state_dict`, `model` or `module`, and names that begin with `module.`, are those of training scripts.

    Raises
    ------
    HistoCLIPError
        If the file cannot be read, or holds something else.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # neither reader documents what it raises
        raise HistoCLIPError(
            f"{path}: the weights cannot be read ({type(error).__name__}: {str(error).strip()[:200]}). Fetch the file "
            "again."
        ) from error
    for key in ("state_dict", "model", "module"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise HistoCLIPError(f"{path}: this file does not contain a state dict. Use the file that the publisher gives.")
    return {name.removeprefix("module."): value for name, value in state.items()}


def fill(module: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Give a module its weights.

    Parameters
    ----------
    module : nn.Module
    weights : dict of str to tensor
        Of every parameter and buffer of the module, and no other.
    path : Path
        Where they come from, for the message.

    Raises
    ------
    HistoCLIPError
        If one is missing, has another shape or has no place; the message names the first ones.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise _no_fit(path, str(error)) from error


def transformers_model(
    kind: type[PreTrainedModel], config: PretrainedConfig, weights: dict[str, torch.Tensor], path: Path
) -> PreTrainedModel:
    """Return a model of transformers with its weights, in float32.

    Parameters
    ----------
    kind, config
        Class and configuration of the model.
    weights : dict of str to tensor
        Of the whole model, under the names that its class has or had: transformers knows its old ones.
    path : Path
        Where they come from, for the message.

    Raises
    ------
    HistoCLIPError
        If one is missing, has another shape or has no place; the message names the first ones.
    """
    import torch

    with silent_transformers():
        try:
            model, found = kind.from_pretrained(
                None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
            )
        except RuntimeError as error:  # other shapes
            raise _no_fit(path, str(error)) from error
    if any(found.values()):
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        raise _no_fit(path, "; ".join(f"{one}: {sorted(map(str, found[one]))}" for one in kinds if found.get(one)))
    return model


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Keep back the progress bars and reports of transformers; what does not fit is an error here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _no_fit(path: Path, reasons: str) -> HistoCLIPError:
    reasons = " ".join(reasons.split())
    return HistoCLIPError(
        f"{path}: these are not the weights of this model. {reasons[:400]}{'...' if len(reasons) > 400 else ''}\n"
        "Use the file that the publisher gives."
    )
