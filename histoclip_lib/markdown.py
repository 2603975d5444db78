"""Text from users in Markdown."""

from __future__ import annotations

import re


def as_typed(text: str) -> str:
    """Return text as inline code in Markdown, whatever it contains; only its line breaks become spaces."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(len(run) for run in re.findall("`*", text)))
    return f"{fence} {text} {fence}"
