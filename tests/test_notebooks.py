"""Notebooks as they are stored: pairs, no outputs, prose and calls, and the schema that they make."""

import ast
import importlib
import re
from pathlib import Path
from typing import get_origin

import jupytext
import nbformat
import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.registry import DATASETS
from histoclip_lib.report.notebooks import OTHERS, run_notebooks
from histoclip_lib.runs.grids import is_grid
from histoclip_lib.runs.parameters import read_params, read_schema

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMS = sorted(path for path in (ROOT / "params").glob("*.yaml") if not is_grid(path))
RUN_NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in run_notebooks()]
FIXED = {
    *("name", "dataset", "data_dir", "split", "seed", "backbone", "pretrained", "epochs", "warmup_epochs"),
    *("learning_rate", "batch_size", "views"),
}
LONGEST_CELL = 30  # lines of code, the parameters aside: notebooks hold calls, the library the logic


@pytest.fixture(scope="module")
def schema():
    return read_schema(RUN_NOTEBOOKS)


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def is_parameters(cell):
    return "parameters" in cell.metadata.get("tags", ())


def test_the_notebooks_are_those_that_a_run_executes():
    assert [path.stem for path in NOTEBOOKS] == sorted([*run_notebooks(), *OTHERS])
    assert [path.stem for path in sorted((ROOT / "notebooks").glob("*.py"))] == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize(
    "line",
    [
        "epochs: 0", "epochs: -1", "batch_size: 0", "views: 9", "hidden: -3", "dropout: 1.5", "token_dropout: 1.0",
        "resamples: 0", "seed: -1", "baseline_rule: foo", "precision: fp16", "device: gpu", "prompts_file: gone.yaml",
        "warmup_epochs: 800", "mask_coverage: 0", "split: half", "split: ''", "device:",
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_before_anything_runs(tmp_path, schema, line):
    (tmp_path / "run.yaml").write_text(f"name: mine\n{line}\n")
    with pytest.raises(HistoCLIPError, match=line.partition(":")[0]):
        read_params(tmp_path / "run.yaml", schema)


def test_every_number_has_a_range(schema):
    numbers = [each for own in schema.values() for each in own.values() if each.type in (int, float, list[int])]
    assert [each.name for each in numbers if not each.range] == []


@each_notebook
def test_the_two_files_of_a_pair_say_the_same(path):
    notebook, script = nbformat.read(path, as_version=4), jupytext.read(path.with_suffix(".py"))

    def content(tree):
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in tree.cells]

    assert content(notebook) == content(script)
    for tree in (notebook, script):
        assert tree.metadata["kernelspec"]["name"] == "python3"
        assert tree.metadata["jupytext"]["formats"] == "ipynb,py:percent"


@each_notebook
def test_a_notebook_is_valid_and_stored_without_outputs(path):
    tree = nbformat.read(path, as_version=4)
    nbformat.validate(tree)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(path))
    assert set(tree.metadata) <= {"jupytext", "kernelspec"}
    assert all(set(cell.metadata) <= {"tags", "fold"} for cell in tree.cells)


@each_notebook
def test_a_notebook_holds_calls_and_no_logic(path):
    for cell in code_cells(path):
        tree = ast.parse(cell.source)
        defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda | ast.Try | ast.While
        assert not [node for node in ast.walk(tree) if isinstance(node, defined)]
        assert is_parameters(cell) or len(cell.source.splitlines()) <= LONGEST_CELL


@each_notebook
def test_what_a_notebook_imports_is_there(path):
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


@each_notebook
def test_a_notebook_begins_with_its_title_and_has_prose_before_its_first_section(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    prose = []
    for cell in cells:
        if cell.cell_type == "markdown":
            if cell.source.startswith("## "):
                break
            prose += cell.source.split()
    assert len(prose) >= 12


@each_notebook
def test_every_parameter_has_a_type_a_literal_default_and_a_comment(path):
    cell, *others = code_cells(path)
    assert is_parameters(cell)
    assert not any(map(is_parameters, others))
    statements = ast.parse(cell.source).body
    assert all(isinstance(statement, ast.AnnAssign) for statement in statements)
    [declared] = read_schema([path]).values()
    assert list(declared) == [statement.target.id for statement in statements]
    for statement in statements:
        assert type(ast.literal_eval(statement.value)) is (
            get_origin(kind := declared[statement.target.id].type) or kind
        )
        assert len(declared[statement.target.id].meaning) > 5


def test_every_parameter_is_read_by_the_library_or_by_its_notebook():
    library = "\n".join(path.read_text() for path in (ROOT / "histoclip_lib").rglob("*.py"))
    for path in NOTEBOOKS:
        source = "\n".join(cell.source for cell in code_cells(path) if not is_parameters(cell))
        for name in next(iter(read_schema([path]).values())):
            assert re.search(rf"\b{name}\b", source) or re.search(rf"[\"\'.]?\b{name}\b", library), (path.stem, name)


def test_a_parameter_is_declared_once_and_by_hand_no_finished_run_is_overwritten():
    schema = read_schema(RUN_NOTEBOOKS)
    shared = {"name", "reports_dir"}
    names = [name for declared in schema.values() for name in declared if name not in shared]
    assert len(names) == len(set(names))
    assert set(names) >= FIXED - shared
    assert all(set(declared) >= shared for declared in schema.values())
    assert {declared["name"].default for declared in schema.values()} == {"interactive"}
    assert "interactive" not in {read_params(path, schema)["name"] for path in PARAMS}


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.stem)
def test_every_parameter_file_can_be_used(path):
    values = read_params(path, read_schema(RUN_NOTEBOOKS))
    assert values["dataset"] in DATASETS


def test_every_run_has_a_folder_of_its_own():
    assert {path.stem for path in PARAMS} >= {"demo", "bcss_wsss", "luad_histoseg", "pannuke", "folder"}
    schema = read_schema(RUN_NOTEBOOKS)
    assert len({read_params(path, schema)["name"] for path in PARAMS}) == len(PARAMS)


@pytest.mark.parametrize("name", ["bcss_wsss", "luad_histoseg", "pannuke"])
def test_the_paper_s_data_sets_are_run_by_the_paper_s_protocol(name):
    values = read_params(ROOT / "params" / f"{name}.yaml", read_schema(RUN_NOTEBOOKS))
    expected = {
        "dataset": name,
        "protocol": "split",
        "split": "random",
        "val_fraction": 0.2,
        "backbone": "ViT-L-14-quickgelu",
        "pretrained": "openai",
        "epochs": 800,
        "warmup_epochs": 5,
        "learning_rate": 1e-3,
        "baseline_rule": "sigmoid",
    }
    assert {key: values[key] for key in expected} == expected


def test_the_defaults_run_offline():
    values = {
        name: parameter.default
        for declared in read_schema(RUN_NOTEBOOKS).values()
        for name, parameter in declared.items()
    }
    assert (values["dataset"], values["backbone"], values["data_dir"]) == ("synthetic", "lite0-minilm", "")
