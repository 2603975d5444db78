"""What text towers of several families share: prompts to token ids of a fixed length, and two towers as one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Block
from tokenizers import Tokenizer
from torch import nn


class Towers(nn.Module):
    """An image tower and a text tower with one joint space.

    Parameters
    ----------
    visual : nn.Module
        As `histoclip_lib.clip.towers.image_features` takes it.
    text : nn.Module or None
        From token ids (P, context length) to embeddings (P, d); None for a model of images alone.

    Attributes
    ----------
    logit_scale : nn.Parameter of shape ()
        Logarithm of the factor on cosines before a softmax; only with `text`.
    """

    def __init__(self, visual: nn.Module, text: nn.Module | None = None) -> None:
        super().__init__()
        self.visual, self.text = visual, text
        if text is not None:
            self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_text(self, token_ids: torch.Tensor) -> torch.Tensor:
        """From token ids (P, context length) to embeddings (P, d), not normalised."""
        return self.text(token_ids)


class BertText(nn.Module):
    """A BERT of transformers whose pooler gives the embedding, as in KEEP.

    Parameters
    ----------
    bert : nn.Module
        `BertModel`.
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """From token ids (P, L) to embeddings (P, d)."""
        token_ids, used = without_padding(token_ids, self.bert.config.pad_token_id)
        return self.bert(input_ids=token_ids, attention_mask=used.long()).pooler_output


class BlocksText(nn.Module):
    """Blocks of a ViT that read text, whose first token is projected by a head: the text branch of a BEiT-3.

    Parameters
    ----------
    vocabulary, positions : int
        How many tokens there are, and how many places in a prompt.
    blocks : sequence of Block
        Of width w.
    norm, head : nn.Module
        Behind the last block; from w to the joint space.
    padding : int
        The token that fills short prompts. No other token attends to it.
    """

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        blocks: Sequence[Block],
        norm: nn.Module,
        head: nn.Module,
        padding: int,
    ) -> None:
        super().__init__()
        width = head.in_features
        self.embedding, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.blocks, self.norm, self.head, self.padding = nn.ModuleList(blocks), norm, head, padding

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """From token ids (P, L) to embeddings (P, d)."""
        token_ids, used = without_padding(token_ids, self.padding)
        hidden = self.embedding(token_ids) + self.positions.weight[: token_ids.shape[1]]  # (P, L, w)
        mask = torch.zeros(used.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~used, -torch.inf)
        for block in self.blocks:
            hidden = block(hidden, attn_mask=mask[:, None, None])
        return self.head(self.norm(hidden[:, 0]))


def fixed_length(tokenizer: Tokenizer, length: int, padding: str) -> Callable[[list[str]], torch.Tensor]:
    """Return a function from P prompts to token ids (P, length).

    Parameters
    ----------
    tokenizer : Tokenizer
        With the special tokens that its model wants.
    length : int
        Longer prompts lose their end, not their last special token.
    padding : str
        The token that fills shorter ones.
    """
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(padding), pad_token=padding)
    return partial(_token_ids, tokenizer)


def _token_ids(tokenizer: Tokenizer, prompts: list[str]) -> torch.Tensor:
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(prompts)])


def without_padding(token_ids: torch.Tensor, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids (P, L) up to the end of the longest prompt, and which of them (P, L) are not padding."""
    used = token_ids != padding
    longest = int(used.sum(dim=1).max())
    return token_ids[:, :longest], used[:, :longest]
