"""Results as text: which rows come first, what is said beside them, and that names stay names."""

import json

import pandas as pd
import pytest
from rich.console import Console

from histoclip_lib.cli.show import as_markdown, headline_lines, print_headline, print_table_one
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.evaluation.artifacts import read_metrics
from histoclip_lib.evaluation.methods import labels as method_labels
from histoclip_lib.report.tables import table_one_frame

HOSTILE = ['"><img src=x onerror=alert(1)>', "a|b`c", "[red]a[/red]", "标签" * 100, "x" * 200, "\x1b[31ma"]


def row(macc, interval=(0.1, 0.9), average=0.5):
    return {"mAcc": macc, "mAcc_ci": interval and list(interval), "mAP": average}


def write_metrics(folder, rows, **more):
    folder.mkdir(exist_ok=True)
    about = {"name": "demo", "dataset": "synthetic", "backbone": "ViT-B-32", "split": "random", "n_val": 40}
    (folder / "metrics.json").write_text(json.dumps(about | {"methods": rows} | more))
    return folder


def printed(capsys, what, *arguments, width=80):
    what(Console(width=width, markup=False, emoji=False, highlight=False), *arguments)
    return capsys.readouterr().out


@pytest.fixture
def summary(tmp_path):
    """Make the summary of a run from the mAcc of its rows."""

    def make(name="demo", dataset="synthetic", **scores):
        rows = {key: row(macc, (0.5, 0.9)) for key, macc in scores.items()}
        return read_metrics(write_metrics(tmp_path, rows, name=name, dataset=dataset) / "metrics.json")

    return make


# The headline


def test_the_head_and_the_probe_come_first_and_the_trivial_rows_last():
    lines = headline_lines({name: row(0.5 + k / 100) for k, name in enumerate(method_labels())})
    labels = [label for _, label, *_ in lines]
    assert labels[:3] == ["HistoCLIP, patch keys", "HistoCLIP, global key", "Linear probe"]
    assert labels[-2:] == ["All positive", "All negative"]
    assert sorted(labels) == sorted(method_labels().values())
    assert labels.index("Zero-shot: Baseline") < labels.index("Majority of train")


def test_the_best_rows_are_marked_and_numbers_stand_beside_their_interval():
    lines = headline_lines({"majority": row(0.7), "linear_probe": row(0.7 + 1e-9, None, None), "top_k": row(0.2)})
    assert lines == [
        ["*", "Linear probe", "0.700", "", ""],
        ["", "Zero-shot: Top-k", "0.200", "0.100 to 0.900", "0.500"],
        ["*", "Majority of train", "0.700", "0.100 to 0.900", "0.500"],
    ]


def test_rows_that_are_not_known_or_garbled_do_no_harm():
    rows = {"odd": row(0.3), "knn": {"mAcc": "high"}, "mlp": None, "top_k": {"mAcc": 0.4}}
    assert [line[1] for line in headline_lines(rows)] == ["Zero-shot: Top-k", "odd"]
    assert headline_lines({}) == []


def test_a_headline_says_when_the_probe_is_not_beaten(tmp_path, capsys):
    rows = {"linear_probe": row(0.72), "histoclip_patch": row(0.61)}
    text = printed(capsys, print_headline, write_metrics(tmp_path, rows))
    assert text.startswith("demo: 40 validation patches\n")
    assert "HistoCLIP with patch keys does not beat the linear probe: 0.610 and 0.720." in text
    assert "not CLIP" not in text
    rows["histoclip_patch"] = row(0.72)
    assert "does not beat the linear probe" in printed(capsys, print_headline, write_metrics(tmp_path, rows))
    rows["histoclip_patch"] = row(0.73)
    assert "does not beat" not in printed(capsys, print_headline, write_metrics(tmp_path, rows))


def test_a_headline_says_what_is_not_clip(tmp_path, capsys):
    folder = write_metrics(tmp_path, {"majority": row(0.7)}, backbone="lite0-minilm")
    assert "lite0-minilm is not CLIP: these numbers say nothing of the paper's." in printed(
        capsys, print_headline, folder
    )


def test_a_headline_that_cannot_be_read_is_an_error(tmp_path, capsys):
    with pytest.raises(HistoCLIPError, match="rows: 3 is not an object"):
        print_headline(Console(), write_metrics(tmp_path, 3))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_run_of_any_name_has_a_headline_that_fits(tmp_path, capsys, name):
    text = printed(capsys, print_headline, write_metrics(tmp_path, {name: row(0.5)}, name=name), width=60)
    assert "\x1b" not in text
    assert "0.500" in text
    if name.isascii() and len(name) < 30:
        assert text.count(name.replace("\x1b", r"\x1b")) == 2


# Table I


def test_runs_stand_beside_the_paper_and_the_paper_s_other_data_sets_follow(capsys, summary):
    text = printed(capsys, print_table_one, [summary("mine", "pannuke", baseline=0.41, linear_probe=0.9)])
    first, second, rest = text.split("\n\n", 2)
    assert first.splitlines()[0] == "PanNuke"
    assert first.splitlines()[1].split() == ["mAcc", "mine", "paper"]
    assert ["Baseline", "0.4100", "(0.500", "–", "0.900)", "0.4107"] in [line.split() for line in first.splitlines()]
    assert ["Linear", "probe", "0.9000", "(0.500", "–", "0.900)"] in [line.split() for line in first.splitlines()]
    assert ["HistoCLIP", "patch", "0.8824"] in [line.split() for line in first.splitlines()]
    assert "Majority" not in text
    assert second.splitlines()[1].split() == ["mAcc", "BCSS-WSSS", "LUAD-HistoSeg"]
    assert rest == ""


def test_without_runs_the_paper_stands_alone(capsys):
    text = printed(capsys, print_table_one, [])
    assert text.splitlines()[1].split() == ["mAcc", "BCSS-WSSS", "LUAD-HistoSeg", "PanNuke"]
    assert "0.9507" in text


@pytest.mark.parametrize("width", [50, 80, 120, 300])
def test_as_many_runs_stand_side_by_side_as_fit(capsys, summary, width):
    runs = [summary(f"run-{number}", majority=number / 10) for number in range(1, 8)]
    text = printed(capsys, print_table_one, runs, width=width)
    blocks = [block for block in text.split("\n\n") if block.startswith("synthetic")]
    assert [name for block in blocks for name in block.splitlines()[1].split()[1:]] == [run.name for run in runs]
    assert text.count("0.7000 (0.500 – 0.900)") == 1
    assert max(map(len, text.splitlines())) <= width
    if width == 300:
        assert len(blocks) == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_names_fit_and_cannot_act(capsys, summary, name):
    runs = [summary(name, name, majority=0.5), summary(f"{name}-2", name, majority=0.25)]
    text = printed(capsys, print_table_one, runs, width=70)
    assert "\x1b" not in text
    assert {"0.5000 (0.500 – 0.900)", "0.2500 (0.500 – 0.900)"} <= {text[i : i + 22] for i in range(len(text))}
    if name.isascii():
        assert max(len(line) for line in text.splitlines() if "0.5000" in line) <= 70


# Markdown


def test_markdown_has_one_line_for_each_line_of_the_frame(summary):
    lines = as_markdown(table_one_frame([summary(majority=0.5)])).splitlines()
    assert lines[0].startswith("| run | Majority | Baseline |")
    assert set(lines[1]) == set("| -")
    assert "| synthetic: demo | 0.5000 |" in lines[-2]
    assert "| 95 % interval | 0.500 – 0.900 |" in lines[-1]
    assert len(lines) == 2 + 3 + 2
    assert {line.count("|") for line in lines} == {10}


@pytest.mark.parametrize("name", [*HOSTILE, "_a_", "*a*", "a<b", "![x](y)"])
def test_names_are_code_in_markdown(name):
    last = as_markdown(pd.DataFrame([["0.5"]], index=[f"set: {name}"], columns=["x"])).splitlines()[-1]
    assert last.replace(r"\|", "").count("|") == 3
    assert last.startswith("| `") or name.isalnum()
    assert "\x1b" not in last
