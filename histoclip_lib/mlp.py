"""A two-layer perceptron of the head's size: what as many parameters reach without text and without attention."""

from __future__ import annotations

import torch
from torch import nn

from histoclip_lib.cmm import CMM
from histoclip_lib.errors import HistoCLIPError


class MLP(nn.Module):
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

    Attributes
    ----------
    token_mean, token_scale : tensor of shape (d,) and ()
        Taken from the features, and by which they are then divided, as in `CMM`.

    Raises
    ------
    HistoCLIPError
        If so few parameters leave no hidden unit.
    """

    def __init__(self, width: int, n_classes: int, n_parameters: int, dropout: float = 0.3) -> None:
        super().__init__()
        hidden = round((n_parameters - n_classes) / (width + 1 + n_classes))
        if hidden < 1:
            raise HistoCLIPError(
                f"n_parameters: {n_parameters} are too few for {width} features and {n_classes} classes. Use at least "
                f"{width + 1 + 2 * n_classes}."
            )
        self.options = {"width": width, "n_classes": n_classes, "n_parameters": n_parameters, "dropout": dropout}
        self.register_buffer("token_mean", torch.zeros(width))
        self.register_buffer("token_scale", torch.ones(()))
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, n_classes)
        )

    def fit_scale(self, features: torch.Tensor) -> None:
        """Centre training features (..., d) and give them unit variance over all dimensions together."""
        flat = features.float().flatten(0, -2)
        self.token_mean.copy_(flat.mean(dim=0))
        self.token_scale.copy_((flat - self.token_mean).square().mean().sqrt().clamp_min(1e-6))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Score images: from pooled features (B, 1, d) to logits (B, N); there is no attention."""
        features = (tokens.squeeze(1).to(self.token_mean.dtype) - self.token_mean) / self.token_scale
        return self.layers(features), None


def mlp_like(head: CMM) -> MLP:
    """Return a fresh MLP with the number of parameters, the classes, the features and the dropout of a head."""
    n_classes, width = head.class_embeddings.shape
    return MLP(width, n_classes, sum(p.numel() for p in head.parameters()), head.options["dropout"])
