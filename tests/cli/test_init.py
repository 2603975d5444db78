"""`histoclip init`: a folder in which runs can be started."""

import os
from pathlib import Path

import histoclip_lib
from histoclip_lib.runs.pipeline import find_notebooks

CLONE = Path(histoclip_lib.__file__).parents[1]


def test_init_writes_notebooks_parameter_files_and_a_readme(invoke, tmp_path):
    result = invoke("init", "deep/project")
    project = tmp_path / "deep" / "project"
    assert result.exit_code == 0
    assert result.stdout == f"{project}\n"
    assert find_notebooks(project) == project / "notebooks"
    for pattern in ("notebooks/*.ipynb", "notebooks/*.py", "params/*.yaml"):
        names = {path.relative_to(CLONE) for path in CLONE.glob(pattern)}
        assert names == {path.relative_to(project) for path in project.glob(pattern)}
        assert all((project / name).read_bytes() == (CLONE / name).read_bytes() for name in names)
    assert "histoclip run params/demo.yaml" in (project / "README.md").read_text()


def test_init_refuses_a_folder_that_holds_one_of_the_files_and_writes_nothing(invoke, tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_data.ipynb").write_text("mine")
    (tmp_path / "README.md").symlink_to("nowhere")
    result = invoke("init", ".")
    assert result.exit_code == 2
    assert [f"  - {name}" for name in (os.path.join("notebooks", "01_data.ipynb"), "README.md")] == (
        result.stderr.splitlines()[1:]
    )
    assert (tmp_path / "notebooks" / "01_data.ipynb").read_text() == "mine"
    assert not (tmp_path / "params").exists() and not (tmp_path / "nowhere").exists()


def test_init_keeps_other_files(invoke, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert invoke("init", tmp_path).exit_code == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_init_names_a_folder_that_cannot_be_made(invoke, tmp_path):
    (tmp_path / "taken").write_text("")
    result = invoke("init", "taken/project")
    assert result.exit_code == 2
    assert "taken" in result.stderr.splitlines()[0]
    assert "Traceback" not in result.output
