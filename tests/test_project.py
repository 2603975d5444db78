"""The project as a whole: its requirements, the order of its modules, and what its files do not hold."""

import ast
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import histoclip_lib

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "histoclip_lib"
LONGEST_MODULE = 350  # lines: a module does one thing and fits in one's head
NOT_OURS = {"build", "reports", "node_modules", "__pycache__"}
REGISTRIES = re.compile(
    r"\b(pypi|files\.pythonhosted|(conda\.)?anaconda|huggingface|hf|download\.pytorch|registry\.npmjs)\.(org|com|co|io)\b"
)


def module_name(path):
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(LIBRARY.rglob("*.py"))}
LISTED = [
    name
    for line in histoclip_lib.__doc__.splitlines()
    if line.startswith("    ")
    for name in line.split(":")[0].strip().split(", ")
]


def imported(path):
    """Return the modules of the library that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            inner = [name for name in below if name.removeprefix("histoclip_lib.") in MODULES]
            names = inner if len(inner) == len(below) else [node.module, *inner]
        else:
            continue
        found |= {name.removeprefix("histoclip_lib.") for name in names if name.startswith("histoclip_lib.")}
    return found


def our_files():
    for folder, below, files in os.walk(ROOT):
        below[:] = [
            name for name in below if name not in NOT_OURS and not name.startswith(".") and "egg-info" not in name
        ]
        yield from (Path(folder) / file for file in files)


def test_the_library_s_docstring_lists_every_module_once():
    assert sorted(LISTED) == sorted(name for name in MODULES if name)


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_a_module_imports_only_from_those_before_it(name):
    assert imported(MODULES[name]) <= set(LISTED[: LISTED.index(name)])


@pytest.mark.parametrize("name", MODULES)
def test_a_module_fits_in_one_s_head_and_says_what_it_does_in_its_first_line(name):
    text = MODULES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE
    assert ast.get_docstring(ast.parse(text)).splitlines()[0].endswith((".", ":"))


def test_conda_and_pip_install_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "histoclip"
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["offline"],
        *project["optional-dependencies"]["cpu"],
        *project["optional-dependencies"]["dev"],
    ]
    assert pip == wanted
    [python] = [entry for entry in environment["dependencies"] if str(entry).startswith("python")]
    versions = SpecifierSet(python.removeprefix("python"))
    assert versions == SpecifierSet(project["requires-python"])
    assert [minor for minor in range(8, 18) if f"3.{minor}" in versions] == [11, 12, 13]
    assert "pip" in environment["dependencies"]


def test_every_requirement_has_a_lower_bound_and_stands_there_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras.pop("cluster")) <= set(extras["dev"])  # the tests start a scheduler
    lists = [project["dependencies"], *extras.values()]
    requirements = [Requirement(line) for lines in lists for line in lines]
    names = [requirement.name.lower().replace("_", "-") for requirement in requirements]
    assert len(names) == len(set(names))
    assert all(any(part.operator in (">=", "==") for part in requirement.specifier) for requirement in requirements)


def test_no_file_names_the_host_of_a_registry():
    found = []
    for path in our_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and pictures
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in REGISTRIES.finditer(text)]
    assert found == []


def test_every_test_that_the_reliability_page_names_is_there():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    named = set(re.findall(r"`(?:\w+\.py::)?(test_\w+)`", page))
    assert len(named) > 100
    assert named <= defined
