"""The application: help, options, and that it starts without what it does not need."""

import re
import subprocess
import sys

import pytest

from histoclip_lib import __version__
from histoclip_lib.common.registry import load_plugins

COMMANDS = ("init", "import", "check", "run", "table", "show", "publish", "predict", "encoders", "cache")


def test_help_is_shown_without_a_command(invoke):
    result = invoke()
    assert result.exit_code == 2
    assert "Exit codes: 0" in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples_and_fits_80_columns(invoke, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert re.search(rf"Examples?:\n  +histoclip .*{command}", result.stdout)
    assert "--debug" in result.stdout
    assert "xit code" not in result.stdout
    assert result.stdout.isascii()


def test_help_lists_commands_in_the_order_of_use_and_exit_codes(invoke, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = invoke("--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    assert tuple(re.findall(r"^  (\w+) +[A-Z].*\.$", text.partition("Commands:")[2], flags=re.MULTILINE)) == (
        *COMMANDS,
        "model",
    )
    assert text.count("Exit codes:") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_lists_registered_names(invoke, arguments):
    text = invoke(*arguments).stdout.partition("Registered names:")[2]
    assert re.search(r"dataset +.*\bsynthetic\b.*\bpannuke\b", text)
    assert re.search(r"backbone +.*\blite0-minilm\b.*\bplip\b.*; any open_clip model", " ".join(text.split()))
    assert re.search(r"strategies +baseline, one_vs_rest, power_set, top_k", text)


def test_a_plugin_that_cannot_be_imported_is_named_by_help_and_an_error(invoke, tmp_path, monkeypatch):
    load_plugins.cache_clear()
    monkeypatch.setenv("HISTOCLIP_PLUGINS", "gone_\x1b[31m")
    result = invoke("--help")
    (tmp_path / "run.yaml").write_text("name: demo")
    refused = invoke("check", "run.yaml")
    load_plugins.cache_clear()
    assert (result.exit_code, refused.exit_code) == (0, 1)
    assert r"plugin gone_\x1b[31m: cannot be imported" in result.stdout
    assert r"plugin gone_\x1b[31m: cannot be imported" in refused.stderr
    assert "Traceback" not in refused.output


def test_help_loads_no_pytorch_and_version_nothing_heavy(tmp_path):
    code = (
        "import sys; from histoclip_lib.cli.app import app; app(['--version'], standalone_mode=False);"
        "print({'torch', 'papermill', 'pandas', 'sklearn', 'nbformat'} & set(sys.modules));"
        "app(['--help'], standalone_mode=False); print({'torch', 'papermill', 'transformers'} & set(sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert finished.stdout.startswith(f"histoclip {__version__}\nset()\n")
    assert finished.stdout.endswith("\nset()\n")


def test_wrong_options_end_in_2(invoke):
    for arguments in (("run",), ("runn",), ("run", "a.yaml", "--forse"), ("cache", "--prune", "soon"), ("show",)):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "Error: " in result.stderr
        assert result.stdout == ""


def test_without_the_extra_report_the_command_says_what_to_install():
    hide = "import sys; sys.modules['typer'] = None; from histoclip_lib.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (
        1, "histoclip: typer is not installed. The command needs pip install 'histoclip[report]'.",
    )  # fmt: skip
