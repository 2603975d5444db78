"""Grids: every combination once, under names that fit a folder, checked like any parameter file."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.runs import grids
from histoclip_lib.runs.grids import grid_table, is_grid, read_grid, read_runs, seed_spread
from histoclip_lib.runs.parameters import Parameter, read_params

ROOT = Path(__file__).parents[2]
DECLARED = {
    name: Parameter(name, kind, default, meaning)
    for name, kind, default, meaning in (
        ("name", str, "demo", "name of the run"),
        ("dataset", str, "synthetic", "which data"),
        ("data_dir", str, "", "folder of the data"),
        ("backbone", str, "lite0-minilm", "which encoder"),
        ("pretrained", str, "", "which weights"),
        ("seed", int, 0, "of the training"),
        ("views", int, 8, "flips and rotations"),
        ("learning_rate", float, 1e-3, "highest learning rate"),
        ("compiled", bool, False, "torch.compile"),
        ("seeds", list[int], [0], "of the studies"),
        ("reports_dir", str, "reports", "where reports go"),
    )
}
SCHEMA = {"01_data": DECLARED}
SAFE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


def write(tmp_path, text, name="grid.yaml"):
    path = tmp_path / name
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False), encoding="utf-8")
    return path


def refusal(tmp_path, text):
    with pytest.raises(HistoCLIPError) as caught:
        read_grid(write(tmp_path, text), SCHEMA)
    return str(caught.value)


# Combinations and names


def test_there_is_a_run_for_each_combination_the_last_parameter_fastest(tmp_path):
    runs = read_grid(write(tmp_path, "name: g\nviews: 2\ngrid:\n  seed: [0, 1]\n  dataset: [a, b, c]\n"), SCHEMA)
    assert [run.name for run in runs] == [f"g_seed-{seed}_dataset-{name}" for seed in (0, 1) for name in "abc"]
    assert [(run.values["seed"], run.values["dataset"]) for run in runs] == [(s, d) for s in (0, 1) for d in "abc"]
    assert all(run.values["views"] == 2 and run.values["learning_rate"] == 1e-3 for run in runs)
    assert runs[4].varied == {"seed": 1, "dataset": "b"}


def test_each_run_has_the_values_that_a_file_of_its_own_would_have(tmp_path):
    text = "name: g\nlearning_rate: 1e-4\ngrid:\n  seed: [3]\n  learning_rate_and_views: [{views: 1}]\n"
    [run] = read_grid(write(tmp_path, text), SCHEMA)
    alone = write(tmp_path, f"name: {run.name}\nlearning_rate: 1e-4\nseed: 3\nviews: 1\n", "alone.yaml")
    assert run.values == read_params(alone, SCHEMA)


def test_a_list_of_mappings_varies_parameters_together(tmp_path):
    text = """
name: g
grid:
  seed: [0, 1]
  encoder:
    - {backbone: lite0-minilm}
    - {backbone: ViT-L-14-quickgelu, pretrained: openai}
"""
    runs = read_grid(write(tmp_path, text), SCHEMA)
    assert [run.name for run in runs] == [
        "g_seed-0_backbone-lite0-minilm",
        "g_seed-0_backbone-ViT-L-14-quickgelu_pretrained-openai",
        "g_seed-1_backbone-lite0-minilm",
        "g_seed-1_backbone-ViT-L-14-quickgelu_pretrained-openai",
    ]
    assert [run.varied["pretrained"] for run in runs] == ["", "openai", "", "openai"]


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("data_dir", "/data/set one", "data_dir-data-set-one"),
        ("data_dir", "../../etc", "data_dir-..-..-etc"),
        ("data_dir", "<script>alert(1)</script>", "data_dir-script-alert-1-script"),
        ("data_dir", "肿瘤", "data_dir-none"),
        ("data_dir", "", "data_dir-none"),
        ("learning_rate", "1e-4", "learning_rate-0.0001"),
        ("compiled", True, "compiled-true"),
        ("seeds", [0, 1], "seeds-0-1"),
        ("seed", -1, "seed-1"),
    ],
)
def test_values_become_names_of_folders(tmp_path, key, value, part):
    [run] = read_grid(write(tmp_path, {"name": "g", "grid": {key: [value]}}), SCHEMA)
    assert run.name == f"g_{part}"


def test_names_that_would_be_one_end_in_a_digest(tmp_path):
    dirs = ["a/b", "a-b", "A b", "c"]
    first = read_grid(write(tmp_path, {"name": "g", "grid": {"data_dir": dirs}}), SCHEMA)
    names = {run.values["data_dir"]: run.name for run in first}
    assert names["c"] == "g_data_dir-c"
    assert all(re.fullmatch(r"g_data_dir-[aA]-b-[0-9a-f]{12}", names[name]) for name in dirs[:3])
    again = read_grid(write(tmp_path, {"name": "g", "grid": {"data_dir": dirs[::-1]}}), SCHEMA)
    assert {run.values["data_dir"]: run.name for run in again} == names


def test_long_names_end_in_a_digest(tmp_path):
    dirs = ["/data/" + "x" * 150, "/data/" + "x" * 149 + "y", "/data/short"]
    for base in ("g", "g" * 100):
        names = [run.name for run in read_grid(write(tmp_path, {"name": base, "grid": {"data_dir": dirs}}), SCHEMA)]
        assert [len(name) for name in names[:2]] == [100, 100]
        assert len(set(names)) == 3
        assert all(re.fullmatch(rf"{base[:87]}.*-[0-9a-f]{{12}}", name) for name in names[:2])


texts = st.text(max_size=150).filter(lambda text: "\0" not in text and text.isprintable())


@given(dirs=st.lists(texts, min_size=1, max_size=6, unique=True), base=st.from_regex(SAFE, fullmatch=True))
@settings(max_examples=150)
def test_any_names_are_safe_distinct_and_the_same_each_time(tmp_path_factory, dirs, base):
    path = write(tmp_path_factory.mktemp("any"), {"name": base, "grid": {"data_dir": dirs, "seed": [0, 1]}})
    try:
        names = [run.name for run in read_grid(path, SCHEMA)]
    except HistoCLIPError as error:
        assert "longer than any name" in str(error) or "more than plain YAML" in str(error)
        return
    assert all(re.fullmatch(SAFE, name) for name in names)
    assert len({name.casefold() for name in names}) == 2 * len(dirs)
    assert [run.name for run in read_grid(path, SCHEMA)] == names


# What cannot be used


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ("", "grid: None maps no parameter to a list of values"),
        ("[seed]", "grid: ['seed'] maps no parameter"),
        ("{}", "grid: {} maps no parameter"),
        ("{seed: 3}", "grid, seed: 3 is not a list of values"),
        ("{seed: []}", "grid, seed: [] is not a list of values"),
        ("{seed: [0, 0]}", 'grid, seed: {"seed": 0} stands there twice'),
        ("{learning_rate: [1e-3, 0.001]}", 'grid, learning_rate: {"learning_rate": 0.001} stands there twice'),
        ("{sed: [0, 1]}", "grid, sed: sed: no notebook reads it; did you mean seed?"),
        ("{seed: [0, fast]}", "grid, seed: seed: 'fast' is not of type int (of the training)"),
        ("{seed: [0, {views: 1}]}", "grid, seed: mappings, and nothing but mappings"),
        ("{seed: [{views: 1}]}", "stand under a key that is not a parameter"),
        ("{encoder: [{backbone: a}, b]}", "grid, encoder: mappings, and nothing but mappings"),
        (
            "{encoder: [{backbone: a, bakbone: b}]}",
            "grid, encoder: bakbone: no notebook reads it; did you mean backbone?",
        ),
        ("{encoder: [{seed: many}]}", "grid, encoder: seed: 'many' is not of type int"),
        ("{encoder: [{1: 2, seed: 3}]}", "grid, encoder: 1: no notebook reads it"),
        ("{name: [a, b]}", "grid, name: name cannot vary"),
        ("{reports_dir: [a, b]}", "grid, reports_dir: reports_dir cannot vary"),
        ("{run: [{name: a}]}", "grid, run: name cannot vary"),
        ("{seed: [0], other: [{seed: 1}]}", "grid, seed: stands in two lists"),
        ("{views: [1, 2]}", "views: stands there and under grid"),
        ("{seed: [0], seed: [1]}", "seed: appears 2 times"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, grid, reason):
    message = refusal(tmp_path, f"name: g\nviews: 2\ngrid: {grid}\n")
    assert "grid.yaml: 1 entries cannot be used" in message
    assert reason in message


def test_everything_that_cannot_be_used_is_listed_at_once(tmp_path):
    message = refusal(tmp_path, "name: a/b\nview: 2\ngrid:\n  sed: [1]\n  views: [x, 1]\n  seed: 3\n")
    assert re.findall(r"^  - (.*?): ", message, flags=re.MULTILINE) == [
        "view",
        "name",
        "grid, seed",
        "grid, sed",
        "grid, views",
    ]


def test_a_thousand_runs_are_the_most(tmp_path):
    seeds = list(range(500))
    assert len(read_grid(write(tmp_path, {"grid": {"seed": seeds, "views": [1, 2]}}), SCHEMA)) == 1000
    message = refusal(tmp_path, {"grid": {"seed": seeds, "views": [1, 2], "dataset": ["a", "b"]}})
    assert "grid: 2,000 combinations, where 1,000 runs are the most" in message
    millions = {key: list(range(900)) for key in ("seed", "views", "learning_rate")}
    assert "729,000,000 combinations" in refusal(tmp_path, {"grid": millions})


keys = texts | st.sampled_from(list(DECLARED))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts


def lists_and_mappings(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)


@given(grid=st.recursive(scalars, lists_and_mappings, max_leaves=12))
@settings(max_examples=300)
def test_no_grid_ends_in_another_exception(tmp_path_factory, grid):
    path = write(tmp_path_factory.mktemp("any"), {"name": "g", "grid": grid})
    try:
        runs = read_grid(path, SCHEMA)
    except HistoCLIPError:
        return
    assert len({run.name.casefold() for run in runs}) == len(runs)


# Files and grids alike


def test_files_and_grids_are_read_alike(tmp_path):
    plain = write(tmp_path, "name: one\nseed: 5\n", "one.yaml")
    grid = write(tmp_path, "name: g\ngrid: {seed: [0, 1]}\n")
    runs = read_runs([plain, grid], SCHEMA)
    assert [(path, values["name"], values["seed"]) for path, values in runs] == [
        (plain, "one", 5),
        (grid, "g_seed-0", 0),
        (grid, "g_seed-1", 1),
    ]
    assert (is_grid(plain), is_grid(grid)) == (False, True)


def test_one_name_for_two_runs_is_refused_whatever_its_case(tmp_path):
    files = [write(tmp_path, f"name: {name}\n", f"{index}.yaml") for index, name in enumerate(["x", "y", "X", "y"])]
    with pytest.raises(HistoCLIPError, match="these have one name") as caught:
        read_runs(files, SCHEMA)
    assert f"- x ({files[0]}) and X ({files[2]})" in str(caught.value)
    assert f"- y ({files[1]}) and y ({files[3]})" in str(caught.value)
    grid = write(tmp_path, "name: g\ngrid: {seed: [0, 1]}\n")
    with pytest.raises(HistoCLIPError, match=r"g_seed-0 .* and g_seed-0"):
        read_runs([grid, grid], SCHEMA)


@pytest.mark.parametrize("text", ["", "5\n", "- a\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(HistoCLIPError, match="must hold"):
        read_runs([write(tmp_path, text)], SCHEMA)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "name: g\n"])
def test_what_is_no_grid_is_an_error_for_who_wants_one(tmp_path, text):
    assert refusal(tmp_path, text)


def test_the_example_is_a_grid_of_six():
    from histoclip_lib.report.notebooks import run_notebooks
    from histoclip_lib.runs.parameters import read_schema

    schema = read_schema([ROOT / "notebooks" / f"{step}.ipynb" for step in run_notebooks()])
    runs = read_runs([ROOT / "params" / "grid.yaml"], schema)
    assert [values["name"] for _, values in runs] == [f"grid_seed-{s}_views-{v}" for s in range(3) for v in (1, 2)]


# Tables


@pytest.fixture
def grid(tmp_path):
    return read_grid(write(tmp_path, "name: g\ngrid: {views: [1, 2], seed: [0, 1, 2]}\n"), SCHEMA)


def finish(reports, run, accuracy, ahead=0.01, steps=None):
    folder = reports / run.name
    folder.mkdir(parents=True)
    rows = {
        "linear_probe": {"mAcc": accuracy, "mAcc_ci": [accuracy - 0.05, accuracy + 0.05], "mAP": 0.5},
        "histoclip_global": {"mAcc": accuracy, "mAcc_ci": None, "mAP": None},
        "histoclip_patch": {"mAcc": accuracy + ahead, "mAcc_ci": [0.1, 0.9], "mAP": 0.75},
    }
    about = {"name": run.name, "dataset": "synthetic", "backbone": "b", "pretrained": "", "split": "random"}
    (folder / "metrics.json").write_text(json.dumps(about | {"methods": rows}))
    if steps is not None:
        (folder / "run.json").write_text(json.dumps({"steps": steps}))


def test_the_table_has_a_line_for_each_run_and_what_varies(grid, tmp_path):
    reports = tmp_path / "reports"
    finish(reports, grid[0], 0.8125)
    finish(reports, grid[1], 0.75, steps={"01_data": {}})
    (reports / grid[2].name).mkdir()
    (reports / grid[2].name / "metrics.json").write_text("{")
    table = grid_table(grid, reports)
    assert list(table.index) == [run.name for run in grid]
    assert list(table.columns[:2]) == ["views", "seed"]
    first = table.iloc[0]
    assert (first["views"], first["seed"], first["state"]) == ("1", "0", "finished")
    assert first["Linear probe: mAcc"] == "0.812"
    assert first["Linear probe: 95%"] == "0.762 – 0.863"
    assert first["HistoCLIP, patch tokens: mAP"] == "0.750"
    assert (first["HistoCLIP, global embedding: 95%"], first["HistoCLIP, global embedding: mAP"]) == ("—", "—")
    assert table.iloc[1]["state"] == "started again"
    assert "metrics.json cannot be read" in table.iloc[2]["state"]
    assert str(tmp_path) not in table.iloc[2]["state"]
    assert table.iloc[3]["state"] == "not finished"
    assert set(table.iloc[3, 2:-1]) == {"—"}


def test_the_spread_is_over_seeds_of_the_same_other_parameters(grid, tmp_path):
    reports = tmp_path / "reports"
    for run, accuracy in zip(grid[:3], (0.7, 0.8, 0.75), strict=True):
        finish(reports, run, accuracy)
    finish(reports, grid[3], 0.6)
    finish(reports, grid[4], 0.1, steps={})  # started again: no longer a result
    table = seed_spread(grid, reports)
    assert list(table["views"]) == ["1", "2"]
    assert list(table["seeds"]) == ["3 of 3", "1 of 3"]
    assert list(table["Linear probe: mAcc, mean"]) == ["0.750", "0.600"]
    assert list(table["Linear probe: s.d."]) == ["0.050", "—"]
    assert list(table["HistoCLIP, patch tokens: range"]) == ["0.710 – 0.810", "0.610 – 0.610"]


def test_a_grid_without_seeds_or_results_has_a_table_too(tmp_path):
    runs = read_grid(write(tmp_path, "name: g\ngrid: {views: [1, 2]}\n"), SCHEMA)
    assert list(seed_spread(runs, tmp_path)["seeds"]) == ["0 of 1", "0 of 1"]
    assert list(grid_table(runs, tmp_path)["state"]) == ["not finished"] * 2


def test_what_is_ahead_is_a_row_that_the_library_knows():
    from histoclip_lib.evaluation.methods import table_one_columns

    assert set(grids.HEADLINE) <= set(table_one_columns())


# Encoders


@pytest.mark.parametrize(
    ("patch_px", "size", "match", "said"),
    [
        (224, 224, False, "tissue appears larger by a factor of 2.0"),
        (224, 448, False, "tissue appears larger by a factor of 4.0"),  # resized to the encoder's input
        (448, [224, 224], False, "as in its training"),
        (224, 224, True, "as in its training"),
        (896, 224, True, "tissue appears smaller by a factor of 2.0"),
    ],
)
def test_the_field_of_view_is_that_of_the_resized_patch(patch_px, size, match, said):
    from types import SimpleNamespace

    from histoclip_lib.runs.encoders import _field_text

    config = SimpleNamespace(mpp=0.25, patch_px=patch_px, preprocessing={"size": size}, match_mpp=match)
    assert _field_text((0.5,), config) == said


def test_weights_files_of_one_name_are_told_apart(tmp_path):
    from histoclip_lib.runs.encoders import EncoderGrid
    from histoclip_lib.runs.grids import GridRun

    varied = [{"backbone": "B", "pretrained": f"{folder}/model.pt", "seed": 0} for folder in "ab"]
    runs = [GridRun({"name": f"g{k}", **values}, values) for k, values in enumerate(varied)]
    assert list(EncoderGrid(tmp_path, runs).names) == ["B, model.pt, seed 0, g0", "B, model.pt, seed 0, g1"]


def test_a_grid_over_encoders_has_a_page_of_its_own_and_leaves_out_those_that_cannot_be_had(tmp_path, monkeypatch):
    from small_runs import make_run

    from histoclip_lib.cli.run import _without_absent_encoders
    from histoclip_lib.runs import encoders
    from histoclip_lib.runs.grids import varies_encoder

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    schema = {
        "a": {
            name: Parameter(name, str, default, "")
            for name, default in {"name": "", "backbone": "", "pretrained": "", "dataset": "folder"}.items()
        }
    }
    path = write(tmp_path, "name: g\ngrid: {backbone: [lite0-minilm, plip, local-dir:other]}\n")
    runs = read_grid(path, schema)
    assert varies_encoder(runs)
    assert not varies_encoder(runs[:1])
    kept = _without_absent_encoders([(path, run.values) for run in runs])
    assert [values["backbone"] for _, values in kept] == ["lite0-minilm"]

    for seed, run in enumerate((runs[0], runs[2])):
        make_run(tmp_path, run.name, seed=seed, noise=0.2 + 0.3 * seed, about={"backbone": run.values["backbone"]})
    page = encoders.EncoderGrid(tmp_path, runs)
    assert list(page.names) == ["lite0-minilm", "plip", "other"]
    assert "1 of 3 have no results" in page.finding().data
    assert page.ranking.names == ["lite0-minilm", "other"]
    assert list(page.methods_table().frame.columns) == ["lite0-minilm", "other"]
    assert "cannot be had here. HF_HUB_OFFLINE is set" in page.runs().data
    for part in ("methods_plot", "rank_plot", "pairs", "cost", "pretraining", "prompts", "agreement_plot"):
        assert getattr(page, part)() is not None
    assert "The patches are not shown" in page.hard_patches().data or page.hard_patches().data
    assert encoders.EncoderGrid(tmp_path / "none", runs).finding().data.startswith("**No encoder has results yet.**")
