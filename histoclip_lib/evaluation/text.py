"""How numbers are written in tables and sentences; a dash stands for what is not defined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histoclip_lib.evaluation.uncertainty import Difference

UNDEFINED = "—"


def number_text(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits after the point."""
    return UNDEFINED if value is None or np.isnan(value) else f"{value:.{digits}f}"


def state_text(label: float) -> str:
    """Return a label in words."""
    return "not known" if np.isnan(label) else "present" if label else "absent"


def range_text(interval: Sequence[float] | None) -> str:
    """Return both ends of an interval; an empty string without one."""
    return "" if interval is None else f"{interval[0]:.3f} – {interval[1]:.3f}"


def value_text(gap: Difference, sign: str = "") -> str:
    """Return a value and its interval, as `0.412 (0.377 to 0.448)`; `sign` `+` puts one before every number."""
    if np.isnan([gap.value, gap.low, gap.high]).any():
        return UNDEFINED
    return f"{gap.value:{sign}.3f} ({gap.low:{sign}.3f} to {gap.high:{sign}.3f})"


def signed_text(gap: Difference) -> str:
    """Return a difference with its sign and its interval, as `+0.012 (-0.004 to +0.027)`."""
    return value_text(gap, "+")


def p_text(p: float) -> str:
    """Return a p value with three decimals below 0.1 and two above, `< 0.001` or `1`."""
    if np.isnan(p):
        return UNDEFINED
    if p > 0.995:
        return "1"
    return "< 0.001" if p < 0.001 else f"{p:.{3 if p < 0.1 else 2}f}"


def p_clause(p: float) -> str:
    """Return a p value for a sentence: `p = 0.012` or `p < 0.001`."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def not_clip_text(backbone: str) -> str:
    """Say that an encoder is not CLIP, and what follows from that."""
    return f"{backbone} is not CLIP: its numbers are not comparable with the paper's."
