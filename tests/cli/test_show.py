"""`histoclip show`: the results of a run, what it was made with, whether it is up to date, and its pages."""

import json

import pytest
from rich.console import Console

from histoclip_lib.cli import show
from histoclip_lib.cli.show import details, headline_lines, print_headline, run_names
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.evaluation.artifacts import read_metrics
from histoclip_lib.evaluation.methods import labels as method_labels
from histoclip_lib.runs import pipeline
from histoclip_lib.runs.parameters import Parameter

HOSTILE = ['"><img src=x onerror=alert(1)>', "a|b`c", "[red]a[/red]", "标签" * 100, "x" * 200, "\x1b[31ma"]


def line(macc, interval=(0.1, 0.9), average=0.5):
    return {"mAcc": macc, "mAcc_ci": interval and list(interval), "mAP": average}


# The command


def test_show_prints_results_parameters_state_and_pages(invoke, write_metrics, tmp_path):
    folder = write_metrics(tmp_path / "reports" / "first")
    (folder / "04_results.html").write_text("")
    result = invoke("show", "first")
    assert result.exit_code == 0, result.output
    assert "first: 40 held-out patches" in result.stdout
    assert "parameters that differ from the defaults: none" in result.stdout
    assert "not up to date: it was never started as a whole" in result.stdout
    assert f"\n  {folder / '04_results.html'}\n" in result.stdout
    assert result.stderr == ""


def test_show_of_a_run_that_is_not_evaluated_yet(invoke, tmp_path):
    (tmp_path / "reports" / "new").mkdir(parents=True)
    (tmp_path / "reports" / "new" / "run.json").write_text("{}")
    result = invoke("show", "new", "--open")
    assert result.exit_code == 2
    assert result.stdout.startswith("new: not evaluated yet\n")
    assert "new: there is no page yet" in result.stderr


@pytest.mark.parametrize("pages", [("04_results.html", "01_data.html"), ("01_data.html", "02_zero_shot.html")])
def test_show_opens_the_page_of_results_or_the_first(invoke, write_metrics, tmp_path, monkeypatch, pages):
    folder, opened = write_metrics(tmp_path / "reports" / "first"), []
    for page in pages:
        (folder / page).write_text("")
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert invoke("show", "first").exit_code == 0
    assert opened == []
    assert invoke("show", "first", "--open").exit_code == 0
    assert opened == [(folder / pages[0]).as_uri()]


def test_an_unknown_run_is_reported_with_the_nearest_names(invoke, write_metrics, tmp_path):
    for name in ("demo", "demo2", "other"):
        write_metrics(tmp_path / "reports" / name)
    result = invoke("show", "dmo")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: dmo: there is no such run in reports.\nDid you mean demo or demo2? Runs: demo, demo2, other.\n"
    )
    assert invoke("show", "../reports/demo").exit_code == 2
    assert "Runs: none." in invoke("show", "demo", "--reports", "nowhere").stderr


# What a run was made with

SMALL_SCHEMA = {
    "01_data": {
        "name": Parameter("name", str, "demo", "name"),
        "reports_dir": Parameter("reports_dir", str, "reports", "folder"),
        "epochs": Parameter("epochs", int, 3, "passes"),
    },
    "02_zero_shot": {"data_dir": Parameter("data_dir", str, "", "data")},
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Leave what a run with some parameters leaves, of which some steps are finished."""

    def make(name="mine", finished=tuple(SMALL_SCHEMA), **values):
        folder, seen = tmp_path / "reports" / name, {"epochs": 3, "data_dir": ""} | values
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"parameters": seen}))

        def finished_steps(given, schema, reports):
            assert (given, schema, reports) == (seen | {"name": name}, SMALL_SCHEMA, folder.parent)
            return list(finished)

        monkeypatch.setattr(pipeline, "finished_steps", finished_steps)
        return folder

    return make


def test_run_names_are_those_of_finished_and_unfinished_runs(tmp_path, start, write_metrics):
    start("b")
    start("a")
    write_metrics(tmp_path / "reports" / "c")
    (tmp_path / "reports" / "empty").mkdir()
    assert run_names(tmp_path / "reports") == ["a", "b", "c"]
    assert run_names(tmp_path / "nowhere") == []


def test_a_run_with_defaults_is_up_to_date(start):
    assert details(start(), SMALL_SCHEMA)[:2] == [
        "parameters that differ from the defaults: none",
        "up to date: a run with these parameters would execute nothing",
    ]


def test_parameters_that_differ_and_steps_to_execute_are_listed(start):
    assert details(start(finished=["01_data"], epochs=7, data_dir="<b>here</b>"), SMALL_SCHEMA)[:2] == [
        "parameters that differ from the defaults: data_dir: <b>here</b>, epochs: 7",
        "not up to date: a run would execute 02_zero_shot",
    ]


@pytest.mark.parametrize("record", ["{", "[]", '{"parameters": 3}', '{"parameters": {"epochs": 3}}'])
def test_a_run_with_other_or_garbled_parameters_is_not_up_to_date(start, record):
    folder = start()
    (folder / "run.json").write_text(record)
    assert details(folder, SMALL_SCHEMA)[1].startswith("not up to date: it was never started as a whole")


def test_pages_are_paths_with_the_results_first(start):
    folder = start()
    for name in ("01_data.html", "04_results.html", ".hidden", "metrics.json"):
        (folder / name).write_text("")
    lines = details(folder, SMALL_SCHEMA)
    assert lines[lines.index("pages") + 1 : -2] == [f"  {folder / name}.html" for name in ("04_results", "01_data")]
    assert lines[-2:] == [f"files in {folder}", "  metrics.json, run.json"]


# The headline


@pytest.fixture
def headline(tmp_path, write_metrics, capsys):
    """Print the headline of a run with some methods."""

    def text(methods, name="demo", width=80, **more):
        folder = write_metrics(tmp_path / "run", methods=methods, name=name, **{"backbone": "ViT-B-32"} | more)
        print_headline(Console(width=width, markup=False, emoji=False, highlight=False), folder)
        return capsys.readouterr().out

    return text


@pytest.fixture
def lines_of(tmp_path, write_metrics):
    return lambda methods: headline_lines(read_metrics(write_metrics(tmp_path, methods=methods) / "metrics.json"))


def test_histoclip_and_the_probe_come_first_and_uninformative_methods_last(lines_of):
    labels = [label for _, label, *_ in lines_of({name: line(0.5 + k / 100) for k, name in enumerate(method_labels())})]
    wanted = [method_labels()[name] for name in show.FIRST_METHODS]
    assert labels[: len(wanted)] == wanted
    assert labels[-2:] == ["All positive", "All negative"]
    assert sorted(labels) == sorted(method_labels().values())
    assert labels.index("Zero-shot: Baseline") < labels.index("Majority of train")


def test_the_best_methods_are_marked_and_intervals_stand_beside_numbers(lines_of):
    methods = {"majority": line(0.7), "linear_probe": line(0.7 + 1e-9, None, None), "top_k": line(0.2)}
    assert lines_of(methods | {"odd": line(0.3)}) == [
        ["*", "Linear probe", "0.700", "", ""],
        ["", "Zero-shot: Top-k", "0.200", "0.100 to 0.900", "0.500"],
        ["*", "Majority of train", "0.700", "0.100 to 0.900", "0.500"],
        ["", "odd", "0.300", "0.100 to 0.900", "0.500"],
    ]
    assert lines_of({}) == []


@pytest.mark.parametrize(("macc", "is_said"), [(0.61, True), (0.72, True), (0.73, False)])
def test_a_headline_says_when_the_probe_is_not_beaten(headline, macc, is_said):
    text = headline({"linear_probe": line(0.72), "histoclip_patch": line(macc)})
    assert text.startswith("demo: 40 held-out patches\n")
    note = f"HistoCLIP with patch tokens is not above the linear probe: {macc:.3f} against 0.720."
    assert (note in text) is is_said
    assert "not CLIP" not in text


def test_a_headline_says_what_is_not_clip(headline):
    assert "lite0-minilm is not CLIP" in headline({"majority": line(0.7)}, backbone="lite0-minilm")


def test_a_headline_that_cannot_be_read_is_an_error(headline):
    with pytest.raises(HistoCLIPError, match="methods: 3 is not an object"):
        headline(3)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_run_of_any_name_has_a_headline_that_fits(headline, name):
    text = headline({name: line(0.5)}, name=name, width=60)
    assert "\x1b" not in text
    assert "0.500" in text
    if name.isascii() and len(name) < 30:
        assert text.count(name.replace("\x1b", r"\x1b")) == 2
