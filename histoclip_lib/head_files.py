"""What the file of a head says of itself, held to what it holds: whoever made it need not be trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from histoclip_lib.errors import shown

COUNTS, OTHERS = ("heads", "layers", "hidden"), ("dropout", "pre_norm")


@dataclass(frozen=True)
class About:
    """What a file says: the options to build its head with, and for which classes and backbone it was trained."""

    options: dict[str, object]
    classes: list[str]
    backbone: str


def read_about(metadata: dict[str, str]) -> About:
    """Return what the metadata of a file says.

    Raises
    ------
    LookupError, ValueError, RecursionError
        If something is missing or is not what `cmm.save_cmm` writes.
    """
    options, classes = json.loads(metadata["options"]), json.loads(metadata["classes"])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes: {shown(classes)} is no list of names")
    if not isinstance(options, dict) or not {*COUNTS, "dropout"} <= set(options) <= {*COUNTS, *OTHERS}:
        raise ValueError(f"options: {shown(options)}, expected are {', '.join((*COUNTS, *OTHERS))}")
    wrong = [name for name in COUNTS if type(options[name]) is not int or options[name] < 1]
    wrong += ["dropout"] if type(options["dropout"]) not in (int, float) or not 0 <= options["dropout"] < 1 else []
    wrong += ["pre_norm"] if type(options.get("pre_norm", True)) is not bool else []
    if wrong:
        raise ValueError("; ".join(f"the option {name} is {shown(options[name])}" for name in wrong))
    return About(options, classes, metadata["backbone"])


def require_layers(about: About, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError where a file has another number of classes or layers than it says."""
    stored = shapes.get("class_embeddings", ())
    if len(stored) != 2 or stored[0] != len(about.classes):
        raise ValueError(f"class_embeddings has the shape {stored}, for {len(about.classes)} classes")
    layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
    if len(layers) != about.options["layers"]:
        raise ValueError(f"{len(layers)} layers are stored, the option layers is {about.options['layers']}")


def require_shapes(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError, naming both sides, where the tensors of a file are not those that are expected."""
    wrong = [
        f"{name}: {found.get(name, 'nothing')} in the file, {expected.get(name, 'nothing')} expected"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def require_finite(state: dict[str, torch.Tensor]) -> None:
    """Raise ValueError, naming them, where tensors hold infinities or what is no number."""
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{', '.join(broken)}: not all numbers are finite")
