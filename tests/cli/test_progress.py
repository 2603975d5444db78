"""Progress: one line that changes on a terminal, few plain ones elsewhere."""

import io
import re
import time

import pytest
from rich.console import Console

from histoclip_lib.cli import console as consoles
from histoclip_lib.cli import progress
from histoclip_lib.cli.progress import bar_in_words, shown
from histoclip_lib.runs.pipeline import StepEvent


class Terminal(io.StringIO):
    def isatty(self):
        return True


def open_console(file, width=100):
    return Console(file=file, width=width, highlight=False, emoji=False, markup=False)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def play(console, *events, rest=0.0):
    with shown(console) as report:
        for event in events:
            report(event)
        time.sleep(rest)


STARTED = StepEvent("03_train", "started", 340.0)
CELL = StepEvent("03_train", "cell", text="cell 7 of 14, Other seeds")
BAR = StepEvent("03_train", "line", text="encoding with x:  41%|████▏     | 24/60 [00:02<00:03, 11.20patch/s]")
WARNING = StepEvent("03_train", "line", text="  return func(*args, **kwargs)")


# Anywhere but on a terminal


def test_a_notebook_has_two_plain_lines():
    file = io.StringIO()
    play(open_console(file), STARTED, CELL, *[BAR] * 100, StepEvent("03_train", "finished", 65.0))
    assert file.getvalue() == "  03_train  started (last time 5 min 40 s)\n  03_train  done in 1 min 05 s\n"


def test_no_duration_is_guessed_the_first_time():
    file = io.StringIO()
    play(open_console(file), StepEvent("01_data", "started"), StepEvent("01_data", "failed", 3.0))
    assert file.getvalue() == "  01_data  started (first time)\n  01_data  failed after 3 s\n"


def test_a_skipped_notebook_has_one_line():
    file = io.StringIO()
    play(open_console(file), StepEvent("01_data", "skipped"))
    assert file.getvalue() == "  01_data  unchanged, skipped\n"


def test_a_long_notebook_reports_its_bar_from_time_to_time_and_no_warning(monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.2)
    file = io.StringIO()
    play(open_console(file, 40), STARTED, CELL, BAR, WARNING, rest=0.7)
    lines = file.getvalue().splitlines()
    assert 2 <= len(lines) <= 5
    assert lines[1] == "  03_train  0 s (last time 5 min 40 s)  cell 7 of 14, encoding with x 41%, 00:03 left"
    time.sleep(0.4)
    assert len(file.getvalue().splitlines()) == len(lines)  # an error has ended it


# On a terminal


def test_on_a_terminal_one_line_follows_the_notebook():
    file = Terminal()
    with shown(open_console(file)) as report:
        report(STARTED)
        for event, expected in ((CELL, "cell 7 of 14, Other seeds"), (BAR, "cell 7 of 14, encoding with x 41%")):
            report(event)
            deadline = time.time() + 10
            while expected not in file.getvalue() and time.time() < deadline:
                time.sleep(0.02)
            assert expected in file.getvalue()
        report(StepEvent("03_train", "finished", 3.0))
    text = file.getvalue()
    assert "(last time 5 min 40 s)" in text
    assert "started" not in text
    assert "done in" in text.splitlines()[-1]
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor is given back
    assert text.count("\x1b[1A\x1b[2K") == 1  # and the line taken away
    assert not re.search(r"[\u2500-\u257f]", text)


def test_a_long_line_is_cut_and_never_wrapped():
    file = Terminal()
    heading = "标题" * 100
    play(open_console(file, 40), STARTED, StepEvent("03_train", "cell", text=f"cell 1 of 2, {heading}"), rest=0.6)
    frames = [re.sub(r"\x1b\[[?\d;]*\w", "", frame) for frame in re.split(r"[\r\n]", file.getvalue())]
    assert max(consoles.Text(frame).cell_len for frame in frames) <= 40
    assert any(frame.endswith("…") for frame in frames)
    assert file.getvalue().count("\x1b[1A") == 1  # at its end


def test_an_error_ends_the_line():
    file = Terminal()
    with pytest.raises(KeyboardInterrupt), shown(open_console(file)) as report:
        report(STARTED)
        raise KeyboardInterrupt
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1


def test_a_heading_cannot_act_on_the_terminal():
    file = Terminal()
    play(
        open_console(file), STARTED, StepEvent("03_train", "cell", text="cell 1 of 2, \x1b]0;title\x07[red]"), rest=0.6
    )
    assert "\x1b]0" not in file.getvalue()
    assert r"\x1b]0;title\x07[red]" in file.getvalue()


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_and_dumb_terminals_get_plain_lines(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr("sys.stderr", Terminal())
    console = consoles.messages()
    play(console, STARTED, CELL, StepEvent("03_train", "finished", 65.0))
    assert console.file.getvalue() == "  03_train  started (last time 5 min 40 s)\n  03_train  done in 1 min 05 s\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("painting patches:   8%|▊         | 5/60 [00:03<00:34,  1.62patch/s]", "painting patches 8%, 00:34 left"),
        (" 41%|####1     | 24/60 [00:02<1:00:03, 11.20it/s]", "41%, 1:00:03 left"),
        ("a: b:   0%|          | 0/60 [00:00<?, ?patch/s]", "a: b 0%"),
        ("encoding: 100%|██████████| 60/60 [00:05<00:00, 10.59patch/s]", ""),
        ("12it [00:01,  9.00it/s]", None),
        ("UserWarning: 95% of it", None),
        ("  return func(*args, **kwargs)", None),
    ],
)
def test_only_bars_are_shown(line, words):
    assert bar_in_words(line) == words
