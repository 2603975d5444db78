"""The lock of a folder: one process holds it, the others learn which, and a killed one holds nothing."""

import os
import platform
import subprocess
import sys
import time

import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import alone_in

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


def test_nothing_is_left_behind(tmp_path):
    for _ in range(2):
        with alone_in(tmp_path):
            assert list(tmp_path.iterdir())
        assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), alone_in(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_told_who_holds_it(tmp_path, hold):
    process = hold(60)
    with pytest.raises(HistoCLIPError) as raised, alone_in(tmp_path):
        pytest.fail("two at once")
    first, second = str(raised.value).split("\n")
    assert first.startswith(f"{tmp_path}: process {process.pid} on {platform.node()}, since 2")
    assert "another `name`" in second
    assert process.poll() is None


def test_a_killed_process_holds_nothing(tmp_path, hold):
    process = hold(60)
    process.kill()
    process.wait()
    assert list(tmp_path.iterdir())
    with alone_in(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock-owner").read_text()
    assert not list(tmp_path.iterdir())


def test_who_is_patient_gets_it_when_it_is_free(tmp_path, hold):
    process = hold(1.5)
    with alone_in(tmp_path, patience=60):
        assert (tmp_path / ".lock").is_file()
        deadline = time.time() + 30
        while process.poll() is None and time.time() < deadline:
            time.sleep(0.05)
        assert process.returncode == 0
        with pytest.raises(HistoCLIPError), alone_in(tmp_path):
            pytest.fail("two at once")


def test_an_owner_who_left_no_name_is_another_process(tmp_path, hold):
    hold(60)
    (tmp_path / ".lock-owner").unlink()
    with pytest.raises(HistoCLIPError, match="another process is at work here"), alone_in(tmp_path):
        pytest.fail("two at once")
