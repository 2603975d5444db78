"""The built wheel, installed away from the clone: `histoclip init`, `check` and a small run work from it alone."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from small_demo import environment

ROOT = Path(__file__).parents[1]
SMALL = {
    "n_patches": 40, "views": 1, "epochs": 3, "warmup_epochs": 1, "resamples": 50,
    "examples": 2, "wordings": 1, "studies": False,
}  # fmt: skip


def call(*command, **options):
    finished = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    call(sys.executable, "-m", "pip", *build, cwd=folder)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def histoclip(wheel, tmp_path_factory):
    """`histoclip` from the wheel, in a fresh virtual environment that borrows the dependencies of this one.

    Only folders named in a .pth file are borrowed, and .pth files of borrowed folders are not read: the clone, which is
    installed here through one, is out of reach.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    [own] = (folder / "venv/lib").glob("python3*/site-packages")
    (own / "borrowed.pth").write_text("\n".join(dict.fromkeys(sysconfig.get_path(k) for k in ("purelib", "platlib"))))
    jupyter = Path(sys.prefix) / "share/jupyter"  # templates of nbconvert; its kernel is the Python that asks for one
    names = environment(folder / "cache") | {"OMP_NUM_THREADS": "1", "JUPYTER_PATH": str(jupyter)}
    names.pop("PYTHONPATH", None)

    def run(*arguments, cwd):
        return call(folder / "venv/bin/histoclip", *arguments, cwd=cwd, env=names)

    found = call(python, "-c", "import histoclip_lib; print(histoclip_lib.__file__)", cwd=folder, env=names)
    assert Path(found.strip()) == own / "histoclip_lib/__init__.py"
    return run


@pytest.fixture(scope="module")
def project(histoclip, tmp_path_factory):
    """A folder as `histoclip init` leaves it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    histoclip("init", "project", cwd=folder)
    demo = yaml.safe_load((folder / "project/params/demo.yaml").read_text())
    (folder / "small.yaml").write_text(yaml.safe_dump(demo | SMALL))
    return folder / "project"


def test_the_wheel_holds_the_library_notebooks_and_parameter_files_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    library = {name for name in listed if name.startswith("histoclip_lib/")}
    project = {f"histoclip_lib/project/{name}" for name in listed if name.startswith(("notebooks/", "params/"))}
    assert held == {name for name in library | project if (ROOT / name.replace("histoclip_lib/project/", "")).exists()}


def test_init_writes_a_project_that_check_accepts(histoclip, project):
    written = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    expected = {f"{folder}/{path.name}" for folder in ("notebooks", "params") for path in (ROOT / folder).glob("*.*")}
    assert written == expected | {"README.md"}
    assert "demo" in histoclip("check", "../small.yaml", cwd=project)


@pytest.mark.slow
def test_a_run_from_the_wheel_finishes(histoclip, project):
    *_, overview = histoclip("run", "../small.yaml", cwd=project).splitlines()
    assert Path(overview) == project / "reports/index.html"
    assert (project / "reports/demo/metrics.json").is_file()
    assert os.access(overview, os.R_OK)
