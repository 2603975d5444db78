"""Writing files whole or not at all, sweeping what killed processes left, and one process at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from histoclip_lib.common.errors import HistoCLIPError

ABANDONED = 24 * 3600.0  # seconds after which a temporary file is nobody's, wherever it was begun
FULL, FORBIDDEN = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)
TEMPORARY = re.compile(r"\..+\.(?P<place>[\w-]+)\.(?P<process>\d+)\.[0-9a-f]{8}\.(tmp(\.[^.]+)?|partial)", re.DOTALL)
MIB = 2**20


def temporary_beside(path: Path, ending: str) -> Path:
    """Return a new hidden name beside `path` that says which process of which machine it belongs to.

    `sweep` removes what bears such a name once its process is gone.

    Parameters
    ----------
    path : Path
        What the temporary file or folder is to become.
    ending : str
        `.tmp` and a suffix for a file, `.partial` for a folder.
    """
    stem = path.name.encode()[:80].decode(errors="ignore")  # a name has 255 bytes
    return path.with_name(f".{stem}.{_place()}.{os.getpid()}.{secrets.token_hex(4)}{ending}")


@contextmanager
def replacing(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there when the block ends well, remove it otherwise.

    The temporary name keeps the suffix of `path`, since some writers go by it.

    Parameters
    ----------
    path : str or Path
        What to write; its folder is made.
    durable : bool
        Whether the content must be on the disk before the name is: after a power failure the file is then the old
        one or the new one. Without it the file may hold zeros, which only a reader with a checksum notices.

    Raises
    ------
    HistoCLIPError
        If the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = temporary_beside(path, f".tmp{path.suffix[:16]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if _about_writing(error, temporary):
            raise cannot_write(path.parent, error) from error
        raise
    finally:
        with suppress(OSError):  # it has been moved, or was never made
            temporary.unlink()


def cannot_write(folder: Path, error: OSError, needed: int | None = None) -> HistoCLIPError:
    """Return the error that says why a folder cannot be written, how much is free there, and what to do.

    Parameters
    ----------
    folder : Path
        Where the file should have gone.
    error : OSError
        What the system said.
    needed : int, optional
        Bytes that were to be written.
    """
    wanted = "" if needed is None else f" {needed / MIB:,.1f} MiB ({needed:,} bytes) are to be written there."
    with suppress(OSError):
        wanted += f" {free_bytes(folder) / MIB:,.1f} MiB are free."
    return HistoCLIPError(
        f"{folder}: cannot be written ({error.strerror or error}).{wanted} Free some space or change the permissions, "
        "or name another folder: HISTOCLIP_CACHE for the cache, --reports DIR for reports."
    )


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder lies or would lie."""
    folder = folder.absolute()
    return shutil.disk_usage(next(part for part in (folder, *folder.parents) if part.is_dir())).free


def require_space(folder: Path, needed: int) -> None:
    """Find out before the work, and not after, that a folder has no room for its result.

    Raises
    ------
    HistoCLIPError
        If fewer than `needed` bytes are free on the disk of `folder`.
    """
    if shutil.disk_usage(folder).free < needed:
        raise cannot_write(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), needed)


def sweep(folder: Path) -> list[Path]:
    """Remove from a folder the temporary files and folders that killed processes left there.

    A process of this machine that is gone has left what bears its number. What others began, on another machine or in
    another container, is removed when it has not changed for a day. Both times come from the clock of the folder's own
    file system, so that machines whose clocks differ may share it.

    Parameters
    ----------
    folder : Path
        Its direct entries are looked at. It may be missing or belong to others: then nothing happens.

    Returns
    -------
    list of Path
        What was removed.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(Path(entry.path), match) for entry in entries if (match := TEMPORARY.fullmatch(entry.name))]
    except OSError:
        return []
    removed = []
    now = _clock_of(folder) if found else None
    for path, match in found:
        with suppress(OSError):  # another sweep was faster, or it belongs to others
            gone = match["place"] == _place() and not _is_alive(int(match["process"]))
            if gone or (now is not None and now - _last_change(path) > ABANDONED):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                removed.append(path)
    return removed


def _place() -> str:
    """Return what makes a process number unique: the machine, and the container's own count of processes."""
    host = re.sub(r"\W", "-", socket.gethostname())[:40] or "host"
    with suppress(OSError):
        host += f"-{os.stat('/proc/self/ns/pid').st_ino}"
    return host


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where the question below would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else
        return True
    return True


def _clock_of(folder: Path) -> float | None:
    """Return the time that the folder's file system gives a new file; None where none can be made."""
    probe = temporary_beside(folder / "clock", ".tmp")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return None
    finally:
        with suppress(OSError):
            probe.unlink()


def _last_change(path: Path) -> float:
    """Return when a file, or the youngest of the two upper levels of a folder, was changed."""
    facts = path.lstat()
    below = [entry.stat().st_mtime for entry in os.scandir(path)] if stat.S_ISDIR(facts.st_mode) else []
    return max([facts.st_mtime, *below])


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that knows no fsync
            raise
    finally:
        os.close(descriptor)


def _about_writing(error: OSError, temporary: Path) -> bool:
    """Whether an error says that the disk is full, or that this very file may not be made."""
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    ours = any(Path(name) == temporary or Path(name) in temporary.parents for name in named)
    return error.errno in FULL or (error.errno in FORBIDDEN and ours)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def resolve(path: str | Path) -> Path:
    """Return a path of a parameter file as it is meant.

    A relative one is taken from the current folder, except in a notebook that JupyterLab started in `notebooks/`: there
    it is taken from the folder above, from which `histoclip run` would have been called.
    """
    here = Path.cwd()
    in_notebooks = here.name == "notebooks" and (here.parent / "params").is_dir()
    return Path(os.path.relpath(here.parent / path)) if in_notebooks else Path(path)


def run_folder(name: str, reports_dir: str = "reports") -> Path:
    """Return the folder of a run, created."""
    folder = resolve(reports_dir) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
