"""What SECURITY.md promises: user files are never run, nothing is written elsewhere, known vulnerabilities stay out."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image
from tiny_clip import config, save_local_dir, tiny_model

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.common.errors import HistoCLIPError

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for name in ("histoclip_lib", "benchmarks", "notebooks", "tools") for path in (ROOT / name).rglob("*.py")
]
LIBRARY = [path for path in SOURCES if "histoclip_lib" in path.parts]

# Calls that run what they are given, those that do unless a keyword has a value, and keywords that make them.
NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "pty.spawn",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "joblib.load", "marshal.loads", "shelve.open", "jsonpickle.decode", "pd.read_pickle",
    "pandas.read_pickle", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.full_load_all",
    "yaml.unsafe_load_all", "torch.jit.load", "torch.hub.load", "tempfile.mktemp", "subprocess.getoutput",
    "subprocess.getstatusoutput",
}  # fmt: skip
ONLY_WITH = {"torch.load": ("weights_only", True), "yaml.load": ("Loader", "SafeLoader")}
NEVER_WITH = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "weights_only": False}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}


def dotted(node):
    """Return the name of what is called, such as `torch.load`; a method of something unknown begins with a dot."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def given(call, keyword):
    for argument in call.keywords:
        if argument.arg == keyword:
            return (
                argument.value.value
                if isinstance(argument.value, ast.Constant)
                else dotted(argument.value).split(".")[-1]
            )
    return None


def faults(source):
    """Return the calls and imports of a source that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"import {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in NEVER:
            found.append(name)
        if name in ONLY_WITH and given(node, ONLY_WITH[name][0]) != ONLY_WITH[name][1]:
            found.append(f"{name} without {ONLY_WITH[name][0]}")
        found += [f"{name} with {key}" for key, value in NEVER_WITH.items() if given(node, key) is value]
    return found


# The source


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import pickle", "import pickle"),
        ("from pickle import loads", "import pickle"),
        ("import os\nos.system('ls')", "os.system"),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("import subprocess\nsubprocess.run(name, shell=True)", "subprocess.run with shell"),
        ("import yaml\nyaml.load(text)", "yaml.load without Loader"),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", "yaml.load without Loader"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "np.load with allow_pickle"),
        ("import torch\ntorch.load(path)", "torch.load without weights_only"),
        ("import torch\ntorch.load(path, weights_only=False)", "torch.load without weights_only"),
        ("import joblib\njoblib.load(path)", "joblib.load"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "AutoModel.from_pretrained with trust_remote_code"),
    ],
)
def test_the_search_finds_what_it_is_for(source, fault):
    assert fault in faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import torch\ntorch.load(path, weights_only=True)",
        "model.eval()",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import re\nre.compile(text)",
    ],
)
def test_the_search_leaves_the_harmless_alone(source):
    assert faults(source) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_a_file_says(path):
    assert faults(path.read_text(encoding="utf-8")) == []


def test_the_only_program_that_the_library_starts_is_named_in_the_source():
    """A list of fixed words: no name from a user becomes a command, and no shell reads one."""
    started = []
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and dotted(node.func).startswith("subprocess."):
                assert isinstance(node.args[0], ast.List), f"{path}: {ast.unparse(node)}"
                started.append(ast.literal_eval(node.args[0].elts[0]))
    assert started == ["git"]


# Weights


class Bomb:
    """What a pickle can do: make a folder where it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


@pytest.fixture
def bomb(tmp_path):
    """Return a pickle that would explode, and make sure that it would and did not."""
    target = tmp_path / "exploded"
    yield Bomb(target)
    assert not target.exists()
    torch.save({"weight": Bomb(target)}, tmp_path / "proof.pt")
    torch.load(tmp_path / "proof.pt", weights_only=False)
    assert target.is_dir()


@pytest.mark.parametrize(
    "name", ["evil.pt", "evil.bin", "evil.pth", "evil.ckpt", "evil.safetensors", "evil.npz", "evil.npy"]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_are_a_pickle_are_not_unpickled(tmp_path, monkeypatch, bomb, name, legacy):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit", config())
    path = tmp_path / name
    torch.save({"state_dict": tiny_model().state_dict(), "more": bomb}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(HistoCLIPError, match=r"Looked for .*evil\.\w+\. Reason"):
        load_clip("tiny-vit", str(path), device="cpu")


def test_a_model_folder_with_a_pickle_is_not_unpickled(tmp_path, bomb):
    name = save_local_dir(tmp_path / "model", tiny_model())
    (tmp_path / "model/open_clip_model.safetensors").unlink()
    torch.save(bomb, tmp_path / "model/open_clip_pytorch_model.bin")
    with pytest.raises(HistoCLIPError, match="the model could not be loaded"):
        load_clip(name, device="cpu")


@pytest.mark.filterwarnings("ignore")  # that it is deprecated, and that it is one
def test_a_script_in_torchs_archive_is_not_run(tmp_path, monkeypatch):
    class Script(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit", config())
    torch.jit.save(torch.jit.script(Script()), tmp_path / "evil.pt")
    with pytest.raises(HistoCLIPError, match="Cannot use ``weights_only=True`` with TorchScript archives"):
        load_clip("tiny-vit", str(tmp_path / "evil.pt"), device="cpu")


# Writing

LOAD = """
from histoclip_lib.evaluation.artifacts import save_split
from histoclip_lib.data import check_images, load_dataset, split_dataset
from histoclip_lib.common.files import run_folder
patches = load_dataset("folder", "data")
train, val = split_dataset(patches, "grouped", 0, 0.5)
check_images(patches, progress=False)
folder = run_folder("mine", "reports")
save_split(folder / "split.csv", patches, [(train, val)])
"""
OURS = ("work/reports", "cache", "home/.cache", "home/.config")  # the last two are Matplotlib's


@pytest.fixture
def run_load(tmp_path):
    """Return a function that writes `labels.csv`, loads it in a process of its own and returns what that made where."""
    data = tmp_path / "work/data"
    for folder in (data, tmp_path / "home"):
        folder.mkdir(parents=True)

    def run(table, files=()):
        for name in files:
            Image.fromarray(np.full((48, 48, 3), 200, dtype=np.uint8)).save(data / name)
        (data / "labels.csv").write_text(table)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        environment |= {"HOME": str(tmp_path / "home"), "HISTOCLIP_CACHE": str(tmp_path / "cache")}
        before = set(tmp_path.rglob("*"))
        command = [sys.executable, "-c", LOAD]
        finished = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True)
        return finished, {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before}

    return run


def test_names_of_files_classes_and_groups_are_no_commands_and_lead_nowhere(run_load):
    files = ["$(touch ran).png", "; touch ran; .png", "a&b|c.png", "<b>.png"]
    groups = ["../../g", "/absolute/g", "$(touch ran)", "`touch ran`"]
    rows = [f'"{file}",{group},{row % 2},1' for row, (file, group) in enumerate(zip(files, groups, strict=True))]
    finished, made = run_load("\n".join(['file,group,../../class,"/etc/class"', *rows]), files)
    assert finished.returncode == 0, finished.stderr
    assert "work/reports/mine/split.csv" in made
    assert [path for path in made if not path.startswith(OURS)] == []


def test_a_table_that_names_files_elsewhere_is_refused_and_makes_nothing(run_load):
    names = ["../../up.png", "/etc/hostname", "a/../../../up.png", "$(touch ran).png"]
    finished, made = run_load("file,group,tumor\n" + "".join(f'"{name}",a,1\n' for name in names))
    assert finished.returncode == 1
    assert "HistoCLIPError" in finished.stderr
    assert all(f"line {line}: {name!r}" in finished.stderr for line, name in enumerate(names, 2))
    assert [path for path in made if not path.startswith(OURS[2:])] == []


# Versions


def floors():
    """Return the lowest version of each requirement, by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(line) for lines in lists for line in lines]
    return {r.name.lower(): next(s.version for s in r.specifier if s.operator in (">=", "==")) for r in requirements}


def stated():
    """Return package, floor and the cell of advisories of each row of the table in SECURITY.md."""
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| (.+) \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) > 5
    return rows


@pytest.mark.parametrize("name", floors())
def test_what_is_installed_is_not_below_the_floors(name):
    try:
        installed = version(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    assert Version(installed) >= Version(floors()[name])


def test_the_floors_that_security_md_states_are_those_of_pyproject():
    table = {name: floor for name, floor, _ in stated()}
    assert len(table) == len(stated())
    assert {name: floors().get(name) for name in table} == table


def test_each_stated_floor_is_above_the_fix_of_each_advisory_that_it_names():
    for name, floor, advisories in stated():
        fixes = re.findall(r"(CVE-\d{4}-\d{4,7}) \(([\d.]+)\)", advisories)
        assert fixes, name
        assert re.findall(r"CVE-\d{4}-\d+", advisories) == [identifier for identifier, _ in fixes]
        for _, fix in fixes:
            assert Version(floor) >= Version(fix), name
