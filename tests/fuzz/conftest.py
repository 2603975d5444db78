"""Say at the end how many cases were tried."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import TRIED


def pytest_terminal_summary(terminalreporter):
    if TRIED:
        names = sorted({name for name, _ in TRIED})
        lines = [f"{name}: {TRIED[name, 'read']} read, {TRIED[name, 'refused']} refused" for name in names]
        terminalreporter.write_line(f"fuzz: {sum(TRIED.values()):,} cases\n  " + "\n  ".join(lines))
