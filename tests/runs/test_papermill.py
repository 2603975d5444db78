"""Executing a notebook: what is heard of it meanwhile, how its failures are told, what it leaves behind."""

import json
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat import v4
from papermill.exceptions import PapermillExecutionError

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.runs import papermill as execution
from histoclip_lib.runs.papermill import execute, executed_values, last_seconds

PARAMETERS = 'name: str = "demo"  # name of the run'
CELLS = [
    v4.new_markdown_cell("# Title\n\nProse\n\n## Last heading"),
    v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
    v4.new_markdown_cell("No heading\n#no heading either"),
    v4.new_code_cell(
        "import sys\nsys.stderr.write('half ')\nsys.stderr.write('a line\\rnext 40%|##\\r')\nsys.stderr.flush()"
    ),
    v4.new_markdown_cell("### `Seeds` & <b>more</b>"),
    v4.new_code_cell("print(name)"),
]


def write_notebook(folder, cells=CELLS):
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path = folder / "01_data.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def notebook(tmp_path):
    (tmp_path / "notebooks").mkdir()
    return write_notebook(tmp_path / "notebooks")


@pytest.fixture
def failing(notebook, tmp_path, monkeypatch):
    """Return a function that executes the notebook with an error in its third code cell, without a kernel."""

    def run(error):
        def execute_notebook(source, output, values, *, on_cell_start, **_):
            tree = nbformat.read(source, as_version=4)
            nbformat.write(tree, output)
            for index, cell in enumerate(tree.cells):
                on_cell_start(cell=cell, cell_index=index)
            raise error

        monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
        with pytest.raises(type(error) if not isinstance(error, Exception) else HistoCLIPError) as raised:
            execute(notebook, tmp_path, {}, tmp_path)
        return str(raised.value)

    return run


def cell_error(name, value):
    return PapermillExecutionError(3, 3, "source", name, value, [])


def test_cells_and_the_error_stream_are_heard_of_as_they_come(notebook, tmp_path):
    folder = tmp_path / "{name} of }a{ run"
    folder.mkdir()
    (folder / "01_data.failed.ipynb").write_text("{}")
    heard = []
    execute(notebook, folder, {"name": "mine"}, tmp_path, lambda cell: heard.append(str(cell)), heard.append)
    assert [text for text in heard if text.startswith("cell")] == [
        "cell 1 of 4, Last heading",
        "cell 2 of 4, Last heading",
        "cell 3 of 4, Last heading",
        "cell 4 of 4, `Seeds` & <b>more</b>",
    ]
    assert heard[-2] == "next 40%|##"
    assert set(heard[3:-2]) <= {"half", "half a line", "next 40%|##"}
    assert [path.name for path in folder.iterdir()] == ["01_data.ipynb"]
    assert executed_values(folder / "01_data.ipynb") == {"name": "mine"}
    assert last_seconds(folder / "01_data.ipynb", {"name": "other"}) > 0
    executed = nbformat.read(folder / "01_data.ipynb", as_version=4)
    assert [cell.execution_count for cell in executed.cells if cell.cell_type == "code"] == [1, 2, 3, 4]
    assert executed.cells[-1].outputs[0].text == "mine\n"


def test_errors_of_the_library_are_told_whole(failing, tmp_path):
    told = failing(cell_error("HistoCLIPError", "data_dir: nowhere.\n  - a\n  - b"))
    path = tmp_path / "01_data.failed.ipynb"
    assert told == f"01_data: data_dir: nowhere.\n  - a\n  - b\nThe notebook as far as it came: {path}"
    assert [path.name for path in tmp_path.glob("*.ipynb")] == ["01_data.failed.ipynb"]
    assert not list(tmp_path.glob(".*"))


def test_other_errors_are_told_in_two_lines_with_their_cell(failing):
    told = failing(cell_error("RuntimeError", "\n  sizes differ\nmore\nand more"))
    first, second = told.split("\n")
    assert first == "01_data, cell 3 of 4, `Seeds` & <b>more</b>: RuntimeError: sizes differ"
    assert second.startswith("The notebook as far as it came: ")
    assert len(failing(cell_error("ValueError", "x" * 10_000))) < 1000
    assert failing(cell_error("KeyboardInterrupt", "")).startswith("01_data, cell 3 of 4, ")


@pytest.mark.parametrize("name", ["MemoryError", "OutOfMemoryError"])
def test_a_cell_that_found_no_memory_is_told_with_the_remedy(failing, name):
    assert "\nLower batch_size, encode_batch_size or views, or set studies: false. The notebook" in failing(
        cell_error(name, "CUDA out of memory")
    )


@pytest.mark.parametrize(("after", "told"), [(3 * 2**30, "ran out. It held 3.0 GiB at its peak.\n"), (5, "ran out.\n")])
def test_the_peak_memory_of_a_killed_process_is_told_where_it_is_known(failing, monkeypatch, after, told):
    # RUSAGE_CHILDREN knows the largest child alone: one that was not larger than those before it leaves no trace.
    peaks = iter([5, after])
    monkeypatch.setattr(execution, "_peak_memory", lambda: next(peaks))
    message = failing(DeadKernelError("Kernel died"))
    assert message.startswith("01_data, cell 3 of 4, `Seeds` & <b>more</b>: the notebook's process was killed, ")
    assert told + "Lower batch_size" in message
    assert message.count("\n") == 1


def test_peak_memory_is_that_of_the_largest_child():
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", "x = bytearray(150_000_000)"], check=True)
    assert execution._peak_memory() > 150_000_000


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_the_process_leaves_no_half_notebook(failing, tmp_path, error):
    failing(error)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_an_error_of_no_cell_is_let_through(notebook, tmp_path, monkeypatch):
    def execute_notebook(source, output, *_, **__):
        Path(output).write_text("half")
        raise OSError(28, "No space left on device", output)

    monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
    with pytest.raises(OSError, match="No space"):
        execute(notebook, tmp_path, {}, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


@pytest.mark.parametrize(
    ("change", "known"),
    [({}, True), ({"name": "b", "reports_dir": "c", "seed": 7}, True), ({"epochs": 2}, False), ({"more": 1}, False)],
)
def test_the_last_time_counts_where_the_parameters_of_the_cost_are_the_same(tmp_path, change, known):
    values = {"name": "a", "reports_dir": "reports", "seed": 0, "epochs": 1}
    about = {"metadata": {"papermill": {"parameters": values, "duration": 12.5}}}
    (tmp_path / "done.ipynb").write_text(json.dumps(about))
    assert last_seconds(tmp_path / "done.ipynb", values | change) == (12.5 if known else None)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"metadata": {"papermill": []}}', '{"metadata": {"papermill": {"parameters": 3}}}']
)
def test_a_notebook_that_was_not_executed_says_nothing(tmp_path, text):
    (tmp_path / "a.ipynb").write_text(text)
    for path in (tmp_path / "a.ipynb", tmp_path / "gone.ipynb"):
        assert executed_values(path) == {}
        assert last_seconds(path, {}) is None
