"""The built wheel, installed away from the clone: a run of it with the plugin that CONTRIBUTING.md shows."""

import json
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from small_demo import environment

from histoclip_lib.common.registry import load_plugins, plugin_digest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLUGIN = "\n".join(re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL))
PARAMETERS = {
    "name": "toy", "dataset": "my_slides", "data_dir": "slides", "backbone": "my-clip", "split": "grouped", "views": 1,
    "epochs": 3, "warmup_epochs": 1, "batch_size": 16, "resamples": 50, "studies": False, "examples": 2, "wordings": 1,
    "protocol": "split",
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
    names = environment(folder / "cache") | {"JUPYTER_PATH": str(jupyter), "COLUMNS": "200"}
    names.pop("PYTHONPATH", None)

    def run(*arguments, cwd, **more):
        return call(folder / "venv/bin/histoclip", *arguments, cwd=cwd, env=names | more)

    found = call(python, "-c", "import histoclip_lib; print(histoclip_lib.__file__)", cwd=folder, env=names)
    assert Path(found.strip()) == own / "histoclip_lib/__init__.py"
    return run


@pytest.fixture(scope="module")
def project(histoclip, tmp_path_factory):
    """A folder as `histoclip init` leaves it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    histoclip("init", "project", cwd=folder)
    return folder / "project"


@pytest.fixture(scope="module")
def toy(histoclip, project):
    """The folder of a finished run with the plugin's data set, 40 patches of 8 slides, and its encoder."""
    (project / "my_plugin.py").write_text(PLUGIN)
    draw = np.random.default_rng(0)
    labels, files = draw.integers(0, 2, (40, 2)), [f"{index}.png" for index in range(40)]
    (project / "slides").mkdir()
    for file, (gland, stroma) in zip(files, labels, strict=True):
        pixels = draw.integers(0, 100, (64, 64, 3)) + np.array([120 * gland, 60, 120 * stroma])
        Image.fromarray(pixels.astype(np.uint8)).save(project / "slides" / file)
    slides = [f"slide_{index % 8}" for index in range(40)]
    columns = {"image": files, "gland": labels[:, 0], "stroma": labels[:, 1], "slide": slides}
    pd.DataFrame(columns).to_csv(project / "slides/annotations.csv", index=False)
    (project / "toy.yaml").write_text(yaml.safe_dump(PARAMETERS))
    *_, overview = histoclip("run", "toy.yaml", cwd=project, HISTOCLIP_PLUGINS="my_plugin.py").splitlines()
    assert Path(overview) == project / "reports/index.html"
    return project / "reports/toy"


def test_the_wheel_holds_the_library_notebooks_and_parameter_files_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    library = {name for name in listed if name.startswith("histoclip_lib/")}
    project = {f"histoclip_lib/project/{name}" for name in listed if name.startswith(("notebooks/", "params/"))}
    assert held == {name for name in library | project if (ROOT / name.replace("histoclip_lib/project/", "")).exists()}


def test_init_writes_a_project_that_check_accepts(histoclip, project):
    listed = [path for folder in ("notebooks", "params") for path in (ROOT / folder).glob("*.*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in listed}
    assert all((project / name).is_file() for name in expected | {"README.md"})
    (project / "few.yaml").write_text("name: few\nn_patches: 24\n")
    assert "24 patches" in histoclip("check", "few.yaml", cwd=project)


@pytest.mark.slow
def test_metrics_hold_the_methods_of_a_plugin_and_commands_show_their_labels(histoclip, project, toy):
    metrics = json.loads((toy / "metrics.json").read_text())
    assert {"contrast", "ridge", "one_vs_rest", "linear_probe"} <= set(metrics["methods"])
    assert (metrics["dataset"], metrics["backbone"]) == ("my_slides", "my-clip")
    assert "contrast" in set(pd.read_parquet(toy / "predictions.parquet")["method"])
    shown = histoclip("show", "toy", cwd=project, HISTOCLIP_PLUGINS="my_plugin.py")
    assert "Contrast" in shown
    assert "Ridge regression" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("toy/01_data.html", ["Patches of my slides, labelled by two pathologists."]),
        ("toy/02_zero_shot.html", ["Contrast", "my-clip"]),
        ("toy/04_results.html", ["Zero-shot: Contrast", "Ridge regression"]),
        ("toy/model/README.md", ["My slides", "CC BY 4.0", "my-clip", "Nothing: its weights are random."]),
        ("index.html", ["my_slides", "my-clip"]),
    ],
)
def test_pages_and_model_card_name_what_a_plugin_registers(toy, page, said):
    text = (toy.parent / page).read_text(encoding="utf-8")
    assert [words for words in said if words not in text] == []


@pytest.mark.slow
def test_help_lists_what_a_plugin_registers(histoclip, project, toy):
    shown = histoclip("run", "--help", cwd=project, HISTOCLIP_PLUGINS="my_plugin.py")
    assert all(name in shown for name in ("contrast", "my_slides", "my-clip"))


def test_the_digest_on_which_steps_depend_changes_with_the_plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HISTOCLIP_PLUGINS", "plugin.py")
    load_plugins.cache_clear()

    def digest(source):
        Path("plugin.py").write_text(source)
        return plugin_digest()

    assert digest("a = 1") == digest("a = 1") != digest("a = 2")
    load_plugins.cache_clear()
    del sys.modules["histoclip_plugin_plugin"]
