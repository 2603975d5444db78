"""Runs: which steps are executed, what a failing one leaves behind, and what a run writes."""

import json
import os
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat import v4

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import run_folder
from histoclip_lib.report.notebooks import OTHERS, RunNotebook, run_notebooks
from histoclip_lib.runs import pipeline, record
from histoclip_lib.runs.parameters import read_params, read_schema
from histoclip_lib.runs.pipeline import find_notebooks, run_steps

STEPS = ("01_data", "02_zero_shot", "03_train")
HEAD = 'name: str = "demo"  # name of the run\nreports_dir: str = "reports"  # folder of the reports\n'
PARAMETERS = {
    "01_data": HEAD + 'data_dir: str = ""  # folder of the data\n',
    "02_zero_shot": HEAD + 'prompts_file: str = ""  # prompts\nscale: float = 1.0  # a number\n',
    "03_train": HEAD + 'epochs: int = 3  # passes\npretrained: str = ""  # weights\nbackbone: str = "x"  # model\n',
}
WORK = """from pathlib import Path
folder = Path(reports_dir) / name
with (folder / "log.txt").open("a") as log:
    log.write("{step}\\n")
(folder / "{step}.txt").write_text(repr({{key: value for key, value in globals().items() if key in {keys}}}))
"""


def write_notebook(folder, step, parameters, *sources):
    cells = [v4.new_markdown_cell(f"# {step}"), v4.new_code_cell(parameters), *map(v4.new_code_cell, sources)]
    cells[1].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / f"{step}.ipynb")


class Project:
    """Three small notebooks, and what happened when they were run."""

    def __init__(self, root):
        self.root, self.notebooks, self.reports = root, root / "notebooks", root / "reports"
        self.notebooks.mkdir()
        for step in STEPS:
            self.write(step)

    def write(self, step, *sources, parameters=None):
        keys = [key for line in PARAMETERS[step].splitlines() if (key := line.split(":")[0]) != "reports_dir"]
        work = WORK.format(step=step, keys=keys)
        write_notebook(self.notebooks, step, parameters or PARAMETERS[step], work, *sources)

    def run(self, *, force=False, **values):
        """Run and return the steps that were executed."""
        events = []
        schema = read_schema([self.notebooks / f"{step}.ipynb" for step in STEPS])
        defaults = {key: value.default for declared in schema.values() for key, value in declared.items()}
        try:
            run_steps(defaults | values, schema, self.reports, force, events.append)
        finally:
            self.events = [(event.step, event.state) for event in events if event.state not in ("cell", "line")]
        assert {step for step, _ in self.events} == set(STEPS)
        return [step for step, state in self.events if state == "finished"]

    @property
    def folder(self):
        return self.reports / "demo"

    def contents(self):
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir()) if path.name != "run.json"}


def execute_in_process(notebook, output, values, **_):
    """Do papermill's work without a kernel, which takes seconds to start."""
    tree = nbformat.read(notebook, as_version=4)
    namespace = {}
    for cell in tree.cells:
        if cell.cell_type == "code":
            exec(cell.source, namespace)
            if "parameters" in cell.metadata.get("tags", ()):
                namespace.update(values)
    nbformat.write(tree, output)


def replace_library(project, monkeypatch):
    """Let a run execute the project's notebooks."""
    notebooks = {step: RunNotebook(step, step, (f"{step}.txt",)) for step in STEPS}
    monkeypatch.setattr(pipeline, "run_notebooks", lambda: notebooks)
    monkeypatch.setattr(pipeline, "find_notebooks", lambda workplace=None: project.notebooks)
    monkeypatch.setattr(pipeline, "provenance", lambda seconds: {})


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A project whose notebooks are executed as a user's are, each in a kernel of its own."""
    project = Project(tmp_path)
    replace_library(project, monkeypatch)
    return project


@pytest.fixture
def new(kernels, monkeypatch):
    """The same, quickly: for tests of what is executed and what is skipped."""
    monkeypatch.setattr(papermill, "execute_notebook", execute_in_process)
    return kernels


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of notebooks and of the reports of their finished run."""
    project = Project(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        replace_library(project, patch)
        patch.setattr(papermill, "execute_notebook", execute_in_process)
        project.run()
    return project.root


@pytest.fixture
def project(new, finished):
    """A project whose run is finished."""
    shutil.copytree(finished, new.root, dirs_exist_ok=True)
    return new


# What is executed


def test_steps_run_in_order_and_leave_notebook_page_and_products(new):
    assert new.run() == list(STEPS)
    assert new.events == [(step, state) for step in STEPS for state in ("started", "finished")]
    assert (new.folder / "log.txt").read_text().split() == list(STEPS)
    expected = {f"{step}.{suffix}" for step in STEPS for suffix in ("ipynb", "html", "txt")} | {"log.txt"}
    assert set(new.contents()) == expected


def test_finished_steps_are_skipped(project):
    before = project.contents()
    assert project.run() == []
    assert project.events == [(step, "skipped") for step in STEPS]
    assert project.contents() == before


@pytest.mark.parametrize(("value", "first"), [({"scale": 2.0}, 1), ({"epochs": 4}, 2)])
def test_a_changed_parameter_reruns_from_the_first_step_that_reads_it(project, value, first):
    assert project.run(**value) == list(STEPS[first:])
    assert repr(next(iter(value.values()))) in (project.folder / f"{STEPS[first]}.txt").read_text()
    assert project.run(**value) == []
    assert project.run() == list(STEPS[first:])


def test_another_name_is_another_folder(project):
    before = project.contents()
    assert project.run(name="other") == list(STEPS)
    assert project.contents() == before
    assert (project.reports / "other" / "03_train.html").is_file()


def test_force_runs_everything(project):
    assert project.run(force=True) == list(STEPS)


def test_a_changed_notebook_reruns_it_alone_where_its_products_stay(project):
    project.write("02_zero_shot", "1 + 1")
    assert project.run() == ["02_zero_shot"]


@pytest.mark.parametrize("gone", ["02_zero_shot.txt", "02_zero_shot.ipynb"])
def test_a_missing_product_reruns_its_step_alone(project, gone):
    (project.folder / gone).unlink()
    assert project.run() == ["02_zero_shot"]


def test_a_missing_page_is_drawn_again_without_executing_anything(project):
    before = project.contents()
    (project.folder / "02_zero_shot.html").unlink()
    assert project.run() == []
    assert project.contents() == before


@pytest.mark.parametrize("key", ["data_dir", "prompts_file", "pretrained", "backbone"])
def test_changed_files_that_a_parameter_names_rerun_the_run(new, key):
    named = new.root / "named"
    if key in ("data_dir", "backbone"):
        (named / "sub").mkdir(parents=True)
        file = named / "sub" / "labels.csv"
    else:
        file = named
    file.write_text("one")
    values = {key: f"local-dir:{named}" if key == "backbone" else str(named)}
    new.run(**values)
    assert new.run(**values) == []
    os.utime(file, ns=(1, 1))
    assert new.run(**values) == list(STEPS)
    file.write_text("longer")
    os.utime(file, ns=(1, 1))
    assert new.run(**values) == list(STEPS)
    assert new.run(**values) == []


def test_a_file_added_to_the_data_reruns_the_run(new, monkeypatch):
    monkeypatch.setenv("HOME", str(new.root))
    (new.root / "data").mkdir()
    new.run(data_dir="~/data")
    assert new.run(data_dir="~/data") == []
    (new.root / "data" / "new.png").write_bytes(b"")
    assert new.run(data_dir="~/data") == list(STEPS)


@pytest.fixture
def library(project, monkeypatch):
    """A library of two rooms; 02_zero_shot imports a module of one of them."""
    folder = project.root / "library"
    for name in ("used/module.py", "used/__init__.py", "used/words.yaml", "other/module.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("one")
    monkeypatch.setattr(record, "LIBRARY", folder)
    names = [f"{record.OWN}used", f"{record.OWN}used.module"]
    project.write(
        "02_zero_shot",
        "from histoclip_lib.runs.record import update_record",
        f"update_record(folder, modules={{'02_zero_shot': {names}}})",
    )
    record._module_digest.cache_clear()
    project.run()

    def change(name):
        (folder / name).write_text("two")
        record._module_digest.cache_clear()
        return project.run()

    yield change
    record._module_digest.cache_clear()


def test_changed_slides_of_a_table_and_their_labels_rerun_the_step_that_reads_them(new):
    new.write("03_train", parameters=PARAMETERS["03_train"] + 'slides: str = ""  # slides\n')
    (new.root / "s").mkdir()
    table, slide, mask = (new.root / "s" / name for name in ("slides.csv", "a.svs", "a_mask.png"))
    table.write_text("slide\na.svs\n")
    slide.write_text("1")
    new.run(slides=str(table))
    assert new.run(slides=str(table)) == []
    for path in (slide, mask):
        path.write_text("other")
        assert new.run(slides=str(table)) == ["03_train"]


def test_a_change_in_a_module_that_no_step_imported_reruns_nothing(library):
    assert library("other/module.py") == []


@pytest.mark.parametrize("name", ["used/module.py", "used/words.yaml"])
def test_a_change_in_an_imported_room_reruns_that_step_alone_where_its_products_stay(library, name):
    assert library(name) == ["02_zero_shot"]


def test_changed_products_rerun_the_later_steps(project):
    project.write("02_zero_shot", "(folder / '02_zero_shot.txt').write_text('other')")
    assert project.run() == ["02_zero_shot", "03_train"]


def test_a_product_that_was_overwritten_by_hand_is_noticed_and_mended(project):
    before = project.contents()
    (project.folder / "02_zero_shot.txt").write_text("from JupyterLab, with other parameters")
    assert project.run() == ["02_zero_shot"]
    assert project.contents()["02_zero_shot.txt"] == before["02_zero_shot.txt"]
    assert project.run() == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"steps": {"01_data": 1}}', '{"steps": 3}'])
def test_a_garbled_record_means_that_nothing_is_finished(project, text):
    (project.folder / "run.json").write_text(text)
    assert project.run() == list(STEPS)
    assert set(json.loads((project.folder / "run.json").read_text())["steps"]) == set(STEPS)


def test_after_a_crash_the_run_goes_on_where_it_stopped(new, monkeypatch):
    def crash(notebook, *rest, **more):
        if "02_zero_shot" in notebook:
            raise KeyboardInterrupt
        execute_in_process(notebook, *rest, **more)

    monkeypatch.setattr(papermill, "execute_notebook", crash)
    with pytest.raises(KeyboardInterrupt):
        new.run()
    monkeypatch.setattr(papermill, "execute_notebook", execute_in_process)
    assert new.run() == ["02_zero_shot", "03_train"]


def test_after_a_crash_in_a_rerun_the_earlier_results_do_not_count_as_finished(project, monkeypatch):

    def crash(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", crash)
    with pytest.raises(KeyboardInterrupt):
        project.run(scale=2.0)
    assert "03_train" not in json.loads((project.folder / "run.json").read_text())["steps"]
    monkeypatch.setattr(papermill, "execute_notebook", execute_in_process)
    assert project.run(scale=2.0) == ["02_zero_shot", "03_train"]


# Kernels


def test_each_step_has_a_process_of_its_own_and_starts_in_the_current_folder(kernels, monkeypatch):
    for step in STEPS[:2]:
        kernels.write(step, 'import os\n(folder / "process.txt").open("a").write(f"{os.getpid()} {os.getcwd()}\\n")')
    monkeypatch.chdir(kernels.root)
    schema = read_schema([kernels.notebooks / f"{step}.ipynb" for step in STEPS[:2]])
    (kernels.root / "run.yaml").write_text("name: demo\nscale: 1e-4\n")
    folder = run_steps(read_params(kernels.root / "run.yaml", schema), schema, Path("reports"))
    lines = (folder / "process.txt").read_text().splitlines()
    processes, starts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert len({*processes, str(os.getpid())}) == 3
    assert set(starts) == {str(kernels.root)}
    assert "'scale': 0.0001" in (folder / "02_zero_shot.txt").read_text()
    executed = nbformat.read(folder / "02_zero_shot.ipynb", as_version=4)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")


def test_a_run_can_be_executed_from_another_folder(kernels, monkeypatch):
    """As a worker of a cluster does, step by step; the record is that of a run from the workplace itself."""
    (kernels.root / "data").mkdir()
    (kernels.root / "data" / "a.txt").write_text("a")
    kernels.write("01_data", "from pathlib import Path\n(Path('here.txt')).write_text('x')")
    schema = read_schema([kernels.notebooks / f"{step}.ipynb" for step in STEPS])
    values = {key: value.default for declared in schema.values() for key, value in declared.items()}
    values |= {"data_dir": "data"}
    (kernels.root / "elsewhere").mkdir()
    monkeypatch.chdir(kernels.root / "elsewhere")
    run_steps(values, schema, kernels.reports, until="01_data", workplace=kernels.root)
    assert (kernels.root / "here.txt").is_file()
    assert sorted(json.loads((kernels.folder / "run.json").read_text())["steps"]) == ["01_data"]
    monkeypatch.chdir(kernels.root)
    monkeypatch.setattr(papermill, "execute_notebook", execute_in_process)
    assert kernels.run(data_dir="data") == ["02_zero_shot", "03_train"]
    (kernels.root / "data" / "a.txt").write_text("other")
    assert kernels.run(data_dir="data") == list(STEPS)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{}['missing']", r"^02_zero_shot, cell 4 of 4, 02_zero_shot: KeyError: 'missing'\n"),
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
            "^02_zero_shot, cell 4 of 4, 02_zero_shot: the notebook's process was killed, most likely because mem",
        ),
    ],
    ids=["unforeseen", "killed"],
)
def test_a_failing_cell_is_told_and_leaves_the_finished_products_alone(kernels, finished, monkeypatch, source, reason):
    shutil.copytree(finished, kernels.root, dirs_exist_ok=True)
    before = kernels.contents()
    write_notebook(kernels.notebooks, "02_zero_shot", PARAMETERS["02_zero_shot"], "print('before')", source)
    with pytest.raises(HistoCLIPError, match=reason) as raised:
        kernels.run()
    failed = kernels.folder / "02_zero_shot.failed.ipynb"
    assert str(raised.value).endswith(f"The notebook as far as it came: {failed}")
    assert kernels.events == [("01_data", "skipped"), ("02_zero_shot", "started"), ("02_zero_shot", "failed")]
    after = kernels.contents()
    kept = after.pop(failed.name).decode()
    assert after == before
    assert "before\\n" in kept
    if "KILL" in source:
        assert "Lower batch_size, encode_batch_size or views, or set studies: false." in str(raised.value)
        return
    kernels.write("02_zero_shot")
    monkeypatch.setattr(papermill, "execute_notebook", execute_in_process)
    assert kernels.run() == ["02_zero_shot"]
    assert not failed.exists()


def test_provenance_names_versions_device_and_commit():
    found = pipeline.provenance(12.4)
    assert found["seconds"] == "12"
    assert found["commit"]
    assert found["device"]
    assert all(found[package] for package in pipeline.PACKAGES)


# Folders


def test_the_notebooks_of_the_current_folder_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = pipeline.LIBRARY.parent / "notebooks"
    assert find_notebooks() == own
    (tmp_path / "notebooks").mkdir()
    for name in (*run_notebooks(), *OTHERS):
        assert find_notebooks() == own
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("{}")
    assert find_notebooks() == tmp_path / "notebooks"


def test_without_notebooks_the_error_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "LIBRARY", tmp_path / "library" / "histoclip_lib")
    with pytest.raises(HistoCLIPError, match="histoclip init DIR") as raised:
        find_notebooks()
    assert str(tmp_path / "notebooks") in str(raised.value)


def test_an_absolute_reports_folder_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder("demo", str(tmp_path / "elsewhere")) == tmp_path / "elsewhere" / "demo"
