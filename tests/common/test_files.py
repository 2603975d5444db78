"""Atomic writes, modes, temporary files of killed processes, full disks, and the lock of a folder."""

import errno
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import platformdirs
import pytest

from histoclip_lib.common import files
from histoclip_lib.common.cache import cache_dir
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import (
    ABANDONED,
    alone_in,
    read_json,
    replacing,
    require_space,
    resolve,
    run_folder,
    sweep,
    temporary_beside,
    write_text,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert names_in(path.parent) == ["table.csv"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_stopped_block_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, stop):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(stop), replacing(path) as temporary:
        temporary.write_text("ha")
        raise stop
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["table.csv"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_the_temporary_file_is_beside_the_other_and_keeps_its_suffix(tmp_path):
    with replacing(str(tmp_path / "features.pooled.npy")) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npy"
        assert temporary.name.startswith(".")
        temporary.touch()


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "table.csv"):
        pass


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_created_for_its_owner_alone_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "head.safetensors") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
        write_text(tmp_path / "note.md", "text")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}
    assert names_in(tmp_path) == ["head.safetensors", "note.md"]


def test_text_is_utf_8(tmp_path):
    write_text(tmp_path / "note.md", "cos ≥ 0\n")
    assert (tmp_path / "note.md").read_bytes() == "cos ≥ 0\n".encode()


def test_the_environment_names_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    for unset in (lambda: monkeypatch.setenv("HISTOCLIP_CACHE", ""), lambda: monkeypatch.delenv("HISTOCLIP_CACHE")):
        unset()
        assert cache_dir() == Path(platformdirs.user_cache_dir("histoclip"))


def test_relative_paths_are_taken_from_above_a_notebooks_folder(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolve("data/x") == Path("data/x")
    assert resolve("~/x") == tmp_path / "home/x"
    monkeypatch.chdir(tmp_path / "notebooks")
    assert resolve("data/x") == Path("../data/x")
    assert resolve("~/x") == Path("../home/x")
    assert resolve(tmp_path / "data") == Path("../data")
    assert run_folder("demo").resolve() == tmp_path / "reports" / "demo"


def test_notebooks_folder_of_another_project_means_nothing(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert resolve("data/x") == Path("data/x")


# Temporary files that nobody will finish


@pytest.fixture(scope="module")
def dead_process():
    """The number of a process of this machine that has ended."""
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def leave(monkeypatch):
    """Return a function that leaves a temporary file or folder as a certain process would."""

    def make(path, ending, process, place=None, idle=0.0):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: process)
            if place is not None:
                patch.setattr(files, "_place", lambda: place)
            left = temporary_beside(path, ending)
        if ending == ".partial":
            (left / "images").mkdir(parents=True)
            (left / "images" / "1.png").write_bytes(b"half")
        else:
            left.parent.mkdir(parents=True, exist_ok=True)
            left.write_bytes(b"half")
        then = time.time() - idle
        for each in (*left.rglob("*"), left) if left.is_dir() else (left,):
            os.utime(each, (then, then))
        return left

    return make


ENDINGS = [".tmp.npy", ".tmp", ".tmp.json", ".partial"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_sweep_removes_temporaries_of_dead_processes(tmp_path, leave, dead_process, ending):
    left = leave(tmp_path / "a.b" / "features.pooled.npy", ending, dead_process)
    assert sweep(tmp_path / "a.b") == [left]
    assert names_in(tmp_path / "a.b") == []


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("place", ["other-host-4026531836", None])
def test_sweep_keeps_temporaries_that_may_still_be_written(tmp_path, leave, dead_process, ending, place):
    process = os.getpid() if place is None else dead_process
    left = leave(tmp_path / "x", ending, process, place, idle=0.9 * ABANDONED)
    assert sweep(tmp_path) == []
    assert left.exists()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("place", ["other-host-4026531836", None])
def test_sweep_removes_day_old_temporaries(tmp_path, leave, dead_process, ending, place):
    process = os.getpid() if place is None else dead_process
    left = leave(tmp_path / "x", ending, process, place, idle=1.1 * ABANDONED)
    assert sweep(tmp_path) == [left]
    assert names_in(tmp_path) == []


def test_sweep_keeps_folders_changed_within_a_day(tmp_path, leave):
    left = leave(tmp_path / "x", ".partial", 12345, "other-1", idle=1.1 * ABANDONED)
    os.utime(left / "images")
    assert sweep(tmp_path) == []


def test_sweep_ignores_other_names(tmp_path, dead_process):
    names = ["features.npy", ".hidden", ".x.tmp", f".x.host.{dead_process}.tmp.npy", ".ipynb_checkpoints", "x.partial"]
    for name in names:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    assert sweep(tmp_path) == []
    assert names_in(tmp_path) == sorted(names)


def test_sweep_of_a_missing_or_foreign_folder_does_nothing(tmp_path, leave, dead_process, monkeypatch):
    assert sweep(tmp_path / "nowhere") == []
    left = leave(tmp_path / "x", ".tmp", dead_process)

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    assert sweep(tmp_path) == []
    assert left.exists()


def test_sweep_goes_by_the_clock_of_the_file_system(tmp_path, leave, monkeypatch):
    """The ages are those of the file system: a clock that is years off removes nothing and keeps nothing."""
    young = leave(tmp_path / "x", ".tmp", 12345, "other-1")
    old = leave(tmp_path / "x", ".tmp", 12345, "other-1", idle=1.1 * ABANDONED)
    real, found = time.time, []
    for off in (10**9, -(10**9)):
        monkeypatch.setattr(time, "time", lambda off=off: real() + off)
        found += sweep(tmp_path)
    assert found == [old]
    monkeypatch.undo()
    os.utime(young, (time.time(), time.time() + 10**9))  # from the future: it is not old
    assert sweep(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["x" * 250 + ".npy", "é" * 120 + ".npy", "肿瘤" * 40, "a b\n.tmp", "...", "x." + "y" * 250]
)
def test_any_valid_file_name_can_be_replaced(tmp_path, leave, dead_process, name):
    write_text(tmp_path / name, "whole")
    assert names_in(tmp_path) == [name]
    leave(tmp_path / name, ".tmp", dead_process)
    assert len(sweep(tmp_path)) == 1


def test_sweep_removes_what_a_killed_writer_left(tmp_path):
    script = (
        "import os, signal, sys; from histoclip_lib.common.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "table.csv")], check=False)
    [left] = tmp_path.iterdir()
    assert left.read_text() == "half"
    assert sweep(tmp_path) == [left]


def test_concurrent_writers_use_different_temporaries(tmp_path):
    with replacing(tmp_path / "x") as one, replacing(tmp_path / "x") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "x").read_text() == "one"


# Disks that are full, folders that may not be written


def fail_with(number, path=None):
    raise OSError(number, os.strerror(number), path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, number):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(HistoCLIPError) as caught, replacing(path) as temporary:
        temporary.write_text("ha")
        fail_with(number)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: cannot be written ({os.strerror(number)}).")
    assert "MiB are free. Free some space" in message
    assert "HISTOCLIP_CACHE for the cache, --reports DIR for reports" in message
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_may_not_be_written_is_named(tmp_path, number):
    said = rf"cannot be written \({os.strerror(number)}\)"
    with pytest.raises(HistoCLIPError, match=said), replacing(tmp_path / "x") as temporary:
        fail_with(number, str(temporary))
    with pytest.raises(HistoCLIPError, match=said), replacing(tmp_path / "x"):
        fail_with(number, str(tmp_path))


def test_another_file_s_error_stays_what_it_is(tmp_path):
    with pytest.raises(PermissionError), replacing(tmp_path / "x"):
        fail_with(errno.EACCES, "/elsewhere/data.csv")


def test_a_disk_found_full_at_fsync_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: fail_with(errno.ENOSPC))
    with pytest.raises(HistoCLIPError, match="No space left"):
        write_text(tmp_path / "x", "text")
    assert names_in(tmp_path) == []
    monkeypatch.setattr(os, "fsync", lambda descriptor: fail_with(errno.EINVAL))
    write_text(tmp_path / "x", "text")  # a file system that knows no fsync
    assert (tmp_path / "x").read_text() == "text"


def test_content_reaches_the_disk_before_the_rename(tmp_path, monkeypatch):
    seen = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append("content"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append("name"), replace(*paths)))
    write_text(tmp_path / "x", "text")
    assert seen == ["content", "name"]
    with replacing(tmp_path / "y", durable=False) as temporary:
        temporary.write_text("text")
    assert seen == ["content", "name", "name"]


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), replacing(tmp_path / "file" / "x"):
        pass


def test_require_space_compares_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 50, 50))
    require_space(tmp_path, 50)
    with pytest.raises(HistoCLIPError, match=r"0\.0 MiB \(51 bytes\) are to be written there\. 0\.0 MiB are free"):
        require_space(tmp_path, 51)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_that_fills_up(small_disk):
    write_text(small_disk / "kept", "kept")
    with pytest.raises(HistoCLIPError, match=rf"{small_disk}: cannot be written \(No space left on device\)"):
        write_text(small_disk / "large", "x" * 3 * 2**20)
    with pytest.raises(HistoCLIPError, match="No space left on device"):
        write_text(small_disk / "kept", "x" * 3 * 2**20)
    assert names_in(small_disk) == ["kept"]
    assert (small_disk / "kept").read_text() == "kept"
    with pytest.raises(HistoCLIPError, match=r"3\.0 MiB"):
        require_space(small_disk, 3 * 2**20)


def test_a_read_only_disk_is_named(small_disk):
    write_text(small_disk / "kept", "kept")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path in (small_disk / "new", small_disk / "kept", small_disk / "folder" / "new"):
        with pytest.raises(HistoCLIPError, match=r"cannot be written \(Read-only file system\)"):
            write_text(path, "text")
    assert (small_disk / "kept").read_text() == "kept"
    assert sweep(small_disk) == []


# The lock of a folder


HOLD = """
import sys, time
from pathlib import Path
from histoclip_lib.common.files import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(tmp_path):
    """Start processes that hold the lock; return once they do."""
    started = []

    def start(seconds):
        process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, str(seconds)], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_lock_leaves_no_files(tmp_path):
    for _ in range(2):
        with alone_in(tmp_path):
            assert list(tmp_path.iterdir())
        assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), alone_in(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_folder_in_which_no_lock_can_be_made_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(HistoCLIPError, match=f"^{tmp_path}: cannot be written"), alone_in(tmp_path):
        pytest.fail("without a lock")


def test_a_second_process_is_told_who_holds_the_lock(tmp_path, hold):
    process = hold(60)
    with pytest.raises(HistoCLIPError) as raised, alone_in(tmp_path):
        pytest.fail("two at once")
    first, second = str(raised.value).split("\n")
    assert first.startswith(f"{tmp_path}: process {process.pid} on {platform.node()}, since 2")
    assert "another `name`" in second
    assert process.poll() is None


def test_a_killed_process_releases_the_lock(tmp_path, hold):
    process = hold(60)
    process.kill()
    process.wait()
    assert list(tmp_path.iterdir())
    with alone_in(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock-owner").read_text()
    assert not list(tmp_path.iterdir())


def test_a_patient_process_gets_the_lock_when_it_is_free(tmp_path, hold):
    process = hold(0.7)
    with alone_in(tmp_path, patience=60):
        assert (tmp_path / ".lock").is_file()
        deadline = time.time() + 30
        while process.poll() is None and time.time() < deadline:
            time.sleep(0.05)
        assert process.returncode == 0
        with pytest.raises(HistoCLIPError), alone_in(tmp_path):
            pytest.fail("two at once")


def test_an_unnamed_lock_owner_is_another_process(tmp_path, hold):
    hold(60)
    (tmp_path / ".lock-owner").unlink()
    with pytest.raises(HistoCLIPError, match="another process is at work here"), alone_in(tmp_path):
        pytest.fail("two at once")


def test_json_that_is_not_utf8_or_not_json_has_one_reason(tmp_path):
    (tmp_path / "a.json").write_bytes("{}".encode("utf-16"))
    with pytest.raises(HistoCLIPError, match=r"^\S+a\.json is UTF-16, not UTF-8\. Save it as UTF-8\.$"):
        read_json(tmp_path / "a.json", 100)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(HistoCLIPError, match=r"^\S+b\.json: is not JSON \(.*\)\. Export it again\.$"):
        read_json(tmp_path / "b.json", 100, "Export it again.")
