"""The command line: what it checks first, its exit codes, and that a user sees no traceback unasked."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from histoclip_lib import cli
from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.runs import StepEvent

ROW = {"mAcc": 0.8125, "mAcc_ci": [0.75, 0.875], "mAP": None}
METRICS = {"name": "demo", "n_val": 40, "rows": {"majority": ROW, "linear_probe": ROW | {"mAP": 0.5}}}


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Start the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "cache"))
    return lambda *arguments: CliRunner().invoke(cli.app, list(map(str, arguments)))


@pytest.fixture
def write(tmp_path):
    def write_params(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_params


@pytest.fixture
def started(monkeypatch):
    """Let no notebook run; return the values of the runs that would have been, and the calls of the overview."""
    seen = {"runs": [], "overviews": []}

    def run_steps(values, schema, reports, force, report, stream):
        seen["runs"].append(values | {"force": force, "reports": reports})
        if values["name"] == "fails":
            report(StepEvent("03_train", "failed", 3.0))
            raise HistoCLIPError("03_train: the [red]cell's[/red] own :warning: message")
        folder = reports / values["name"]
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(METRICS | {"name": values["name"]}))
        report(StepEvent("01_data", "skipped"))
        report(StepEvent("02_zero_shot", "finished", 3.0))
        return folder

    def write_overview(reports, report):
        seen["overviews"].append(reports)
        return reports / "index.html"

    monkeypatch.setattr(cli, "run_steps", run_steps)
    monkeypatch.setattr(cli, "write_overview", write_overview)
    return seen


def said(result):
    """What stands on the error stream, with rich's line breaks undone."""
    return re.sub(r"\s+", " ", result.stderr)


# Parameter files, checked before anything runs


@pytest.mark.parametrize("command", ["run", "check"])
def test_everything_wrong_with_a_file_is_listed_at_once_and_ends_in_2(invoke, write, started, command):
    path = write("run.yaml", "epoch: 3\nlearning_rate: fast\nviews: 1.5\nname: demo\n")
    result = invoke(command, path)
    assert result.exit_code == 2
    assert "run.yaml: 3 entries cannot be used" in said(result)
    assert "- epoch: no notebook reads it; did you mean epochs?" in said(result)
    assert "- learning_rate: 'fast' is no float (highest learning rate" in said(result)
    assert "- views: 1.5 is no int" in said(result)
    assert "Traceback" not in result.output
    assert started == {"runs": [], "overviews": []}


def test_no_run_starts_when_the_last_file_is_wrong(invoke, write, started):
    result = invoke("run", write("a.yaml", "name: a\n"), write("b.yaml", "name: b\n"), write("c.yaml", "sed: 1\n"))
    assert result.exit_code == 2
    assert "did you mean seed?" in said(result)
    assert started["runs"] == []


def test_two_files_with_one_name_are_refused(invoke, write, started):
    files = [write(f"{stem}.yaml", f"name: {name}\n") for stem, name in (("a", "x"), ("b", "y"), ("c", "x"))]
    result = invoke("run", *files)
    assert result.exit_code == 2
    assert "name: x stands in several parameter files" in said(result)
    assert started["runs"] == []


def test_files_that_leave_the_name_out_have_the_same_name(invoke, write, started):
    result = invoke("run", write("a.yaml", "seed: 1\n"), write("b.yaml", "seed: 2\n"))
    assert result.exit_code == 2
    assert "name: demo stands in several" in said(result)


def test_a_missing_file_ends_in_2(invoke):
    result = invoke("run", "gone.yaml")
    assert result.exit_code == 2
    assert "gone.yaml cannot be read" in said(result)


def test_without_a_command_help_is_shown(invoke):
    assert "run" in invoke().output
    assert "--force" in invoke("run", "--help").output


# Runs


def test_a_run_gets_the_file_s_values_and_the_options(invoke, write, started):
    path = write("run.yaml", "name: mine\nlearning_rate: 1e-4\nepochs: 7\n")
    result = invoke("run", path, "--force", "--reports", "elsewhere")
    assert result.exit_code == 0
    [values] = started["runs"]
    assert (values["name"], values["epochs"], values["learning_rate"]) == ("mine", 7, 1e-4)
    assert values["batch_size"] == 64  # the notebook's default
    assert (values["force"], values["reports"]) == (True, Path("elsewhere"))


def test_success_ends_in_0_and_prints_the_page_to_open_and_nothing_else(invoke, write, started, tmp_path):
    result = invoke("run", write("run.yaml", "name: demo\n"))
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "reports" / "index.html")
    assert "01_data unchanged, skipped" in said(result)
    assert "02_zero_shot done in 3 s" in said(result)
    assert re.search(r"majority .*0\.812.*0\.750 to 0\.875", said(result))


def test_the_other_runs_go_on_when_one_fails_and_the_end_is_1(invoke, write, started):
    result = invoke("run", *(write(f"{name}.yaml", f"name: {name}\n") for name in ("a", "fails", "b")))
    assert result.exit_code == 1
    assert [values["name"] for values in started["runs"]] == ["a", "fails", "b"]
    assert len(started["overviews"]) == 1
    assert "03_train failed after 3 s" in said(result)
    assert "Traceback" not in result.output


def test_an_error_is_shown_as_it_is_written(invoke, write, started):
    result = invoke("run", write("fails.yaml", "name: fails\n"))
    assert "error: 03_train: the [red]cell's[/red] own :warning: message" in said(result)


def test_an_overview_that_fails_ends_in_1(invoke, write, started, monkeypatch):
    def write_overview(reports, report):
        raise HistoCLIPError("06_table: no")

    monkeypatch.setattr(cli, "write_overview", write_overview)
    result = invoke("run", write("run.yaml", "name: demo\n"))
    assert result.exit_code == 1
    assert "error: 06_table: no" in said(result)
    assert result.stdout == ""


def test_debug_raises_the_error_itself(invoke, write, started):
    result = invoke("run", "--debug", write("fails.yaml", "name: fails\n"))
    assert isinstance(result.exception, HistoCLIPError)


# Data


LABELS = {"tumor": [0, 1] * 10, "[red]stroma": [1] * 5 + [0] * 15}


def folder_params(write, root, **more):
    lines = {"name": root.name, "dataset": "folder", "data_dir": root, "split": "random"} | more
    return write(f"{root.name}.yaml", "".join(f"{key}: {value}\n" for key, value in lines.items()))


def test_check_prints_the_counts(invoke, write, tmp_path, write_folder):
    path = folder_params(write, write_folder(tmp_path / "good", LABELS))
    result = invoke("check", path)
    assert result.exit_code == 0
    expected = f"{path}: 20 patches (16 train, 4 validation); tumor 0.50, [red]stroma 0.25\n"
    assert result.stdout == expected
    assert not (tmp_path / "reports").exists()


def test_check_lists_truncated_images_and_goes_on_with_the_next_file(invoke, write, tmp_path, write_folder):
    broken, good = write_folder(tmp_path / "broken", LABELS), write_folder(tmp_path / "good", LABELS)
    for name in ("003.png", "011.png"):
        (broken / name).write_bytes((broken / name).read_bytes()[:2000])
    result = invoke("check", folder_params(write, broken), folder_params(write, good))
    assert result.exit_code == 1
    assert "2 of 20 patches cannot be used" in said(result)
    assert re.search(r"003\.png: .*truncated.*011\.png: .*truncated", said(result))
    assert "Traceback" not in result.output
    assert re.fullmatch(r".*good\.yaml: 20 patches.*\n", result.stdout)


def test_check_tells_a_split_that_the_data_does_not_allow(invoke, write, tmp_path, write_folder):
    result = invoke("check", folder_params(write, write_folder(tmp_path / "good", LABELS), split="grouped"))
    assert result.exit_code == 1
    assert "knows no groups" in said(result)


def test_check_finds_missing_data(invoke, write, tmp_path):
    result = invoke("check", folder_params(write, tmp_path / "nowhere"))
    assert result.exit_code == 1
    assert f"{tmp_path / 'nowhere' / 'labels.csv'} was not found" in said(result)


def test_check_with_debug_raises_the_error_itself(invoke, write, tmp_path):
    result = invoke("check", "--debug", folder_params(write, tmp_path / "nowhere"))
    assert isinstance(result.exception, HistoCLIPError)


@pytest.mark.parametrize("debug", [False, True])
def test_a_traceback_is_shown_with_debug_only(write, tmp_path, debug):
    path = folder_params(write, tmp_path / "nowhere")
    command = [sys.executable, "-c", "from histoclip_lib.cli import main; main()", "check", str(path)]
    finished = subprocess.run(
        command + ["--debug"] * debug, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "200"}
    )
    assert finished.returncode == 1
    assert ("Traceback" in finished.stderr) is debug
    assert "labels.csv was not found" in finished.stderr


# The cache


def put_shard(folder, name, dataset="made", patches=3, days=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("pooled", "tokens"):
        (folder / f"{name}.{kind}.npy").write_bytes(b"x" * 2**20)
    about = {"backbone": "b[red]", "pretrained": "", "dataset": dataset, "pooled": [patches, 8, 4], "bytes": 2**21}
    marker = folder / f"{name}.json"
    marker.write_text(json.dumps(about))
    then = time.time() - days * 86400
    os.utime(marker, (then, then))


def test_cache_lists_each_data_set_with_its_size_and_age(invoke, tmp_path):
    folder = tmp_path / "cache" / "features" / "encoder"
    put_shard(folder, "a", patches=256)
    put_shard(folder, "b", patches=4)
    put_shard(folder, "c", "other", days=5.2)
    result = invoke("cache")
    lines = [re.split(r"\s*│\s*", line.strip("│ ")) for line in result.stdout.splitlines() if "│" in line]
    assert ["b[red]", "", "made", "8", "260", "4", "today"] in lines
    assert ["b[red]", "", "other", "8", "3", "2", "5 days ago"] in lines


def test_empty_cache_says_so(invoke, tmp_path):
    result = invoke("cache")
    assert result.exit_code == 0
    assert "holds no features" in result.stdout


def test_prune_removes_what_was_not_used_and_nothing_else(invoke, tmp_path):
    folder = tmp_path / "cache" / "features" / "encoder"
    put_shard(folder, "new", days=2)
    put_shard(folder, "old", "other", days=20)
    (folder / "half.pooled.npy").write_bytes(b"being written")
    assert "removed" in invoke("cache", "--prune", "10").stdout
    assert {path.name for path in folder.iterdir()} == {
        "new.json",
        "new.pooled.npy",
        "new.tokens.npy",
        "half.pooled.npy",
    }
    invoke("cache", "--prune", "0")
    assert {path.name for path in folder.iterdir()} == {"half.pooled.npy"}
    assert invoke("cache", "--prune", "-1").exit_code == 2
