"""Many runs at once: the order of their notebooks, what fails alone, and what a second call leaves."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.runs import many
from histoclip_lib.runs.many import run_all_on
from histoclip_lib.runs.pipeline import StepEvent

STEPS = ("01_data", "02_zero_shot", "03_train")


class Fake:
    """Stands for notebooks and encoder: notes what was asked for, and fails where it was told to."""

    def __init__(self):
        self.lock, self.calls, self.encoded, self.fails, self.done = threading.Lock(), [], [], {}, {}

    def run_steps(self, values, schema, reports, report, until, workplace):
        name = values["name"]
        with self.lock:
            self.calls.append((name, until))
        if self.fails.get(name) == until:
            raise HistoCLIPError(f"{until}: it broke")
        before = self.done.setdefault(name, [])
        for step in STEPS[: STEPS.index(until) + 1]:
            report(StepEvent(step, "skipped" if step in before else "finished", 1.0))
        if until not in before:
            before.append(until)

    def encode(self, executor, values, report):
        assert self.done[values["name"]][0] == STEPS[0]  # which opens every image
        self.encoded.append(values["name"])
        if self.fails.get(values["name"]) == "encoding":
            raise HistoCLIPError("an image is broken")
        report(1, 2, None)
        report(2, 2, None)


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(many, "run_steps", fake.run_steps)
    monkeypatch.setattr(many, "encode_shards_on", fake.encode)
    monkeypatch.setattr(many, "finished_steps", lambda values, *_: fake.done.get(values["name"], []))
    return fake


@pytest.fixture
def run_all(fake, tmp_path):
    def run(*names, **options):
        with ThreadPoolExecutor(3) as executor:
            return run_all_on(executor, [{"name": name} for name in names], dict.fromkeys(STEPS), tmp_path, **options)

    return run


def steps_of(fake, name):
    return [step for run, step in fake.calls if run == name]


def test_the_notebooks_of_each_run_follow_each_other(fake, run_all):
    told, shards = [], []
    failed = run_all("a", "b", report=lambda *event: told.append(event), shard_done=lambda *line: shards.append(line))
    assert failed == {}
    assert fake.encoded == ["a", "b"]
    assert steps_of(fake, "a") == steps_of(fake, "b") == list(STEPS)
    assert [(event.step, event.state) for name, event in told if name == "a"] == [(step, "finished") for step in STEPS]
    assert shards == [(name, done, 2) for name in "ab" for done in (1, 2)]


@pytest.mark.parametrize("broken", ["encoding", *STEPS])
def test_a_run_that_fails_stops_alone(fake, run_all, broken):
    fake.fails["a"] = broken
    failed = run_all("a", "b")
    assert list(failed) == ["a"]
    assert ("broke" if broken in STEPS else "broken") in failed["a"]
    assert steps_of(fake, "a") == list(STEPS[: STEPS.index(broken) + 1 if broken in STEPS else 1])
    assert fake.encoded == (["b"] if broken == STEPS[0] else ["a", "b"])
    assert steps_of(fake, "b") == list(STEPS)


def test_what_is_finished_is_not_encoded_again(fake, run_all):
    run_all("a")
    fake.encoded.clear()
    told = []
    assert run_all("a", report=lambda *event: told.append(event)) == {}
    assert fake.encoded == []
    assert {event.state for _, event in told} == {"skipped"}


def test_force_forgets_what_was_finished_once(fake, run_all, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text('{"steps": {"01_data": {}}, "parameters": {"seed": 1}}')
    run_all("a", force=True)
    assert json.loads((tmp_path / "a" / "run.json").read_text()) == {"steps": {}, "parameters": {"seed": 1}}
