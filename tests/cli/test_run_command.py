"""`histoclip run`: files are checked first, failures stop alone, and the end is one path for each page."""

import errno
import re
from pathlib import Path

import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.runs import overview, pipeline
from histoclip_lib.runs.pipeline import StepEvent

ERRORS = {  # by the name of the run that raises it
    "fails": HistoCLIPError("03_train: the [red]cell's[/red] own :warning: message\nThe notebook: x.ipynb"),
    "full": OSError(errno.ENOSPC, "No space left on device", "/r/full"),
    "closed": PermissionError(errno.EACCES, "Permission denied", "/r/closed"),
    "odd": TypeError("what\nis this"),
    "stopped": KeyboardInterrupt(),
}


@pytest.fixture
def started(monkeypatch, write_metrics):
    """Let no notebook run; return the values of the runs that would have been, and the calls of the overview."""
    seen = {"runs": [], "overviews": []}

    def run_steps(values, schema, reports, force, report):
        seen["runs"].append(values | {"force": force, "reports": reports})
        if values["name"] in ERRORS:
            report(StepEvent("03_train", "started"))
            report(StepEvent("03_train", "failed", 3.0))
            raise ERRORS[values["name"]]
        report(StepEvent("01_data", "skipped"))
        report(StepEvent("02_zero_shot", "finished", 3.0))
        return write_metrics(reports / values["name"])

    def write_overview(reports, report, grids):
        seen["overviews"].append([str(path) for path in grids])
        return [*(reports / f"grid_{path.stem}.html" for path in grids), reports / "index.html"]

    monkeypatch.setattr(pipeline, "run_steps", run_steps)
    monkeypatch.setattr(overview, "write_overview", write_overview)
    return seen


def said(result):
    """Return what stands on the error stream, with rich's line breaks undone."""
    return re.sub(r"\s+", " ", result.stderr)


# Parameter files, checked before anything runs


@pytest.mark.parametrize("command", ["run", "check"])
def test_everything_wrong_with_a_file_is_listed_at_once_and_ends_in_2(invoke, write, started, command):
    result = invoke(command, write("run.yaml", "epoch: 3\nlearning_rate: fast\nviews: 1.5\nname: demo\n"))
    assert result.exit_code == 2
    assert "run.yaml: 3 entries cannot be used" in said(result)
    assert "- epoch: no notebook reads it; did you mean epochs?" in said(result)
    assert "- learning_rate: 'fast' is no" in said(result)
    assert "- views: 1.5 is no" in said(result)
    assert "Traceback" not in result.output
    assert started["runs"] == started["overviews"] == []


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["name: a\n", "name: b\n", "name: c\nsed: 1\n"], "did you mean seed?"),
        (["name: x\n", "name: y\n", "name: x\n"], "each run needs a folder of its own"),
        (["name: x\n", "seed: 2\n"], "1.yaml has no `name`"),
    ],
)
def test_no_run_starts_when_a_file_is_wrong(invoke, write, started, texts, problem):
    result = invoke("run", *(write(f"{k}.yaml", text) for k, text in enumerate(texts)))
    assert result.exit_code == 2
    assert problem in said(result)
    assert started["runs"] == []


def test_a_missing_file_ends_in_2(invoke):
    result = invoke("run", "gone.yaml")
    assert result.exit_code == 2
    assert "gone.yaml cannot be read" in said(result)


# Runs


def test_a_run_gets_values_of_the_file_and_options(invoke, write, started, schema):
    path = write("run.yaml", "name: mine\nlearning_rate: 1e-4\nepochs: 7\n")
    result = invoke("run", path, "--force", "--reports", "elsewhere")
    assert result.exit_code == 0, result.output
    [values] = started["runs"]
    assert (values["name"], values["epochs"], values["learning_rate"]) == ("mine", 7, 1e-4)
    assert values["batch_size"] == schema["03_train"]["batch_size"].default
    assert (values["force"], values["reports"]) == (True, Path("elsewhere"))
    assert "Draft" not in result.stderr


def test_draft_sets_what_the_file_leaves_out_and_says_so(invoke, write, started):
    result = invoke("run", "--draft", write("a.yaml", "name: a\n"), write("b.yaml", "name: b\nresamples: 500\n"))
    assert result.exit_code == 0, result.output
    a, b = started["runs"]
    assert (a["resamples"], a["studies"], a["wordings"]) == (100, False, 2)
    assert (b["resamples"], b["studies"], b["wordings"]) == (500, False, 2)
    assert result.stderr.startswith("Draft: resamples: 100, studies: false and wordings: 2")


def test_a_run_prints_the_overview_and_nothing_else_on_standard_output(invoke, write, started, tmp_path):
    result = invoke("run", write("run.yaml", "name: demo\n"))
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "reports" / "index.html")
    assert "01_data unchanged, skipped" in said(result)
    assert "02_zero_shot done in 3 s" in said(result)
    assert re.search(r"\*  Majority of train +0\.812 +0\.750 to 0\.875", result.stderr)
    assert "lite0-minilm is not CLIP" in said(result)


def test_pages_of_runs_and_grids_are_printed_before_the_overview(invoke, write, started, tmp_path):
    for name in ("a", "g_seed-0"):
        (tmp_path / "reports" / name).mkdir(parents=True)
        (tmp_path / "reports" / name / "04_results.html").write_text("")
    grid = write("g.yaml", "name: g\ngrid:\n  seed: [0, 1]\n")
    result = invoke("run", write("a.yaml", "name: a\n"), grid)
    assert [values["name"] for values in started["runs"]] == ["a", "g_seed-0", "g_seed-1"]
    assert started["overviews"] == [[str(grid)]]
    pages = ("a/04_results.html", "g_seed-0/04_results.html", "grid_g.html", "index.html")
    assert result.stdout.split() == [str(tmp_path / "reports" / page) for page in pages]


def test_other_runs_continue_when_one_fails_and_the_end_is_1(invoke, write, started):
    result = invoke("run", *(write(f"{name}.yaml", f"name: {name}\n") for name in ("a", "fails", "odd", "b")))
    assert result.exit_code == 1
    assert [values["name"] for values in started["runs"]] == ["a", "fails", "odd", "b"]
    assert len(started["overviews"]) == 1
    assert "03_train failed after 3 s" in said(result)
    assert result.stderr.endswith("error: 2 of 4 runs failed: fails, odd.\n")
    assert "index.html" in result.stdout
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("fails", "error: 03_train: the [red]cell's[/red] own :warning: message", "The notebook: x.ipynb"),
        ("full", "error: /r/full: the disk is full", "--reports DIR"),
        ("closed", "error: /r/closed: Permission denied.", "--reports DIR"),
        ("odd", "error: unexpected: TypeError: what", "--debug"),
    ],
)
def test_an_error_is_two_lines_as_written(invoke, write, started, name, first, second):
    result = invoke("run", write("run.yaml", f"name: {name}\n"))
    lines = result.stderr.splitlines()
    assert result.exit_code == 1
    assert lines[-2].startswith(first)
    assert second in lines[-1]
    assert "Traceback" not in result.output


def test_an_interrupted_run_prints_the_command_that_resumes_it_and_ends_in_130(invoke, write, started):
    files = [write(f"{name}.yaml", f"name: {name}\n") for name in ("stopped", "c")]
    result = invoke("run", *files, "--reports", "else where", "--draft", "--force")
    assert result.exit_code == 130
    assert [values["name"] for values in started["runs"]] == ["stopped"]
    assert started["overviews"] == []
    assert result.stdout == ""
    told, command = result.stderr.splitlines()[-2:]
    assert told == "error: interrupted. Finished steps are kept; to go on:"
    assert command == f"histoclip run {files[0]} {files[1]} --reports 'else where' --draft"


def test_a_reports_folder_that_cannot_be_made_is_named(invoke, write, tmp_path):
    (tmp_path / "taken").write_text("")
    result = invoke("run", write("run.yaml", "name: demo\n"), "--reports", "taken")
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()[1:]
    assert first.startswith("error: taken")
    assert "--reports DIR" in second
    assert result.stdout == ""


def test_an_overview_that_fails_ends_in_1(invoke, write, started, monkeypatch):
    def write_overview(*arguments):
        raise HistoCLIPError("table: no")

    monkeypatch.setattr(overview, "write_overview", write_overview)
    result = invoke("run", write("run.yaml", "name: demo\n"))
    assert result.exit_code == 1
    assert "error: table: no" in said(result)
    assert result.stdout == ""


def test_debug_raises_the_error_itself(invoke, write, started):
    result = invoke("run", "--debug", write("fails.yaml", "name: fails\n"))
    assert isinstance(result.exception, HistoCLIPError)
