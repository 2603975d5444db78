"""`make audit`: looking up nothing is a failure, and every vulnerability is named. The reports are pip-audit's own."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools/audit.py"
spec = importlib.util.spec_from_file_location("audit", SCRIPT)
audit = sys.modules["audit"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

SKIPPED = {"name": "anyio", "skip_reason": "Dependency not found on PyPI and could not be audited: anyio (4.16.0)"}
OWN = {"name": "histoclip", "skip_reason": "Dependency not found on PyPI and could not be audited: histoclip (0.1.0)"}
SOUND = {"name": "numpy", "version": "2.4.6", "vulns": []}
VULNERABLE = {
    "name": "jinja2",
    "version": "3.1.5",
    "vulns": [
        {
            "id": "GHSA-cpwx-vrp4-4pq7",
            "fix_versions": ["3.1.6"],
            "aliases": ["CVE-2025-27516"],
            "description": "An oversight in how the sandbox interacts with the attr filter ...",
        },
        {"id": "PYSEC-0000-0", "fix_versions": [], "aliases": [], "description": "made up for this test"},
    ],
}


def report(*packages):
    return json.dumps({"dependencies": packages, "fixes": []})


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SOUND, OWN], audit.CLEAN, "No known vulnerabilities in 1 packages."),
        ([SOUND, VULNERABLE], audit.VULNERABLE, "jinja2 3.1.5: GHSA-cpwx-vrp4-4pq7, CVE-2025-27516; fixed in 3.1.6"),
        ([SOUND, VULNERABLE], audit.VULNERABLE, "PYSEC-0000-0; fixed in no version yet"),
        ([SOUND, VULNERABLE, SKIPPED], audit.VULNERABLE, "1 packages were not looked up, 2 were"),
        ([SKIPPED] * 207, audit.NOT_LOOKED_UP, "207 packages were not looked up, 0 were: the advisory service was not"),
        ([SOUND, SKIPPED], audit.NOT_LOOKED_UP, "anyio: Dependency not found on PyPI"),
        ([OWN], audit.NOT_LOOKED_UP, "0 packages were not looked up, 0 were"),
        ([], audit.NOT_LOOKED_UP, "so nothing is known"),
    ],
)
def test_the_verdict_and_its_exit_code(packages, code, said):
    found, text = audit.verdict(audit.read_report(report(*packages)))
    assert found == code
    assert said in text


def test_packages_are_not_listed_where_none_was_looked_up():
    _, text = audit.verdict(audit.read_report(report(*[SKIPPED] * 207)))
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"dependencies": [{}]}', '{"dependencies": 3}', "null"])
def test_output_that_is_not_a_report_is_refused(text):
    with pytest.raises(ValueError):
        audit.read_report(text)


@pytest.mark.parametrize(
    ("written", "code", "said"),
    [
        (f"print({report(SOUND)!r})", audit.CLEAN, "No known vulnerabilities in 1 packages."),
        (
            f"print({report(SKIPPED)!r}); print('No known vulnerabilities found', file=sys.stderr)",
            2,
            "nothing is known",
        ),
        (
            "sys.exit('ConnectionError: no service')",
            2,
            "could not work, so nothing is known: ConnectionError: no service",
        ),
    ],
)
def test_the_script_ends_with_the_verdict(tmp_path, written, code, said):
    (tmp_path / "pip_audit.py").write_text(f"import sys\nassert sys.argv[-2:] == ['--path', 'folder']\n{written}\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "folder"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == code, finished.stderr
    assert said in finished.stdout + finished.stderr


def test_make_fails_where_the_script_does():
    makefile = (ROOT / "Makefile").read_text()
    [recipe] = re.findall(r"^audit: .*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    [line] = [line for line in recipe.splitlines() if "tools/audit.py" in line]
    assert re.match(r"\t[^-@|]", line)
    assert not re.search(r"\|\||; *true", line)
