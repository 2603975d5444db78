"""The command line: what it checks first, its exit codes, and that a user sees no traceback unasked."""

import csv
import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from histoclip_lib import __version__
from histoclip_lib.cli import main as cli
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.runs import pipeline as runs
from histoclip_lib.runs.pipeline import StepEvent

ROW = {"mAcc": 0.8125, "mAcc_ci": [0.75, 0.875], "mAP": None}
METRICS = {
    "name": "demo",
    "dataset": "synthetic",
    "backbone": "lite0-minilm",
    "split": "grouped",
    "n_val": 40,
    "methods": {"majority": ROW, "linear_probe": ROW | {"mAP": 0.5}},
}
ERRORS = {  # by the name of the run that raises it
    "fails": HistoCLIPError("03_train: the [red]cell's[/red] own :warning: message\nThe notebook: x.ipynb"),
    "full": OSError(errno.ENOSPC, "No space left on device", "/r/full"),
    "closed": PermissionError(errno.EACCES, "Permission denied", "/r/closed"),
    "odd": TypeError("what\nis this"),
    "stopped": KeyboardInterrupt(),
}
COMMANDS = ("run", "check", "table", "show", "cache")


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Start the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
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

    def run_steps(values, schema, reports, force, report):
        seen["runs"].append(values | {"force": force, "reports": reports})
        if values["name"] in ERRORS:
            report(StepEvent("03_train", "started"))
            report(StepEvent("03_train", "failed", 3.0))
            raise ERRORS[values["name"]]
        folder = reports / values["name"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(METRICS | {"name": values["name"]}))
        report(StepEvent("01_data", "skipped"))
        report(StepEvent("02_zero_shot", "finished", 3.0))
        return folder

    def write_overview(reports, report):
        seen["overviews"].append(reports)
        return reports / "index.html"

    monkeypatch.setattr(runs, "run_steps", run_steps)
    monkeypatch.setattr(runs, "write_overview", write_overview)
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
    assert "each run needs a folder of its own" in said(result) and "- x (" in said(result)
    assert started["runs"] == []


def test_files_that_leave_the_name_out_have_the_same_name(invoke, write, started):
    result = invoke("run", write("a.yaml", "seed: 1\n"), write("b.yaml", "seed: 2\n"))
    assert result.exit_code == 2
    assert "each run needs a folder of its own" in said(result) and "- demo (" in said(result)


def test_a_missing_file_ends_in_2(invoke):
    result = invoke("run", "gone.yaml")
    assert result.exit_code == 2
    assert "gone.yaml cannot be read" in said(result)


def test_without_a_command_help_is_shown(invoke):
    result = invoke()
    assert result.exit_code == 2
    assert "Exit codes: 0" in result.output


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
    assert re.search(r"\*  Majority of train +0\.812 +0\.750 to 0\.875", result.stderr)
    assert "lite0-minilm is not CLIP" in said(result)


def test_the_run_s_own_page_is_printed_before_the_overview_s(invoke, write, started, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "reports" / name).mkdir(parents=True)
        (tmp_path / "reports" / name / "index.html").write_text("")
    result = invoke("run", *(write(f"{name}.yaml", f"name: {name}\n") for name in ("a", "b", "c")))
    assert result.stdout.split() == [str(tmp_path / "reports" / page) for page in (
        "a/index.html", "b/index.html", "index.html")]  # fmt: skip


def test_the_other_runs_go_on_when_one_fails_and_the_end_is_1(invoke, write, started):
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
def test_an_error_is_two_lines_as_they_are_written(invoke, write, started, name, first, second):
    result = invoke("run", write("run.yaml", f"name: {name}\n"))
    lines = result.stderr.splitlines()
    assert result.exit_code == 1
    assert lines[-2].startswith(first)
    assert second in lines[-1]
    assert "Traceback" not in result.output


def test_an_interrupted_run_says_how_to_go_on_and_ends_in_130(invoke, write, started, tmp_path):
    files = [write(f"{name}.yaml", f"name: {name}\n") for name in ("a b", "stopped", "c")[1:]]
    result = invoke("run", *files, "--reports", "else where")
    assert result.exit_code == 130
    assert [values["name"] for values in started["runs"]] == ["stopped"]
    assert started["overviews"] == []
    assert result.stdout == ""
    told, command = result.stderr.splitlines()[-2:]
    assert told == "error: interrupted. Finished steps are kept; to go on:"
    assert command == f"histoclip run {files[0]} {files[1]} --reports 'else where'"


def test_a_reports_folder_that_cannot_be_made_is_named(invoke, write, tmp_path):
    (tmp_path / "taken").write_text("")
    result = invoke("run", write("run.yaml", "name: demo\n"), "--reports", "taken")
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()[1:]
    assert first.startswith("error: taken")
    assert "--reports DIR" in second
    assert result.stdout == ""


def test_an_overview_that_fails_ends_in_1(invoke, write, started, monkeypatch):
    def write_overview(reports, report):
        raise HistoCLIPError("06_table: no")

    monkeypatch.setattr(runs, "write_overview", write_overview)
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


def test_check_prints_the_counts_and_what_a_run_would_take(invoke, write, tmp_path, write_folder):
    path = folder_params(write, write_folder(tmp_path / "good", LABELS), views=2)
    result = invoke("check", path)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{path}: 20 patches (16 train, 4 validation); tumor 0.50, [red]stroma 0.25"
    assert lines[1] == "  weights   installed packages"
    assert lines[2].startswith("  encoder   40 passes at most (20 patches in 2 views)")
    assert lines[3].startswith(f"  cache     1 MiB at most (49 tokens of width 384); {tmp_path / 'cache'}, ")
    assert lines[5:] == ["  finished  nothing", f"  to do     {', '.join(runs.STEPS)}"]
    assert result.stderr == ""
    assert not (tmp_path / "reports").exists()


def test_check_tells_which_steps_are_finished(invoke, write, tmp_path, write_folder, monkeypatch):
    path = folder_params(write, write_folder(tmp_path / "good", LABELS))
    seen = []

    def finished_steps(values, schema, reports):
        seen.append((values["name"], reports))
        return ["01_data", "02_zero_shot"]

    monkeypatch.setattr(runs, "finished_steps", finished_steps)
    lines = invoke("check", path, "--reports", "elsewhere").stdout.splitlines()
    assert lines[-2:] == ["  finished  01_data, 02_zero_shot", "  to do     03_train, 04_evaluate, 05_attention"]
    assert seen == [("good", Path("elsewhere"))]


def test_check_tells_of_an_unknown_backbone_and_of_weights_that_do_not_match(invoke, write, tmp_path, write_folder):
    root = write_folder(tmp_path / "good", LABELS)
    result = invoke("check", folder_params(write, root, backbone="ViT-L-41", pretrained="openai"))
    assert result.exit_code == 1
    assert "error: backbone: 'ViT-L-41' is not known." in said(result)
    result = invoke("check", folder_params(write, root, backbone="ViT-B-32", pretrained="openai"))
    assert result.exit_code == 0
    assert "note: backbone ViT-B-32 with pretrained openai: these weights were trained with QuickGELU" in said(result)
    assert "(49 tokens of width 512)" in result.stdout


def test_check_paints_without_a_bar(invoke, write, tmp_path):
    result = invoke("check", write("run.yaml", "n_patches: 24\n"))
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "24 patches" in result.stdout


def test_check_lists_truncated_images_and_goes_on_with_the_next_file(invoke, write, tmp_path, write_folder):
    broken, good = write_folder(tmp_path / "broken", LABELS), write_folder(tmp_path / "good", LABELS)
    for name in ("003.png", "011.png"):
        (broken / name).write_bytes((broken / name).read_bytes()[:2000])
    result = invoke("check", folder_params(write, broken), folder_params(write, good))
    assert result.exit_code == 1
    assert "2 of 20 patches cannot be used" in said(result)
    assert re.search(r"003\.png: .*truncated.*011\.png: .*truncated", said(result))
    assert "Traceback" not in result.output
    assert re.match(r".*good\.yaml: 20 patches", result.stdout)
    assert "broken.yaml" not in result.stdout


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
    command = [sys.executable, "-m", "histoclip_lib.cli.main", "check", str(path)]
    finished = subprocess.run(
        command + ["--debug"] * debug, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "200"}
    )
    assert finished.returncode == 1
    assert ("Traceback" in finished.stderr) is debug
    assert "labels.csv was not found" in finished.stderr


# Results


@pytest.fixture
def finished_run(tmp_path):
    """Leave the metrics of a run."""

    def make(name, **more):
        folder = tmp_path / "reports" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(METRICS | {"name": name} | more))
        (folder / "04_evaluate.html").write_text("")
        return folder

    return make


def test_table_holds_all_runs_and_the_paper(invoke, finished_run):
    finished_run("first")
    finished_run("second", dataset="pannuke")
    result = invoke("table")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.search(r"PanNuke\nmAcc +second +paper\n", result.stdout)
    assert re.search(r"synthetic\nmAcc +first *\n", result.stdout)
    assert "0.8125 (0.750 – 0.875)" in result.stdout


def test_table_as_csv_and_markdown(invoke, finished_run):
    finished_run("first", dataset="a,b|c")
    lines = list(csv.reader(invoke("table", "--format", "csv").stdout.splitlines()))
    assert lines[0][:3] == ["run", "Majority", "Baseline"]
    assert [line[:2] for line in lines[-2:]] == [["a,b|c: first", "0.8125"], ["95 % interval", "0.750 – 0.875"]]
    assert "| ` a,b\\|c: first ` | 0.8125 |" in invoke("table", "--format", "markdown").stdout
    assert invoke("table", "--format", "html").exit_code == 2


def test_table_tells_of_runs_that_are_broken_or_not_current(invoke, finished_run, tmp_path):
    finished_run("broken", rows=3)
    (finished_run("old") / "steps.json").write_text("{}")
    result = invoke("table", "--reports", tmp_path / "reports")
    assert result.exit_code == 0
    assert "broken is left out: metrics.json cannot be used." in result.stderr
    assert "old was started again and has not been evaluated since." in result.stderr
    assert "broken" not in result.stdout


def test_table_without_runs_is_the_paper_s(invoke):
    result = invoke("table")
    assert result.exit_code == 0
    assert "0.9121" in result.stdout
    assert "histoclip run params/demo.yaml" in result.stderr


def test_show_prints_headline_parameters_state_and_pages(invoke, finished_run):
    folder = finished_run("first")
    result = invoke("show", "first")
    assert result.exit_code == 0
    assert "first: 40 validation patches" in result.stdout
    assert "parameters that differ from the defaults: none" in result.stdout
    assert "not current: some steps were never finished" in result.stdout
    assert f"\n  {folder / '04_evaluate.html'}\n" in result.stdout
    assert result.stderr == ""


def test_show_of_a_run_that_is_not_evaluated_yet(invoke, tmp_path):
    (tmp_path / "reports" / "new").mkdir(parents=True)
    (tmp_path / "reports" / "new" / "steps.json").write_text("{}")
    result = invoke("show", "new")
    assert result.exit_code == 0
    assert result.stdout.startswith("new: not evaluated yet\n")


@pytest.mark.parametrize("pages", [("index.html", "04_evaluate.html"), ("04_evaluate.html", "01_data.html")])
def test_show_opens_the_page(invoke, finished_run, monkeypatch, pages):
    folder, opened = finished_run("first"), []
    for page in pages:
        (folder / page).write_text("")
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert invoke("show", "first").exit_code == 0
    assert opened == []
    assert invoke("show", "first", "--open").exit_code == 0
    assert opened == [(folder / pages[0]).as_uri()]


def test_an_unknown_run_is_told_with_the_nearest_names(invoke, finished_run):
    for name in ("demo", "demo2", "other"):
        finished_run(name)
    result = invoke("show", "dmo")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: dmo: there is no such run in reports.\nDid you mean demo or demo2? Runs: demo, demo2, other.\n"
    )
    assert invoke("show", "../reports/demo").exit_code == 2
    assert "Runs: none." in invoke("show", "demo", "--reports", "nowhere").stderr


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_fits_80_columns(invoke, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert re.search(rf"Examples?:\n  +histoclip .*{command}", result.stdout)
    assert "--debug" in result.stdout
    assert result.stdout.isascii()


def test_help_lists_commands_and_exit_codes_once(invoke, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = invoke("--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    assert all(re.search(rf"^  {command} +[A-Z].*\.$", text, flags=re.MULTILINE) for command in COMMANDS)
    assert text.count("Exit codes:") == 1
    assert not any("xit code" in invoke(command, "--help").stdout for command in COMMANDS)


def test_help_and_version_load_nothing_heavy(tmp_path):
    code = (
        "import sys; from histoclip_lib import cli; cli.app(['--version'], standalone_mode=False);"
        "print({'torch', 'papermill', 'pandas', 'sklearn', 'nbformat'} & set(sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert finished.stdout == f"histoclip {__version__}\nset()\n"


def test_wrong_options_end_in_2(invoke):
    for arguments in (("run",), ("runn",), ("run", "a.yaml", "--forse"), ("cache", "--prune", "soon"), ("show",)):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "Error: " in result.stderr
        assert result.stdout == ""


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
    assert result.stdout.splitlines()[0] == str(tmp_path / "cache")
    lines = [line.split() for line in result.stdout.splitlines()[2:]]
    assert ["features,", "b[red]", "made", "today", "8", "260", "4"] in lines
    assert ["features,", "b[red]", "other", "5", "days", "ago", "8", "3", "2"] in lines


def test_cache_lists_and_prunes_what_is_no_features_too(invoke, tmp_path):
    tower = tmp_path / "cache" / "onnx" / "tower.onnx"
    tower.parent.mkdir(parents=True)
    tower.write_bytes(b"x" * 2**21)
    assert "tower.onnx" in invoke("cache").stdout
    assert "removed" in invoke("cache", "--prune", "0").stdout
    assert not tower.exists()


def test_empty_cache_says_so(invoke, tmp_path):
    result = invoke("cache")
    assert result.exit_code == 0
    assert "holds nothing" in result.stdout


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
