"""Look up known vulnerabilities of installed packages with pip-audit, and fail where that was not possible.

pip-audit succeeds when its advisory service knows none of the packages, as behind a mirror of the package index. That
nothing was found then means nothing, so here it is a failure.

Usage: python tools/audit.py FOLDER, where the folder holds installed packages. `make audit` does it for `.venv`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

OWN = "histoclip"  # the project itself, which no index has
CLEAN, VULNERABLE, NOT_LOOKED_UP = 0, 1, 2


@dataclass(frozen=True)
class Audit:
    """What pip-audit says.

    Attributes
    ----------
    looked_up : list of str
        Packages that its service knows.
    vulnerabilities : list of str
        A line for each known vulnerability: package, version, identifiers, and the versions that fix it.
    skipped : list of str
        A line for each package that was not looked up, and why.
    """

    looked_up: list[str]
    vulnerabilities: list[str]
    skipped: list[str]


def read_report(text: str) -> Audit:
    """Read what `pip-audit --format json` writes.

    Raises
    ------
    ValueError
        If it is not such a report.
    """
    try:
        packages = json.loads(text)["dependencies"]
        skipped = [f"{p['name']}: {p['skip_reason']}" for p in packages if "skip_reason" in p and p["name"] != OWN]
        looked_up = [p for p in packages if "skip_reason" not in p]
        vulnerabilities = [
            f"{p['name']} {p['version']}: {', '.join([known['id'], *known.get('aliases', [])])}; fixed in "
            f"{', '.join(known['fix_versions']) or 'no version yet'}"
            for p in looked_up
            for known in p["vulns"]
        ]
        return Audit([p["name"] for p in looked_up], vulnerabilities, skipped)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a report of pip-audit: {error!r} is missing or malformed") from error


def verdict(audit: Audit) -> tuple[int, str]:
    """Return the exit code and what to print."""
    parts = []
    if audit.vulnerabilities:
        parts.append("\n  - ".join([f"{len(audit.vulnerabilities)} known vulnerabilities:", *audit.vulnerabilities]))
    if audit.skipped or not audit.looked_up:
        parts.append(
            f"{len(audit.skipped)} packages were not looked up, {len(audit.looked_up)} were: the advisory service was "
            "not reached or does not know them, so nothing is known of these. Try again where the public package index "
            "can be reached."
        )
    if audit.looked_up:  # otherwise it is all of them, for one reason
        parts += [f"  - {package}" for package in audit.skipped]
    if parts:
        return (VULNERABLE if audit.vulnerabilities else NOT_LOOKED_UP), "\n".join(parts)
    return CLEAN, f"No known vulnerabilities in {len(audit.looked_up)} packages."


def main(folder: str) -> int:
    """Run pip-audit on a folder of installed packages, print what it found and return the exit code."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--path", folder]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        code, text = verdict(read_report(finished.stdout))
    except ValueError as error:
        last = (finished.stderr.strip().splitlines() or [str(error)])[-1]
        code, text = NOT_LOOKED_UP, f"pip-audit could not work, so nothing is known: {last}"
    print(text, file=sys.stdout if code == CLEAN else sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 2 else __doc__)
