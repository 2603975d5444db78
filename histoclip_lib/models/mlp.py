"""A two-layer perceptron of the head's size: what the same number of parameters does without text or attention."""

from __future__ import annotations

import torch
from torch import nn

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.models.cmm import CMM, ScaledHead


class MLP(ScaledHead):
    """Linear, GELU, dropout, linear, on centred pooled features; `training.train_head` fits it like a CMM.

    Parameters
    ----------
    width : int
        Features d.
    n_classes : int
        N.
    n_parameters : int
        About how many to have: the hidden width is (n_parameters - N) / (d + 1 + N), rounded.
    dropout : float
        Dropout of the hidden layer.

    Raises
    ------
    HistoCLIPError
        If so few parameters leave no hidden unit.
    """

    def __init__(self, width: int, n_classes: int, n_parameters: int, dropout: float = 0.3) -> None:
        super().__init__(width)
        hidden = round((n_parameters - n_classes) / (width + 1 + n_classes))
        if hidden < 1:
            raise HistoCLIPError(
                f"n_parameters: {n_parameters} are too few for {width} features and {n_classes} classes. Use at least "
                f"{width + 1 + 2 * n_classes}."
            )
        self.options = {"width": width, "n_classes": n_classes, "n_parameters": n_parameters, "dropout": dropout}
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, n_classes)
        )

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Score images: from pooled features (B, 1, d) to logits (B, N); there is no attention."""
        features = (tokens.squeeze(1).to(self.token_mean.dtype) - self.token_mean) / self.token_scale  # (B, d)
        return self.layers(features), None


def mlp_like(head: CMM) -> MLP:
    """Return a fresh MLP with the number of parameters, classes, features, dropout and feature scale of a head."""
    n_classes, width = head.unit_queries.shape
    mlp = MLP(width, n_classes, sum(p.numel() for p in head.parameters()), head.options["dropout"])
    mlp.token_mean.copy_(head.token_mean)
    mlp.token_scale.copy_(head.token_scale)
    return mlp
