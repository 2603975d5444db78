"""One process at a time in a folder: an advisory lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from histoclip_lib.errors import HistoCLIPError


@contextmanager
def alone_in(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder for the length of a block; nothing is left there.

    The operating system gives the lock back when its process ends, however it ends.

    Parameters
    ----------
    folder : Path
        It exists.
    patience : float
        Seconds to wait for another process.

    Raises
    ------
    HistoCLIPError
        If another process holds the lock for longer; the message names it.
    """
    path, owner = folder / ".lock", folder / ".lock-owner"
    try:
        lock = FileLock(path).acquire(timeout=patience)
    except Timeout as error:
        raise HistoCLIPError(
            f"{folder}: {_read(owner)} is at work here.\n"
            "Wait until it ends, or work elsewhere: another `name`, or --reports DIR."
        ) from error
    with lock:
        owner.write_text(f"process {os.getpid()} on {platform.node()}, since {datetime.now():%Y-%m-%d %H:%M},")
        try:
            yield
        finally:
            for file in (owner, path):  # while it is held: whoever comes next makes a new one
                with contextlib.suppress(OSError):
                    file.unlink()


def _read(owner: Path) -> str:
    with contextlib.suppress(OSError):
        return owner.read_text(encoding="utf-8")
    return "another process"
