"""A plugin from outside the library: the examples of CONTRIBUTING.md, from registration to the finished pages."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from small_demo import environment

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLUGIN = "\n".join(re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL))
NAMES = {"strategies": "contrast", "dataset": "my_slides", "backbone": "my-clip"}
PARAMETERS = {
    "name": "toy", "dataset": "my_slides", "data_dir": "slides", "backbone": "my-clip", "protocol": "split",
    "split": "grouped", "views": 1, "epochs": 3, "warmup_epochs": 1, "batch_size": 16, "resamples": 50,
    "studies": False, "examples": 2, "wordings": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the plugin, 40 patches of 8 slides, and a parameter file."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "my_plugin.py").write_text(PLUGIN)
    draw = np.random.default_rng(0)
    labels, files = draw.integers(0, 2, (40, 2)), [f"{index}.png" for index in range(40)]
    (folder / "slides").mkdir()
    for file, (gland, stroma) in zip(files, labels, strict=True):
        pixels = draw.integers(0, 100, (64, 64, 3)) + np.array([120 * gland, 60, 120 * stroma])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "slides" / file)
    slides = [f"slide_{index % 8}" for index in range(40)]
    columns = {"image": files, "gland": labels[:, 0], "stroma": labels[:, 1], "slide": slides}
    pd.DataFrame(columns).to_csv(folder / "slides/annotations.csv", index=False)
    (folder / "toy.yaml").write_text(yaml.safe_dump(PARAMETERS))
    return folder


def histoclip(workplace, *arguments, plugins="my_plugin.py"):
    return subprocess.run(
        [Path(sys.executable).with_name("histoclip"), *arguments],
        cwd=workplace, capture_output=True, text=True, check=False,
        env=environment(workplace / "cache") | {"HISTOCLIP_PLUGINS": plugins, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_help_lists_what_a_plugin_registers(workplace):
    for arguments in (["--help"], ["run", "--help"]):
        shown = histoclip(workplace, *arguments)
        assert shown.returncode == 0, shown.stderr
        assert all(name in shown.stdout for name in NAMES.values())


def test_a_plugin_that_cannot_be_imported_is_an_error_that_names_it(workplace):
    (workplace / "broken.py").write_text("import nothing_of_this_name")
    failed = histoclip(workplace, "check", "toy.yaml", plugins="broken.py")
    assert failed.returncode != 0
    assert "broken.py" in failed.stderr
    assert "nothing_of_this_name" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_digest_on_which_steps_depend_changes_with_the_plugin(tmp_path):
    code = "from histoclip_lib.common.registry import plugin_digest; print(plugin_digest())"
    options = {"cwd": tmp_path, "env": os.environ | {"HISTOCLIP_PLUGINS": "plugin.py"}, "capture_output": True}

    def digest(source):
        (tmp_path / "plugin.py").write_text(source)
        return subprocess.run([sys.executable, "-c", code], check=True, **options).stdout

    assert digest("a = 1") == digest("a = 1") != digest("a = 2")


@pytest.fixture(scope="module")
def finished(workplace):
    """The folder of a finished run with the plugin's data set and encoder."""
    run = histoclip(workplace, "run", "toy.yaml")
    assert run.returncode == 0, run.stderr
    return workplace / "reports/toy"


@pytest.mark.slow
def test_metrics_and_table_hold_the_methods_of_a_plugin(workplace, finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert {"contrast", "ridge", "one_vs_rest", "linear_probe"} <= set(metrics["methods"])
    assert (metrics["dataset"], metrics["backbone"]) == ("my_slides", "my-clip")
    assert "contrast" in set(pd.read_parquet(finished / "predictions.parquet")["method"])
    shown = histoclip(workplace, "show", "toy").stdout
    assert "Contrast" in shown
    assert "Ridge regression" in shown
    assert "my_slides" in histoclip(workplace, "table").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("toy/01_data.html", ["Patches of my slides, labelled by two pathologists."]),
        ("toy/02_zero_shot.html", ["Contrast", "my-clip"]),
        ("toy/04_results.html", ["Zero-shot: Contrast", "Ridge regression"]),
        ("toy/model_card.md", ["My slides", "CC BY 4.0", "my-clip", "Nothing: its weights are random."]),
        ("index.html", ["my_slides", "my-clip"]),
    ],
)
def test_pages_and_model_card_name_what_a_plugin_registers(finished, page, said):
    text = (finished.parent / page).read_text(encoding="utf-8")
    assert [words for words in said if words not in text] == []
