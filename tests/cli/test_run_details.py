"""One run as text: what differs from the defaults, whether it is current, where its pages are."""

import json
from pathlib import Path

import pytest
from nbformat import v4, write

from histoclip_lib.cli import show as run_details
from histoclip_lib.cli.show import details, parameters_of, run_names
from histoclip_lib.runs import pipeline as runs
from histoclip_lib.runs.parameters import read_schema

CELL = 'name: str = "demo"  # name\nreports_dir: str = "reports"  # folder\nepochs: int = 3  # passes\n'
VALUES = {"name": "mine", "reports_dir": "/elsewhere", "epochs": 3, "data_dir": ""}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two notebooks whose parameters are the schema; returns it."""
    (tmp_path / "notebooks").mkdir()
    steps = ("01_data", "02_zero_shot")
    for module in (runs, run_details):
        monkeypatch.setattr(module, "STEPS", steps)
    monkeypatch.setattr(runs, "PRODUCTS", dict.fromkeys(steps, ()))
    monkeypatch.setattr(runs, "find_notebooks", lambda workplace=None: tmp_path / "notebooks")
    for step, cell in zip(steps, (CELL, CELL + 'data_dir: str = ""  # data\n'), strict=True):
        node = v4.new_code_cell(cell, metadata={"tags": ["parameters"]})
        kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
        write(v4.new_notebook(cells=[node], metadata={"kernelspec": kernel}), tmp_path / "notebooks" / f"{step}.ipynb")
    return read_schema([tmp_path / "notebooks" / f"{step}.ipynb" for step in steps])


@pytest.fixture
def finish(tmp_path, project):
    """Leave what a finished run with some parameters leaves."""

    def make(name="mine", steps=2, **values):
        folder = tmp_path / "reports" / name
        folder.mkdir(parents=True)
        given = VALUES | {"name": name} | values
        keys = runs._step_keys(given | {"reports_dir": "reports"}, project, tmp_path / "notebooks", Path.cwd())
        for step in run_details.STEPS[:steps]:
            parameters = {key: given[key] for key in project[step]}
            (folder / f"{step}.ipynb").write_text(json.dumps({"metadata": {"papermill": {"parameters": parameters}}}))
            (folder / f"{step}.html").write_text("")
        (folder / "steps.json").write_text(json.dumps({step: keys[step] for step in run_details.STEPS[:steps]}))
        return folder

    return make


def test_runs_are_found_finished_or_not(tmp_path, finish):
    finish("b")
    finish("a", steps=0)
    (tmp_path / "reports" / "c").mkdir()
    (tmp_path / "reports" / "c" / "metrics.json").write_text("{}")
    (tmp_path / "reports" / "empty").mkdir()
    assert run_names(tmp_path / "reports") == ["a", "b", "c"]
    assert run_names(tmp_path / "nowhere") == []


def test_a_run_with_the_defaults_says_so_and_is_current(finish, project):
    lines = details(finish(), project)
    assert lines[0] == "parameters that differ from the defaults: none"
    assert lines[1] == "current: a run with these parameters would execute nothing again"


def test_what_differs_is_listed(finish, project):
    folder = finish(epochs=7, data_dir="<b>here</b>")
    assert parameters_of(folder)["epochs"] == 7
    lines = details(folder, project)
    assert lines[0] == "parameters that differ from the defaults: data_dir: <b>here</b>, epochs: 7"
    assert lines[1].startswith("current")


def test_a_changed_notebook_makes_a_run_no_longer_current(tmp_path, finish, project):
    folder = finish()
    with open(tmp_path / "notebooks" / "02_zero_shot.ipynb", "a") as file:
        file.write("\n")
    state = details(folder, project)[1]
    assert state == "not current: inputs or the library have changed, so a run would execute 02_zero_shot"


def test_a_run_that_was_never_finished_is_not_current(finish, project):
    assert details(finish(steps=1), project)[1].startswith("not current: some steps were never finished")
    assert details(finish("none", steps=0), project)[1].startswith("not current: some steps were never finished")


def test_pages_are_paths_and_the_summary_comes_first(finish, project):
    folder = finish()
    (folder / "index.html").write_text("")
    (folder / ".hidden").write_text("")
    (folder / "metrics.json").write_text("")
    lines = details(folder, project)
    pages = lines[lines.index("pages") + 1 : -2]
    assert pages == [f"  {folder / name}.html" for name in ("index", "01_data", "02_zero_shot")]
    assert lines[-2:] == [f"files in {folder}", "  01_data.ipynb, 02_zero_shot.ipynb, metrics.json, steps.json"]
