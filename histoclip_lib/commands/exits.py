"""How a command ends when something goes wrong: an exit code, and two lines in place of a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from histoclip_lib.commands.console import complain, described

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@contextmanager
def told(debug: bool, code: int = 1) -> Iterator[None]:
    """Tell of an error in a block and exit with a code; with `debug` let the error through."""
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
        logging.getLogger("asyncio").addHandler(logging.NullHandler())  # tasks that were cut off are no news
        complain(f"interrupted.{hint}")
        raise typer.Exit(INTERRUPTED) from interrupt
