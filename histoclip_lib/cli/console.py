"""What the command line prints and how it ends: safe text, errors in two lines, exit codes."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from histoclip_lib.common.errors import HistoCLIPError, printable

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def results() -> Console:
    """Return the console of results, standard output."""
    return _console(stderr=False)


def messages() -> Console:
    """Return the console of progress and errors, standard error."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    options = {"stderr": stderr, "highlight": False, "emoji": False, "markup": False}
    console = Console(**options)
    return Console(**options, color_system=None) if is_plain(console) else console


def is_plain(console: Console) -> bool:
    """Whether neither colours nor lines that change are wanted: no terminal, a dumb one, or NO_COLOR is set."""
    return not console.file.isatty() or console.is_dumb_terminal or bool(os.environ.get("NO_COLOR"))


def visible(text: object) -> str:
    """Return text with what is not printable as escapes, so that it cannot move the cursor or change colours."""
    return printable(str(text))


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is, however long."""
    console.print(Text(text, style=style), soft_wrap=True)


def complain(problem: str) -> None:
    """Print an error, one line for what is wrong, the next for what to do about it."""
    lines = [visible(line) for line in problem.rstrip().split("\n")]
    messages().print(Text.assemble(("error: ", "red"), "\n".join(lines)), soft_wrap=True)


def described(error: Exception) -> str:
    """Return what is wrong, and what to do about it, for an error of any kind."""
    if isinstance(error, HistoCLIPError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error.filename or 'writing'}: the disk is full ({error.strerror}).\n"
            "Free some space, or write elsewhere: --reports DIR for reports, --out DIR for predictions, "
            "HISTOCLIP_CACHE=DIR for features."
        )
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename}: {error.strerror}.\n"
            "Check that it is there and that you have access, or choose another place, as with --reports DIR."
        )
    first = next(iter(str(error).splitlines()), "")
    return f"unexpected: {type(error).__name__}: {first}\nRun it again with --debug for the traceback, and report it."


def aligned(columns: list[str], lines: list[list[str]], numbers_from: int) -> Table:
    """Return a table of aligned text without lines; columns from `numbers_from` on are flush right and not broken."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        if position < numbers_from:
            table.add_column(Text(visible(column)), overflow="fold")
        else:
            table.add_column(Text(visible(column)), justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(visible(cell)) for cell in line))
    return table


def duration(seconds: float) -> str:
    """Return a time in words: `41 s`, `5 min 41 s` or `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def told(debug: bool, code: int = 1) -> Iterator[None]:
    """Print an error that a block raises and exit with a code; with `debug` let the error through."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if debug:
            raise
        complain(described(error))
        raise typer.Exit(code) from error


@contextmanager
def stoppable(hint: str = "") -> Iterator[None]:
    """Exit with INTERRUPTED if Ctrl-C is pressed in a block; `hint` says how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        logging.getLogger("asyncio").addHandler(logging.NullHandler())  # of cancelled tasks nothing is said
        complain(f"interrupted.{hint}")
        raise typer.Exit(INTERRUPTED) from interrupt
