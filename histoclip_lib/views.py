"""The eight flips and rotations of a patch."""

from __future__ import annotations

import torch


def view_of(images: torch.Tensor, view: int) -> torch.Tensor:
    """Return one of the eight flips and rotations of square images (..., S, S); view 0 is the image itself."""
    turned = torch.rot90(images, view % 4, dims=(-2, -1)) if view % 4 else images
    return turned.flip(-1) if view >= 4 else turned


def undo_view(images: torch.Tensor, view: int) -> torch.Tensor:
    """Turn what was computed on a view, (..., S, S), back to where it lies in the image."""
    upright = images.flip(-1) if view >= 4 else images
    return torch.rot90(upright, -(view % 4), dims=(-2, -1))
