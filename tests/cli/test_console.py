"""What the command line prints: plain where it should be, text as text, errors in two lines."""

import errno
import io
import sys

import pytest
import typer

from histoclip_lib.cli import console
from histoclip_lib.cli.console import (
    aligned,
    complain,
    described,
    duration,
    is_plain,
    messages,
    results,
    say,
    stoppable,
    told,
    visible,
)
from histoclip_lib.common.errors import HistoCLIPError

HOSTILE = [
    "<script>alert(1)</script>",
    "[red]a[/red] :warning:",
    "\x1b[31mred\x1b[0m",
    "a\nb\rc\x07",
    "标签" * 100,
    "\u202eright to left",
    "עברית",
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that makes standard error a terminal and returns what is written to it."""

    def make(variable="TERM", value="xterm-256color"):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv(variable, value)
        monkeypatch.setattr("sys.stderr", Terminal())
        return sys.stderr

    return make


def test_a_terminal_gets_colours_and_anything_else_does_not(terminal, capsys):
    written = terminal()
    assert not is_plain(messages())
    complain("no")
    assert "\x1b[31merror" in written.getvalue()
    assert is_plain(results())
    say(results(), "text", style="bold red")
    assert capsys.readouterr().out == "text\n"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_and_dumb_terminals_get_no_colours(terminal, variable, value):
    written = terminal(variable, value)
    complain("no")
    say(messages(), "text", style="bold")
    assert written.getvalue() == "error: no\ntext\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_cannot_act_on_a_terminal(terminal, text):
    file = terminal()
    complain(text)
    messages().print(aligned(["a", "b"], [[text, "1"]], 1))
    say(messages(), visible(text))
    written = file.getvalue().replace("\x1b[31m", "").replace("\x1b[0m", "").replace("\x1b[1m", "")
    assert not set(written) & set("\x1b\r\x07\u202e")
    if text.startswith(("<", "[")):
        assert written.count(text) == 3


def test_visible_keeps_every_script_and_escapes_control_characters():
    assert visible("标签 עברית é a&b") == "标签 עברית é a&b"
    assert visible("a\n\x1b[0m\u202eb") == r"a\n\x1b[0m\u202eb"


def test_an_error_keeps_its_lines_and_is_never_wrapped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    complain("x" * 100 + "\nremedy\n")
    assert capsys.readouterr().err == "error: " + "x" * 100 + "\nremedy\n"


def test_tables_are_aligned_and_as_wide_as_the_console(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    results().print(aligned(["name", "mAcc"], [["n" * 60, "0.5"], ["标签", "0.25"]], 1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "mAcc"]
    assert all(console.Text(line).cell_len <= 30 for line in lines)
    assert sum(line.count("n") for line in lines[1:]) == 60
    assert lines[-1].rstrip().endswith("0.25")


@pytest.mark.parametrize(
    ("error", "first", "second"),
    [
        (HistoCLIPError("a\nb"), "a", "b"),
        (PermissionError(errno.EACCES, "Permission denied", "/r/demo"), "/r/demo: Permission denied.", "--reports DIR"),
        (OSError(errno.ENOSPC, "No space left on device", "/r/demo"), "/r/demo: the disk is full", "HISTOCLIP_CACHE"),
        (OSError(errno.ENOSPC, "No space left on device"), "writing: the disk is full", "--reports DIR"),
        (TypeError("no\nmore"), "unexpected: TypeError: no", "--debug"),
        (OSError("odd"), "unexpected: OSError: odd", "--debug"),
        (ValueError(), "unexpected: ValueError: ", "--debug"),
    ],
)
def test_an_error_of_any_kind_is_two_lines(error, first, second):
    lines = described(error).split("\n")
    assert len(lines) == 2
    assert lines[0].startswith(first)
    assert second in lines[1]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (341, "5 min 41 s"),
        (3599.7, "1 h 00 min"),
        (8100, "2 h 15 min"),
    ],
)
def test_duration_in_words(seconds, words):
    assert duration(seconds) == words


def test_errors_are_printed_and_become_exit_codes(capsys):
    for code in (1, 2):
        with pytest.raises(typer.Exit) as ended, told(debug=False, code=code):
            raise HistoCLIPError("a\nb")
        assert ended.value.exit_code == code
    assert capsys.readouterr().err == "error: a\nb\n" * 2
    with pytest.raises(HistoCLIPError), told(debug=True):
        raise HistoCLIPError("a")
    with pytest.raises(typer.Exit) as ended, told(debug=False):
        raise typer.Exit(7)
    assert ended.value.exit_code == 7
    assert capsys.readouterr().err == ""


def test_an_interruption_ends_in_130(capsys):
    with pytest.raises(typer.Exit) as ended, stoppable(" To go on: x"), told(debug=False):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "error: interrupted. To go on: x\n"
