"""Executors: results in order, failures in one sentence, and no worker that outlives its work."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest
import torch

from histoclip_lib.common import executors
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import n_cores, open_executor, require_software, run_task, run_tasks, software


def double(number):
    return 2 * number


def about_me(_):
    return os.getpid(), torch.get_num_threads()


def wait_then(number):
    time.sleep(0.05 * (3 - number))
    return number


def end_hard(_):
    os.kill(os.getpid(), signal.SIGKILL)


class Unspeakable(Exception):
    def __reduce__(self):
        raise RecursionError("cannot be pickled")


def fail_unspeakably(_):
    raise Unspeakable("the reason")


def fail(_):
    raise HistoCLIPError("views: 9 is out of range")


def fail_strangely(number):
    if number == 1:
        raise KeyError("strange")
    time.sleep(0.2)
    return number


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


# Running tasks


def test_results_come_in_the_order_of_the_arguments_and_reports_as_they_finish(threads):
    seen = []
    assert run_tasks(threads, wait_then, ((n,) for n in range(3)), lambda *what: seen.append(what)) == [0, 1, 2]
    assert sorted(seen) == [(0, 0), (1, 1), (2, 2)]
    assert run_tasks(threads, double, []) == []


def test_no_more_tasks_are_handed_over_than_can_be_watched(threads, monkeypatch):
    monkeypatch.setattr(executors, "AT_ONCE", 3)
    taken, done, ahead = [], [], []

    def arguments():
        for number in range(20):
            taken.append(number)
            ahead.append(len(taken) - len(done))
            yield (number,)

    assert run_tasks(threads, double, arguments(), lambda number, _: done.append(number)) == list(range(0, 40, 2))
    assert max(ahead) <= 3


def test_an_error_of_the_library_keeps_its_message(threads):
    with pytest.raises(HistoCLIPError, match=r"^views: 9 is out of range$"):
        run_tasks(threads, fail, [(0,)])


def test_any_other_error_is_named_with_its_machine_and_the_rest_is_cancelled():
    started = []

    def counted(number):
        started.append(number)
        return fail_strangely(number)

    said = pytest.raises(HistoCLIPError, match=r".*: KeyError: .*strange")
    with ThreadPoolExecutor(2) as pool, said:
        run_tasks(pool, counted, [(n,) for n in range(100)])
    assert len(started) < 10  # though the pool has waited for all that it had to do


def test_an_error_carries_no_other_exception_along():
    with pytest.raises(HistoCLIPError) as caught:
        run_task(fail_unspeakably, 0)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "Unspeakable: 'the reason'" in str(caught.value)


def test_an_error_of_the_report_is_the_caller_s(threads):
    with pytest.raises(ZeroDivisionError):
        run_tasks(threads, double, [(1,)], lambda *_: 1 / 0)


class Dead(Executor):
    """An executor whose tasks end in a certain way, or that takes none."""

    def __init__(self, error, at_once=False):
        self.error, self.at_once = error, at_once

    def submit(self, *_):
        if self.at_once:
            raise self.error
        future = Future()
        if isinstance(self.error, CancelledError):
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_exception(self.error)
        return future


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("error", [CancelledError("lost"), BrokenProcessPool("lost")])
def test_a_lost_scheduler_is_named(error, at_once):
    with pytest.raises(HistoCLIPError, match=r"^the scheduler is gone .*Start it and its workers again"):
        run_tasks(Dead(error, at_once), double, [(1,)])


# Processes of this machine


def test_processes_share_the_cores_and_fail_in_one_sentence():
    with open_executor(jobs=2) as pool:
        found = set(run_tasks(pool, about_me, [(n,) for n in range(8)]))
        assert os.getpid() not in {process for process, _ in found}
        assert {n_threads for _, n_threads in found} == {max(1, n_cores() // 2)}
        with pytest.raises(HistoCLIPError, match="Unspeakable: 'the reason'"):
            run_tasks(pool, fail_unspeakably, [(0,)])
        assert run_tasks(pool, double, [(4,)]) == [8]
        with pytest.raises(
            HistoCLIPError, match=r"a worker process ended before.*fewer jobs or a smaller encode_batch"
        ):
            run_tasks(pool, end_hard, [(n,) for n in range(4)])


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    script = (
        "import sys, time\n"
        "from histoclip_lib.common.executors import open_executor, run_tasks\n"
        "def say():\n"
        "    print('ready', flush=True)\n"
        "if __name__ == '__main__':\n"
        "    with open_executor(jobs=1) as pool:\n"
        "        run_tasks(pool, say, [()])\n"
        "        time.sleep(600)\n"
    )
    (tmp_path / "main.py").write_text(script)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "ready\n"  # said by the worker
        children = psutil.Process(parent.pid).children()
    finally:
        parent.kill()
        parent.wait()
    assert len(children) >= 1
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


@pytest.mark.parametrize("jobs", [0, -1])
def test_fewer_than_one_job_is_refused(jobs):
    with pytest.raises(HistoCLIPError, match=rf"--jobs {jobs}: use 1 or more"), open_executor(jobs):
        pass


# Schedulers


def open_scheduler(address):
    with open_executor(scheduler=address):
        pass


def test_jobs_and_scheduler_exclude_each_other():
    with pytest.raises(HistoCLIPError, match="give one of them"), open_executor(2, "tcp://127.0.0.1:8786"):
        pass


def test_without_dask_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(HistoCLIPError, match=r"pip install 'histoclip\[cluster\]'"):
        open_scheduler("tcp://127.0.0.1:8786")


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:1", "127.0.0.1:1", "nonsense://x", "tcp://no-such-host.invalid:1", ""]
)
def test_a_scheduler_that_does_not_answer_is_named(address, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "PATIENCE", 0.5)
    with pytest.raises(HistoCLIPError) as caught:
        open_scheduler(address)
    assert f"--scheduler {address}: no scheduler answers there" in str(caught.value)
    assert "dask scheduler" in str(caught.value)


def test_an_event_loop_that_does_not_start_is_named(monkeypatch):
    distributed = pytest.importorskip("distributed")

    def too_busy(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(distributed, "Client", too_busy)
    with pytest.raises(HistoCLIPError, match=r"tcp://a:1: no scheduler answers.*event loop did not start"):
        open_scheduler("tcp://a:1")


def test_a_missing_scheduler_file_is_named(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(HistoCLIPError, match=r"scheduler\.json: there is no such file"):
        open_scheduler(str(tmp_path / "scheduler.json"))


class FakeClient:
    """A client whose workers give certain answers."""

    def __init__(self, answers):
        self.answers, self.closed = answers, False

    def run(self, function, on_error):
        return self.answers

    def close(self):
        self.closed = True

    def get_executor(self, **options):
        return options


@pytest.fixture
def connect(monkeypatch):
    distributed = pytest.importorskip("distributed")

    def use(answers):
        client = FakeClient(answers)
        monkeypatch.setattr(distributed, "Client", lambda **options: client)
        return client

    return use


def test_workers_with_other_versions_are_all_named(connect):
    client = connect(
        {
            "tcp://a:1": software(),
            "tcp://b:1": software() | {"torch": "1.0", "Python": "3.9.1"},
            "tcp://c:1": {"torch": software()["torch"]},
            "tcp://d:1": ModuleNotFoundError("No module named 'histoclip_lib'"),
        }
    )
    with pytest.raises(HistoCLIPError) as caught:
        open_scheduler("tcp://s:1")
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert f"  - tcp://b:1: torch 1.0, {software()['torch']} is expected" in lines
    assert any(line.startswith("  - tcp://b:1: Python 3.9.1, ") for line in lines)
    assert f"  - tcp://c:1: numpy is missing, {software()['numpy']} is expected" in lines
    assert "  - tcp://d:1: ModuleNotFoundError: No module named 'histoclip_lib'" in lines
    assert "tcp://a:1" not in str(caught.value)
    assert client.closed


def test_a_scheduler_without_workers_is_waited_for_with_a_warning(connect):
    client = connect({})
    with pytest.warns(UserWarning, match="tcp://s:1 has no workers yet"), open_executor(scheduler="tcp://s:1") as found:
        assert found == {"pure": True, "retries": executors.RETRIES}
    assert client.closed


def test_the_software_is_known_by_version_and_the_library_by_its_source(tmp_path, monkeypatch):
    assert set(software()) == {"Python", "histoclip_lib", *executors.PACKAGES}
    require_software(software())
    with pytest.raises(HistoCLIPError, match=r"the software differs:\n  - torch .*, 1\.0 is expected"):
        require_software(software() | {"torch": "1.0"})
