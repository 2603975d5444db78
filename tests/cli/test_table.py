"""`histoclip table`: Table I in three formats, and that names stay names."""

import csv
import re

import pandas as pd
import pytest
from rich.console import Console

from histoclip_lib.cli.table import as_markdown, print_table_one
from histoclip_lib.evaluation.artifacts import read_metrics
from histoclip_lib.report.tables import table_one_frame

HOSTILE = ['"><img src=x onerror=alert(1)>', "a|b`c", "[red]a[/red]", "标签" * 100, "x" * 200, "\x1b[31ma"]


@pytest.fixture
def metrics(tmp_path, write_metrics):
    """Make the metrics of a run from the mAcc of its methods."""

    def make(name="demo", dataset="synthetic", **scores):
        methods = {key: {"mAcc": macc, "mAcc_ci": [0.5, 0.9], "mAP": 0.5} for key, macc in scores.items()}
        return read_metrics(write_metrics(tmp_path, methods=methods, name=name, dataset=dataset) / "metrics.json")

    return make


def printed(capsys, runs, width=80):
    print_table_one(Console(width=width, markup=False, emoji=False, highlight=False), runs)
    return capsys.readouterr().out


# The command


def test_table_holds_all_runs_and_the_paper(invoke, write_metrics, tmp_path):
    write_metrics(tmp_path / "reports" / "first")
    write_metrics(tmp_path / "reports" / "second", dataset="pannuke")
    result = invoke("table")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.search(r"PanNuke\nmAcc +second +paper\n", result.stdout)
    assert re.search(r"synthetic\nmAcc +first *\n", result.stdout)
    assert "0.812 (0.750 – 0.875)" in result.stdout


def test_table_as_csv_and_markdown(invoke, write_metrics, tmp_path):
    write_metrics(tmp_path / "reports" / "first", dataset="a,b|c")
    lines = list(csv.reader(invoke("table", "--format", "csv").stdout.splitlines()))
    assert lines[0][:3] == ["run", "Majority", "Baseline"]
    assert [line[:2] for line in lines[-2:]] == [["a,b|c: first", "0.812"], ["95% interval", "0.750 – 0.875"]]
    assert "| ` a,b\\|c: first ` | 0.812 |" in invoke("table", "--format", "markdown").stdout
    assert invoke("table", "--format", "html").exit_code == 2


def test_table_names_runs_that_are_broken_or_not_current(invoke, write_metrics, tmp_path):
    write_metrics(tmp_path / "reports" / "broken", methods=3)
    (write_metrics(tmp_path / "reports" / "old") / "run.json").write_text('{"steps": {}}')
    result = invoke("table", "--reports", tmp_path / "reports")
    assert result.exit_code == 0
    assert "broken is left out: metrics.json cannot be used." in result.stderr
    assert "old was started again and has not been evaluated since." in result.stderr
    assert "broken" not in result.stdout


def test_table_without_runs_is_the_paper_s(invoke):
    result = invoke("table")
    assert result.exit_code == 0
    assert "0.912" in result.stdout
    assert "histoclip run params/demo.yaml" in result.stderr


# As text


def test_runs_stand_beside_the_paper_and_its_other_data_sets_follow(capsys, metrics):
    text = printed(capsys, [metrics("mine", "pannuke", baseline=0.41, linear_probe=0.9)])
    first, second, rest = text.split("\n\n", 2)
    lines = [line.split() for line in first.splitlines()]
    assert lines[:2] == [["PanNuke"], ["mAcc", "mine", "paper"]]
    assert ["Baseline", "0.410", "(0.500", "–", "0.900)", "0.411"] in lines
    assert ["Linear", "probe", "0.900", "(0.500", "–", "0.900)"] in lines
    assert any(line[0] == "HistoCLIP" and line[-1] == "0.882" for line in lines)
    assert "Majority" not in text
    assert second.splitlines()[1].split() == ["mAcc", "BCSS-WSSS", "LUAD-HistoSeg"]
    assert rest == ""


@pytest.mark.parametrize("width", [50, 80, 300])
def test_as_many_runs_stand_side_by_side_as_fit(capsys, metrics, width):
    runs = [metrics(f"run-{number}", majority=number / 10) for number in range(1, 8)]
    text = printed(capsys, runs, width)
    blocks = [block for block in text.split("\n\n") if block.startswith("synthetic")]
    assert [name for block in blocks for name in block.splitlines()[1].split()[1:]] == [run.name for run in runs]
    assert text.count("0.700 (0.500 – 0.900)") == 1
    assert max(map(len, text.splitlines())) <= width
    if width == 300:
        assert len(blocks) == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_names_fit_and_cannot_act(capsys, metrics, name):
    runs = [metrics(name, name, majority=0.5), metrics(f"{name}-2", name, majority=0.25)]
    text = printed(capsys, runs, 70)
    assert "\x1b" not in text
    assert "0.500 (0.500 – 0.900)" in text and "0.250 (0.500 – 0.900)" in text
    if name.isascii():
        assert max(len(line) for line in text.splitlines() if "0.500" in line) <= 70


# As Markdown


def test_markdown_has_one_line_for_each_line_of_the_frame(metrics):
    lines = as_markdown(table_one_frame([metrics(majority=0.5)])).splitlines()
    assert lines[0].startswith("| run | Majority | Baseline |")
    assert set(lines[1]) == set("| -")
    assert "| synthetic: demo | 0.500 |" in lines[-2]
    assert "| 95% interval | 0.500 – 0.900 |" in lines[-1]
    assert len(lines) == 2 + 3 + 2
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("name", [*HOSTILE, "_a_", "*a*", "a<b", "![x](y)"])
def test_names_are_code_in_markdown(name):
    last = as_markdown(pd.DataFrame([["0.5"]], index=[f"set: {name}"], columns=["x"])).splitlines()[-1]
    assert last.replace(r"\|", "").count("|") == 3
    assert last.startswith("| `") or name.isalnum()
    assert "\x1b" not in last
