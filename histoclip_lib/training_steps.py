"""One step of the training: loss, gradient and update, in two halves where the device's memory is too small."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn import functional

from histoclip_lib.errors import HistoCLIPError


class TrainingStep:
    """Takes batches and updates a head.

    Parameters
    ----------
    head : Module
        From tokens (B, L, d) to a pair whose first is the logits (B, N).
    optimizer : Optimizer
        Of its parameters.
    scaler : GradScaler
        Scales the loss for float16; may be disabled.
    amp_dtype : torch.dtype or None
        Autocast type.
    compiled : bool
        Run the loss through `torch.compile`, on CUDA as a captured graph.
    """

    def __init__(
        self,
        head: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        amp_dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.head, self.optimizer, self.scaler, self.amp_dtype = head, optimizer, scaler, amp_dtype
        self.parts = 1
        self.loss = bce_loss
        if compiled:
            on_cuda = next(head.parameters()).device.type == "cuda"
            self.loss = torch.compile(bce_loss, mode="reduce-overhead" if on_cuda else None, dynamic=False)

    def __call__(self, tokens: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Update the head on tokens (B, L, d) and labels (B, N) from 0 to 1; return the loss, a scalar.

        When the device's memory does not suffice, this batch and all later ones are taken in two halves whose gradients
        are added: the update is that of the whole batch, dropout aside, which is drawn for each half.

        Raises
        ------
        HistoCLIPError
            If the memory does not suffice for half a batch either; the head has not been changed.
        """
        try:
            loss = self._gradient(tokens, truth)
        except torch.OutOfMemoryError as error:
            if self.parts > 1 or len(tokens) == 1:
                raise HistoCLIPError(
                    f"batch_size: half a batch of {len(tokens)} patches with {tokens.shape[1]} tokens each does not "
                    "fit in the device's memory. Lower batch_size, raise token_dropout, or set device: cpu."
                ) from error
            self.parts = 2
            loss = None
        if loss is None:  # out of the handler, whose traceback holds the tensors of the first try
            warnings.warn(
                f"A batch of {len(tokens)} patches does not fit in the device's memory: batches are taken in two "
                "halves from here on. The result is the same; a smaller batch_size would be another training.",
                stacklevel=2,
            )
            torch.cuda.empty_cache()
            return self(tokens, truth)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _gradient(self, tokens: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        total = 0
        for part, labels in zip(tokens.chunk(self.parts), truth.chunk(self.parts), strict=True):
            loss = self.loss(self.head, part, labels, self.amp_dtype) * (len(part) / len(tokens))
            self.scaler.scale(loss).backward()
            total = total + loss.detach()
        return total


def bce_loss(head: nn.Module, tokens: torch.Tensor, truth: torch.Tensor, amp_dtype: torch.dtype | None) -> torch.Tensor:
    """Return eq. (5), the binary cross-entropy of sigma(logit), as a scalar."""
    with torch.autocast(tokens.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        logits, _ = head(tokens)
    return functional.binary_cross_entropy_with_logits(logits.float(), truth)


def some_tokens(tokens: torch.Tensor, dropout: float) -> torch.Tensor:
    """Return a random part of the tokens (B, L, d) of each patch; at least one."""
    length, width = tokens.shape[1:]
    kept = max(1, round(length * (1 - dropout)))
    if kept == length:
        return tokens
    chosen = torch.rand(tokens.shape[:2], device=tokens.device).argsort(dim=1)[:, :kept]
    chosen += length * torch.arange(len(tokens), device=tokens.device)[:, None]  # counted over all patches
    return tokens.flatten(0, 1).index_select(0, chosen.flatten()).view(-1, kept, width)


def not_finite(head: nn.Module) -> list[str]:
    """Return the names of the parameters that hold a value which is not finite."""
    found = torch.stack([parameter.detach().isfinite().all() for parameter in head.parameters()]).tolist()
    return [name for (name, _), finite in zip(head.named_parameters(), found, strict=True) if not finite]
