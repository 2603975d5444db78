"""The public names: importing them is light and changes nothing, and the examples of their docstrings run."""

import doctest
import importlib
import json
import shutil
import subprocess
import sys

import pytest

import histoclip_lib

REGISTRIES = {
    "common.registry": "METHODS",
    "prompting.strategies": "STRATEGIES",
    "data.registry": "DATASETS",
    "clip.registry": "ENCODERS",
    "models.baselines": "BASELINES",
}
HEAVY = ("torch", "pandas", "matplotlib", "sklearn", "transformers", "open_clip", "PIL")


def in_a_new_process(source):
    finished = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_importing_the_library_loads_nothing_heavy():
    loaded = in_a_new_process("import histoclip_lib, json, sys; print(json.dumps(sorted(sys.modules)))")
    assert not set(HEAVY) & set(loaded)
    assert [name for name in loaded if name.startswith("histoclip_lib.")] == []


@pytest.mark.parametrize(
    ("source", "absent"),
    [
        (
            "from histoclip_lib.report import figures as f; [getattr(f, k) for k in f.__all__]",
            "torch transformers",
        ),
        ("from histoclip_lib.report import figures", "torch pandas matplotlib"),
        (
            "from histoclip_lib.data import DATASETS, PatchDataset, check_images, split_dataset; list(DATASETS)",
            "torch pandas pyarrow sklearn timm joblib matplotlib",
        ),
        ("import histoclip_lib.prompting.strategies", "torch pandas matplotlib"),
        (
            "from histoclip_lib.clip.registry import encoder_entry; encoder_entry('ViT-B-32', 'openai')"
            "; encoder_entry('lite0-minilm')",
            "torch open_clip transformers pandas matplotlib",
        ),
        ("import histoclip_lib.models.baselines", "torch matplotlib"),
        (
            "import histoclip_lib.evaluation as e, importlib, pkgutil"
            "; [importlib.import_module(found.name) for found in pkgutil.walk_packages(e.__path__, e.__name__ + '.')]"
            "; e.methods.methods()",
            "torch",
        ),
        (
            "from histoclip_lib.clip import choose_compute; choose_compute()"
            "; from histoclip_lib.runs.chapters import attention, errors, results, training",
            "open_clip torchvision transformers timm",
        ),
        ("import histoclip_lib.cli", "torch pandas matplotlib"),
    ],
    ids=["all figures", "figures", "data", "prompting", "clip", "models", "evaluation", "chapters", "cli"],
)
def test_importing_a_module_loads_only_what_it_needs(source, absent):
    loaded = in_a_new_process(f"{source}\nimport json, sys; print(json.dumps(sorted(sys.modules)))")
    assert sorted(set(absent.split()) & set(loaded)) == []


SESSION = """
import importlib, json, pkgutil
import matplotlib, pandas, PIL.Image
OPTIONS = ("display.max_columns", "display.width", "display.precision", "display.float_format", "display.max_rows")
def settings():
    style = {name: repr(value) for name, value in matplotlib.rcParams.items() if not name.startswith("backend")}
    return style | {name: repr(pandas.get_option(name)) for name in OPTIONS} | {"pixels": PIL.Image.MAX_IMAGE_PIXELS}
before = settings()
import histoclip_lib
for module in pkgutil.walk_packages(histoclip_lib.__path__, "histoclip_lib."):
    importlib.import_module(module.name)
print(json.dumps([name for name, value in settings().items() if value != before[name]]))
"""


def test_importing_every_module_changes_nothing_in_the_session():
    assert in_a_new_process(SESSION) == []


def test_every_public_name_is_there_and_documented():
    assert set(histoclip_lib.__all__) == set(dir(histoclip_lib)) & set(histoclip_lib.__all__)
    for name in histoclip_lib.__all__:
        assert getattr(histoclip_lib, name).__doc__, name
    with pytest.raises(AttributeError):
        histoclip_lib.nothing_of_this_name  # noqa: B018


@pytest.fixture(scope="module")
def cache(tmp_path_factory, new_cache):
    """A cache that the examples share: they encode the same patches."""
    return new_cache(tmp_path_factory.mktemp("examples") / "cache")


@pytest.fixture
def registries_kept(monkeypatch):
    """What an example registers is forgotten after it."""
    for module, name in REGISTRIES.items():
        registry = getattr(importlib.import_module(f"histoclip_lib.{module}"), name)
        monkeypatch.setattr(registry, "_entries", dict(registry.load()))


@pytest.mark.parametrize("name", sorted(histoclip_lib.__all__))
def test_the_example_of_a_public_name_runs(name, tmp_path, cache, saved_model, registries_kept, monkeypatch):
    shutil.copytree(saved_model[0], tmp_path / "reports" / "demo" / "model")
    monkeypatch.setenv("HISTOCLIP_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    public = getattr(histoclip_lib, name)
    module = importlib.import_module(public.__module__)
    finder, names = doctest.DocTestFinder(recurse=False), dict(vars(module))
    examples = [test for test in finder.find(public, name, module=module, globs=names) if test.examples]
    assert len(examples) == 1, f"{name} has no example"
    assert not any(doctest.SKIP in example.options for example in examples[0].examples)
    said = []
    assert doctest.DocTestRunner().run(examples[0], out=said.append).failed == 0, "".join(said)
