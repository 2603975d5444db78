"""The one exception that HistoCLIP raises for input it cannot use, and how messages are written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class HistoCLIPError(ValueError):
    """Bad input: the message names the value, the place and the remedy.

    Names of files can contain anything, so what controls a terminal, reverses the direction of text or is not valid
    Unicode is escaped in messages; line breaks are kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, keep="\n"))


def printable(text: str, keep: str = "") -> str:
    r"""Return text with each character that is not printable as an escape, such as `\n` or `\x1b`.

    Examples
    --------
    >>> printable("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def shown(value: object, limit: int = 100) -> str:
    """Return the repr of a value, truncated to `limit` characters: an error must fit on a screen."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses integers of more than some thousand digits
        return f"one {type(value).__name__} too large to show"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def is_unicode(text: str) -> bool:
    """Say whether a text can be written: Python holds bytes that are not UTF-8 as surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def bullet_list(offenders: list[str], limit: int = 20) -> str:
    """Return offenders one per line: the first `limit` of them, and a count of the rest."""
    lines = [f"  - {printable(offender)}" for offender in offenders[:limit]]
    if len(offenders) > limit:
        lines.append(f"  - ... and {len(offenders) - limit} more")
    return "\n".join(lines)


def ranges(numbers: list[int], limit: int = 10) -> str:
    """Return ascending integers as ranges, the first `limit` of them, and a count of all where there are more.

    Examples
    --------
    >>> ranges([2, 3, 4, 9])
    '2-4, 9'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs[:limit])
    return text if len(runs) <= limit else f"{text}, ... ({len(numbers):,} in all)"


@contextmanager
def silenced(logger: str) -> Iterator[None]:
    """Keep what a library logs of a failure that is told otherwise off the terminal."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
