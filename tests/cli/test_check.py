"""`histoclip check`: parameters, data, cost and state, and how each fault is reported."""

import re
from pathlib import Path

import pandas as pd
import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.runs import pipeline

LABELS = {"tumor": [0, 1] * 10, "[red]stroma": [1] * 5 + [0] * 15}


@pytest.fixture
def params(tmp_path, write, write_folder):
    """Write a data set in the folder format and its parameter file; return the latter."""

    def make(name="good", data=True, **more):
        root = tmp_path / name
        if data:
            write_folder(root, LABELS, size=32)
        lines = {"name": name, "dataset": "folder", "data_dir": root, "split": "random"} | more
        return write(f"{name}.yaml", "".join(f"{key}: {value}\n" for key, value in lines.items()))

    return make


def test_check_prints_counts_cost_and_state(invoke, params, tmp_path, schema):
    path = params(views=2)
    result = invoke("check", path)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"{path}: 20 patches in 5 folds; tumor 0.50, [red]stroma 0.25"
    again = invoke("check", params("other", protocol="split"))
    assert "other.yaml: 20 patches (16 train, 4 validation); tumor" in again.stdout
    assert lines[1] == "  weights   installed packages"
    assert lines[2].startswith("  encoder   40 passes at most (20 patches in 2 views)")
    assert lines[3].startswith(f"  cache     1 MiB at most (49 tokens of width 384); {tmp_path / 'cache'}, ")
    assert lines[5:] == ["  finished  nothing", f"  to do     {', '.join(schema)}"]
    assert result.stderr == ""
    assert not (tmp_path / "reports").exists()


def test_check_names_finished_steps(invoke, params, monkeypatch, schema):
    seen, done = [], list(schema)[:2]
    monkeypatch.setattr(
        pipeline, "finished_steps", lambda values, schema, reports: seen.append((values["name"], reports)) or done
    )
    lines = invoke("check", params(), "--reports", "elsewhere").stdout.splitlines()
    assert lines[-2:] == [f"  finished  {', '.join(done)}", f"  to do     {', '.join(list(schema)[2:])}"]
    assert seen == [("good", Path("elsewhere"))]


def test_check_reports_an_unknown_encoder_and_weights_that_do_not_match(invoke, params):
    result = invoke("check", params(backbone="ViT-L-41", pretrained="openai"))
    assert result.exit_code == 1
    assert "error: backbone: 'ViT-L-41' is not" in result.stderr
    result = invoke("check", params(backbone="ViT-B-32", pretrained="openai"))
    assert result.exit_code == 0
    assert "note: backbone ViT-B-32 with pretrained openai: these weights were trained with QuickGELU" in result.stderr
    assert "(49 tokens of width 512)" in result.stdout


def test_check_draws_no_bar_where_there_is_no_terminal(invoke, write):
    result = invoke("check", write("run.yaml", "name: demo\nn_patches: 24\n"))
    assert result.exit_code == 0, result.stderr
    assert result.stderr == (
        "  note: Nothing can be concluded: among the patches held out (24) no class has 10 that show it and 10 that do "
        "not.\n"
    )
    assert "24 patches" in result.stdout


def test_check_notes_what_may_be_wrong_and_leaves_nothing_out(invoke, params, tmp_path):
    path = params(ignore="[remark]", split="random")
    table = pd.read_csv(tmp_path / "good/labels.csv", dtype=str)
    table["remark"], table["group"] = "see below", ["1", "01"] * 10
    table.rename(columns={"file": "filename"}).to_csv(tmp_path / "good/labels.csv", index=False)
    (tmp_path / "good/001.png").write_bytes((tmp_path / "good/000.png").read_bytes())
    result = invoke("check", path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{path}: 20 patches in 5 folds; tumor 0.50, [red]stroma 0.25")
    notes = re.findall(r"^  note: (.*)$", result.stderr, flags=re.MULTILINE)
    assert notes[0] == "column 'filename' is read as 'file'"
    assert notes[1].startswith("groups that may be one patient but are kept apart; `group_pattern: ^0*(.+?)")
    assert notes[2:] == ["images under several names with contradicting labels: 1 (000.png = 001.png: tumor)"]


def test_check_lists_truncated_images_and_continues_with_the_next_file(invoke, params, tmp_path):
    broken, good = params("broken"), params("good")
    for name in ("003.png", "011.png"):
        image = tmp_path / "broken" / name
        image.write_bytes(image.read_bytes()[:1000])
    result = invoke("check", broken, good)
    assert result.exit_code == 1
    assert "2 of 20 patches cannot be used" in result.stderr
    assert re.search(r"003\.png: .*truncated.*011\.png: .*truncated", result.stderr, flags=re.DOTALL)
    assert "Traceback" not in result.output
    assert re.match(r".*good\.yaml: 20 patches", result.stdout)
    assert "broken.yaml" not in result.stdout


def test_check_reports_a_split_that_the_data_does_not_allow(invoke, params):
    result = invoke("check", params(split="grouped"))
    assert result.exit_code == 1
    assert "groups" in result.stderr


def test_missing_data_is_named_and_raised_itself_with_debug(invoke, params, tmp_path):
    path = params("nowhere", data=False)
    result = invoke("check", path)
    assert result.exit_code == 1
    assert f"error: {tmp_path / 'nowhere' / 'labels.csv'} was not found" in result.stderr
    assert "Traceback" not in result.output
    assert isinstance(invoke("check", "--debug", path).exception, HistoCLIPError)
