"""Dropout with masks that are drawn fast."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def dropout(values: torch.Tensor, p: float, training: bool = True) -> torch.Tensor:
    """Set values to 0 with probability p and divide the others by 1 - p, as `torch.nn.functional.dropout`.

    On a CPU PyTorch draws its mask number by number, which takes longer than the products around it. Here one random
    byte decides on each value, so p is rounded to a 256th; the expectation stays what it was.

    Parameters
    ----------
    values : tensor
        Of any shape.
    p : float
        From 0 to 1, exclusive.
    training : bool
        Otherwise the values are returned as they are.
    """
    dropped = min(round(256 * p), 255)
    if not training or not dropped:
        return values
    if values.device.type != "cpu":
        return functional.dropout(values, p)
    words = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= dropped
    return values * kept.to(values.dtype).mul_(256 / (256 - dropped))


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Drop some of the values in training."""
        return dropout(values, self.p, self.training)
