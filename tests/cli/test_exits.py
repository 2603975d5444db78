"""How a command ends, in processes of its own: killed notebooks, interruptions, two at once, a terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nbformat import v4, write

from histoclip_lib.report.notebooks import OTHERS, run_notebooks

STEPS = tuple(run_notebooks())
PARAMETERS = 'name: str = "demo"  # name of the run\nreports_dir: str = "reports"  # folder of the reports\n'
FIRST = """import os, signal, sys, time
from histoclip_lib.common.errors import HistoCLIPError
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "wrong":
    raise HistoCLIPError("data_dir: nowhere was not found. Set it.")
with open("kernel.pid", "w") as file:
    file.write(str(os.getpid()))
sys.stderr.write("  return func(*args)\\n\\rencoding:  41%|####1     | 24/60 [00:02<00:03, 11.20patch/s]")
time.sleep(600)
"""
PATIENCE = 300  # seconds, on a busy machine


@pytest.fixture
def workplace(tmp_path):
    """A folder with notebooks of which the first does what the run's name says, and parameter files."""
    (tmp_path / "notebooks").mkdir()
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    for stem in (*STEPS, *OTHERS):
        parameters = v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        cells = [v4.new_markdown_cell("# The data"), parameters, *[v4.new_code_cell(FIRST)] * (stem == STEPS[0])]
        tree = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        write(tree, tmp_path / "notebooks" / f"{stem}.ipynb")
    for name in ("killed", "wrong", "sleeps"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n")
    return tmp_path


def heed_ctrl_c():
    """Undo what a shell does to what it starts in the background: Ctrl-C is ignored there, in all that follows."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start(workplace):
    """Start the command line without display settings of the tests' own environment."""
    started = []
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", "HISTOCLIP_CACHE": str(workplace / "cache")}

    def start_command(*arguments, stderr=subprocess.PIPE):
        command = [Path(sys.executable).with_name("histoclip"), *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
        started.append(subprocess.Popen(command, cwd=workplace, env=environment, preexec_fn=heed_ctrl_c, **streams))
        return started[-1]

    yield start_command
    for process in started:
        process.kill()
        process.communicate()


def read_until(terminal, pattern):
    """Read what is written to a terminal until a pattern comes."""
    text, deadline = "", time.time() + PATIENCE
    while not re.search(pattern, text):
        assert time.time() < deadline, text
        if select.select([terminal], [], [], 0.2)[0]:
            text += os.read(terminal, 65536).decode()
    return text


def test_a_killed_notebook_is_reported_and_other_runs_continue(workplace, start):
    process = start("run", "killed.yaml", "wrong.yaml")
    printed, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert printed == f"{workplace / 'reports' / 'index.html'}\n"
    lines = complaints.splitlines()
    assert lines[:3] == ["killed  (killed.yaml)", "  01_data  started (first time)", lines[2]]
    assert re.fullmatch(r"  01_data  failed after \d+ s", lines[2])
    assert re.fullmatch(
        "error: 01_data, cell 3 of 3, The data: the notebook's process was killed, most likely because memory ran out."
        r"( It held \d+\.\d GiB at its peak.)?",
        lines[3],
    )
    failed = os.path.join("reports", "killed", "01_data.failed.ipynb")
    assert lines[4].startswith("Lower batch_size, encode_batch_size or views, or set studies: false.")
    assert lines[4].endswith(failed)
    assert (workplace / failed).is_file()
    assert "error: 01_data: data_dir: nowhere was not found. Set it." in lines
    assert lines[-1] == "error: 2 of 2 runs failed: killed, wrong."
    assert "\x1b" not in complaints
    assert "Traceback" not in complaints
    assert "Kernel died" not in complaints


def test_on_a_terminal_a_run_shows_progress_keeps_others_out_and_can_be_interrupted(workplace, start):
    ours, theirs = pty.openpty()
    process = start("run", "sleeps.yaml", stderr=theirs)
    os.close(theirs)
    text = read_until(ours, "encoding 41%, 00:03 left")
    assert re.search(r"  01_data  \d+ s \(first time\)  cell 3 of 3, encoding 41%", text)

    second = start("run", "sleeps.yaml")
    _, complaints = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    holder = re.escape(f"error: {os.path.join('reports', 'sleeps')}: process {process.pid} on ")
    assert re.search(rf"^{holder}.* is at work here\.\nWait until it ends", complaints, flags=re.MULTILINE)
    assert process.poll() is None

    process.send_signal(signal.SIGINT)
    text = read_until(ours, r"histoclip run sleeps\.yaml")
    assert process.wait(PATIENCE) == 130
    assert "interrupted" in text
    assert "Finished steps are kept; to go on:" in text
    assert "Traceback" not in text
    assert text.rindex("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is given back
    assert process.stdout.read() == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int((workplace / "kernel.pid").read_text()), 0)
    assert {path.name for path in (workplace / "reports" / "sleeps").iterdir()} == {"run.json"}
    os.close(ours)
