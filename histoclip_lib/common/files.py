"""Atomic writes, cleaning up after killed processes, and a lock for a folder."""

from __future__ import annotations

import errno
import json
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

ABANDONED = 24 * 3600.0  # seconds after which a temporary file is abandoned, whatever machine wrote it
FULL, FORBIDDEN = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)
TEMPORARY = re.compile(r"\..+\.(?P<place>[\w-]+)\.(?P<process>\d+)\.[0-9a-f]{8}\.(tmp(\.[^.]+)?|partial)", re.DOTALL)
MIB = 2**20


def temporary_beside(path: Path, ending: str) -> Path:
    """Return a new hidden name beside `path` that identifies the machine and the process it belongs to.

    `sweep` removes files with such a name once their process is gone.

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
    """Yield a temporary path beside `path`; move it there when the block succeeds, remove it otherwise.

    The temporary name keeps the suffix of `path`, since some writers depend on it. The file gets the mode of any new
    file there, also from a writer that creates it for its owner alone, as safetensors does.

    Parameters
    ----------
    path : str or Path
        What to write; its folder is made.
    durable : bool
        Whether the content must be on disk before the name is: after a power failure the file is then the old one or
        the new one. Without it the file may hold zeros, which only a reader with a checksum notices.

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
        _follow_umask(temporary)
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
    """Return the error for a folder that cannot be written: the reason, the free bytes, those needed, the remedy."""
    wanted = "" if needed is None else f" {needed / MIB:,.1f} MiB ({needed:,} bytes) are to be written there."
    with suppress(OSError):
        wanted += f" {free_bytes(folder) / MIB:,.1f} MiB are free."
    return HistoCLIPError(
        f"{folder}: cannot be written ({error.strerror or error}).{wanted} Free some space or change the permissions, "
        "or name another folder: HISTOCLIP_CACHE for the cache, --reports DIR for reports."
    )


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder is or would be."""
    folder = folder.absolute()
    return shutil.disk_usage(next(part for part in (folder, *folder.parents) if part.is_dir())).free


def require_space(folder: Path, needed: int) -> None:
    """Raise HistoCLIPError if fewer than `needed` bytes are free on the disk of a folder."""
    if shutil.disk_usage(folder).free < needed:
        raise cannot_write(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), needed)


def sweep(folder: Path) -> list[Path]:
    """Remove the temporary files and folders that killed processes left in a folder; return what was removed.

    What a process of this machine left is removed once the process is gone; what another machine or container left,
    when it has not changed for a day. Both times come from the clock of the folder's own file system, so that machines
    whose clocks differ may share it. The folder may be missing or belong to others: then nothing happens.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(Path(entry.path), match) for entry in entries if (match := TEMPORARY.fullmatch(entry.name))]
    except OSError:
        return []
    removed = []
    probe = _new_file_in(folder) if found else None
    for path, match in found:
        with suppress(OSError):  # another sweep was faster, or it belongs to others
            gone = match["place"] == _place() and not _is_alive(int(match["process"]))
            if gone or (probe and probe.st_mtime - _last_change(path) > ABANDONED):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                removed.append(path)
    return removed


def _place() -> str:
    """Return what makes a process number unique: the machine, and the container's namespace of processes."""
    host = re.sub(r"\W", "-", socket.gethostname())[:40] or "host"
    with suppress(OSError):
        host += f"-{os.stat('/proc/self/ns/pid').st_ino}"
    return host


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else
        pass
    return True


def _new_file_in(folder: Path) -> os.stat_result | None:
    """Return the time and mode that a new file gets in a folder; None where none can be made."""
    probe = temporary_beside(folder / "probe", ".tmp")
    try:
        probe.touch()
        return probe.stat()
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


def _follow_umask(path: Path) -> None:
    """Give a file that only its owner may read the mode of any new file in its folder."""
    if not path.stat().st_mode & 0o077 and (new := _new_file_in(path.parent)):
        with suppress(OSError):  # a file system without modes
            path.chmod(stat.S_IMODE(new.st_mode))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without fsync
            raise
    finally:
        os.close(descriptor)


def _about_writing(error: OSError, temporary: Path) -> bool:
    """Whether an error means that the disk is full, or that this very file may not be created."""
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    ours = any(Path(name) == temporary or Path(name) in temporary.parents for name in named)
    return error.errno in FULL or (error.errno in FORBIDDEN and ours)


def read_utf8(path: Path, limit: int, remedy: str = "Save it as UTF-8.") -> str:
    """Return the text of a file from a user, with or without a byte-order mark.

    Raises
    ------
    HistoCLIPError
        If it cannot be read, has more than `limit` bytes, or is not UTF-8; then the message ends with `remedy`.
    """
    try:
        too_large = path.stat().st_size > limit
        with path.open("rb") as file:
            content = b"" if too_large else file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise HistoCLIPError(f"{str(path)[:300]} cannot be read ({error}).") from error
    if too_large or len(content) > limit:
        raise HistoCLIPError(f"{path} has more than {limit:,} bytes. Is it the right file?")
    if content.startswith(b"PK\x03\x04"):
        raise HistoCLIPError(f"{path} is a zip archive, such as a spreadsheet (.xlsx), not text. {remedy}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise HistoCLIPError(f"{path} is UTF-16, not UTF-8. {remedy}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise HistoCLIPError(
            f"{path}, line {line}: the byte {content[error.start]:#04x} is not UTF-8; the file may be Latin-1 or "
            f"Windows-1252. {remedy}"
        ) from error


def read_json(path: Path, limit: int, remedy: str = "") -> object:
    """Return what a JSON file from a user holds.

    Raises
    ------
    HistoCLIPError
        As for `read_utf8`, or if it is not JSON; then the message ends with `remedy`.
    """
    text = read_utf8(path, limit)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HistoCLIPError(f"{path}: is not JSON ({error}).{f' {remedy}' * bool(remedy)}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def resolve(path: str | Path) -> Path:
    """Return a path of a parameter file as seen from the current folder.

    A relative path starts there, except in a notebook that JupyterLab started in `notebooks/`: there it starts in the
    folder above, where `histoclip run` would have been called. `~` is the user's home, as in a shell.
    """
    here, path = Path.cwd(), os.path.expanduser(path)
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

    The operating system releases the lock when its process ends, however it ends.

    Parameters
    ----------
    folder : Path
        It exists.
    patience : float
        Seconds to wait for another process.

    Raises
    ------
    HistoCLIPError
        If another process holds the lock for longer; the message names it. If the folder cannot be written.
    """
    path, owner = folder / ".lock", folder / ".lock-owner"
    try:
        lock = FileLock(path).acquire(timeout=patience)
    except Timeout as error:
        other = "another process"
        with suppress(OSError):
            other = owner.read_text(encoding="utf-8")
        raise HistoCLIPError(
            f"{folder}: {other} is at work here.\n"
            "Wait until it ends, or work elsewhere: another `name`, or --reports DIR."
        ) from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    with lock:
        with suppress(OSError):  # a full disk: what is to be written here will say so
            owner.write_text(f"process {os.getpid()} on {platform.node()}, since {datetime.now():%Y-%m-%d %H:%M},")
        try:
            yield
        finally:
            for file in (owner, path):  # while it is held: whoever comes next makes a new one
                with suppress(OSError):
                    file.unlink()
