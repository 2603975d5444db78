"""Parameter files: the notebooks' cells are the schema, and every error names the key and the remedy."""

import re
from typing import get_origin

import nbformat
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nbformat import v4

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.runs.parameters import Parameter, read_params, read_schema

DECLARED = {
    "name": Parameter("name", str, "demo", "name of the run"),
    "epochs": Parameter("epochs", int, 800, "passes over the training part"),
    "learning_rate": Parameter("learning_rate", float, 1e-3, "highest learning rate"),
    "shuffle": Parameter("shuffle", bool, True, "whether to shuffle"),
    "data_dir": Parameter("data_dir", str, "", "folder of the data"),
    "seeds": Parameter("seeds", list[int], [0, 1], "of the training"),
    "organs": Parameter("organs", list[str], [], "to take"),
    "reports_dir": Parameter("reports_dir", str, "reports", "folder of the reports"),
}
SCHEMA = {"01_data": {key: DECLARED[key] for key in ("name", "data_dir", "reports_dir")}, "03_train": DECLARED}


def notebook(path, source):
    cell = v4.new_code_cell(source)
    cell.metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(v4.new_notebook(cells=[cell], metadata=kernel), path)
    return path


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path, text):
    with pytest.raises(HistoCLIPError) as raised:
        read_params(write(tmp_path, text), SCHEMA)
    return str(raised.value)


# The schema


def test_a_declaration_gives_name_type_default_and_meaning(tmp_path):
    source = (
        'name: str = "demo"  # name of the run\n'
        "epochs: int = 800  # passes over the training part\n"
        "learning_rate: float = 1e-3  # highest learning rate\n"
        "shuffle: bool = True  # whether to shuffle\n"
        "seeds: list[int] = [0, 1]  # of the training\n"
    )
    schema = read_schema([notebook(tmp_path / "03_train.ipynb", source)])
    keys = ("name", "epochs", "learning_rate", "shuffle", "seeds")
    assert schema == {"03_train": {key: DECLARED[key] for key in keys}}


@pytest.mark.parametrize("source", ["epochs = 800  # passes", "epochs: int = 800", "epochs: list = []  # passes"])
def test_a_declaration_without_type_or_comment_is_refused(tmp_path, source):
    path = notebook(tmp_path / "03_train.ipynb", source)
    with pytest.raises(HistoCLIPError, match=r"03_train\.ipynb, parameter epochs: write `epochs: type = default"):
        read_schema([path])


@pytest.mark.parametrize("other", ["seed: int = 1  # of it", "seed: float = 0  # of it", "seed: int = 0  # of that"])
def test_notebooks_that_disagree_are_refused(tmp_path, other):
    paths = [notebook(tmp_path / "a.ipynb", "seed: int = 0  # of it"), notebook(tmp_path / "b.ipynb", other)]
    with pytest.raises(HistoCLIPError, match="parameter seed: a and b declare it differently"):
        read_schema(paths)


# What is read


def test_what_is_left_out_has_the_default(tmp_path):
    values = read_params(write(tmp_path, "epochs: 3\n"), SCHEMA)
    assert values == {key: parameter.default for key, parameter in DECLARED.items()} | {"epochs": 3}


@pytest.mark.parametrize(
    ("written", "value"), [("1e-4", 1e-4), ("'1e-4'", 1e-4), ("1.0e-4", 1e-4), ("3", 3.0), (".5", 0.5), ("-2E3", -2e3)]
)
def test_a_number_is_a_number_however_it_is_written(tmp_path, written, value):
    found = read_params(write(tmp_path, f"learning_rate: {written}\n"), SCHEMA)["learning_rate"]
    assert found == value
    assert type(found) is float


def test_nothing_behind_a_text_key_is_the_empty_text(tmp_path):
    assert read_params(write(tmp_path, "data_dir:\n"), SCHEMA)["data_dir"] == ""


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
            "epochs": st.integers(-(2**53), 2**53),
            "learning_rate": st.floats(allow_nan=False, allow_infinity=False),
            "shuffle": st.booleans(),
            "data_dir": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60),
        },
    ).filter(bool)
)
@settings(max_examples=100)
def test_values_of_the_right_type_come_back_as_they_are(tmp_path_factory, values):
    path = write(tmp_path_factory.mktemp("params"), yaml.safe_dump(values))
    found = read_params(path, SCHEMA)
    assert {key: found[key] for key in values} == values
    assert all(type(found[key]) is (get_origin(DECLARED[key].type) or DECLARED[key].type) for key in found)


# What is refused


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("epoch: 3", "epoch: no notebook reads it; did you mean epochs?"),
        ("lerning_rate: 3", "lerning_rate: no notebook reads it; did you mean learning_rate?"),
        ("xyzzy: 3", "xyzzy: no notebook reads it; legal names: data_dir, epochs"),
        ("1: 3", "1: no notebook reads it"),
        ("epochs: 1e3", "epochs: '1e3' is not of type int (passes over the training part)"),
        ("epochs: 3.0", "epochs: 3.0 is not of type int"),
        ("epochs: true", "epochs: True is not of type int"),
        ("epochs: [3]", "epochs: [3] is not of type int"),
        ("epochs:", "epochs: None is not of type int"),
        ("learning_rate: fast", "learning_rate: 'fast' is not of type float"),
        ("learning_rate: true", "learning_rate: True is not of type float"),
        ("learning_rate: .nan", "learning_rate: nan is not of type float"),
        ("learning_rate: -.inf", "learning_rate: -inf is not of type float"),
        ("learning_rate: nan", "learning_rate: 'nan' is not of type float"),
        (f"learning_rate: 1{'0' * 400}", "is not of type float"),
        ("shuffle: 1", "shuffle: 1 is not of type bool"),
        ("shuffle: 'true'", "shuffle: 'true' is not of type bool"),
        ("data_dir: 2024-01-01", "is not of type str (folder of the data)"),
        ("name: 12", "name: 12 is not of type str"),
        ("seeds: 3", "seeds: 3 is not of type list[int] (of the training)"),
        ("seeds: [0, 1.5]", "seeds: [0, 1.5] is not of type list[int]"),
        ("organs: [a, 1]", "organs: ['a', 1] is not of type list[str]"),
        ("seeds: [true]", "seeds: [True] is not of type list[int]"),
        ("name: ../elsewhere", "name: '../elsewhere' names the run's folder"),
        ("name: .hidden", "name: '.hidden' names the run's folder"),
        ("name: ''", "name: '' names the run's folder"),
        (f"name: {'x' * 101}", "names the run's folder"),
        ("reports_dir: elsewhere", "reports_dir: is given on the command line, as --reports DIR"),
        ("epochs: 3\nepochs: 4", "epochs: appears 2 times"),
        ("<<: {epochs: 3}", "<<: merges mappings"),
        (f"epochs: {2**53 + 1}", "epochs: 9007199254740993 is beyond 2**53 (passes"),
        (f"epochs: 0x{'f' * 5000}", "epochs: one int too large to show is beyond 2**53"),
        (f"seeds: [0, -{2**60}]", "is beyond 2**53 (of the training)"),
        (f"? 0x{'f' * 5000}\n: 3", "one int too large to show: no notebook reads it"),
        (f"name: 0x{'f' * 5000}", "name: one int too large to show is not of type str"),
        (f"data_dir: {'x' * 256}", "is longer than any name or path can be (folder of the data)"),
        (f"data_dir: {'x/' * 3000}", "is longer than any name or path can be (folder of the data)"),
        ("data_dir: [a, b]", "data_dir: ['a', 'b'] is not of type str"),
        (f"{'x' * 900}: 3", f"- {'x' * 100}: no notebook reads it"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_with_the_reason(tmp_path, line, reason):
    message = refusal(tmp_path, line + "\n")
    assert "run.yaml: 1 entries cannot be used" in message
    assert reason in message


def test_all_entries_that_cannot_be_used_are_listed(tmp_path):
    message = refusal(tmp_path, "epoch: 3\nlearning_rate: fast\nname: a/b\nshuffle: true\n")
    assert re.findall(r"^  - (\w+):", message, flags=re.MULTILINE) == ["epoch", "learning_rate", "name"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "just text", "- a\n- b\n"])
def test_a_file_without_entries_points_to_the_demo(tmp_path, text):
    assert re.search(r"run\.yaml must hold `name: value` lines\. Start from params/demo\.yaml", refusal(tmp_path, text))


@pytest.mark.parametrize("text", ["epochs: [3", "a: b: c", "epochs: 2024-13-45", "\tepochs: 3", "[a]: 3"])
def test_what_is_not_yaml_says_so(tmp_path, text):
    assert "run.yaml is not YAML: " in refusal(tmp_path, text)


def test_a_file_that_is_not_there_or_not_text_says_so(tmp_path):
    for content in (None, b"name: gr\xfcn\n"):
        path = tmp_path / "run.yaml"
        if content:
            path.write_bytes(content)
        with pytest.raises(HistoCLIPError, match=r"run\.yaml( cannot be read|, line 1: the byte 0xfc is not UTF-8)"):
            read_params(path, SCHEMA)


@given(st.text() | st.lists(st.text("epochs: 1.e-3\n[]{}'\"&*!?#|>-,~<=", max_size=12)).map("\n".join))
@example("=: 1")
@example("<<: {epochs: 3}")
@example("? {a: 1}\n: 2")
@settings(max_examples=300)
def test_no_text_ends_in_another_exception(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "run.yaml"
    path.write_bytes(text.encode("utf-8", errors="replace"))
    try:
        values = read_params(path, SCHEMA)
    except HistoCLIPError:
        return
    assert all(type(values[key]) is DECLARED[key].type for key in DECLARED)
