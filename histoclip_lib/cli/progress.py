"""The progress of a run: a line for each notebook that follows it on a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from histoclip_lib.cli.console import duration, is_plain, say, visible
from histoclip_lib.runs.pipeline import StepEvent

REFRESHES = 4  # a second, on a terminal
SILENCE = 60.0  # seconds between two plain lines
SHARD_SILENCE = 5.0  # seconds between two lines on encoding
BAR = re.compile(r"(?P<what>.*?):?\s*(?P<percent>\d+)%\|(.*<(?P<left>[\d:]+))?")  # as tqdm writes it


@contextmanager
def shown(console: Console) -> Iterator[Callable[[StepEvent], None]]:
    """Show the progress of notebooks for the length of a block; yields what `pipeline.run_steps` reports to."""
    progress = _Progress(console)
    try:
        yield progress.take
    finally:
        progress.stop()


class _Progress:
    """What is known of the notebook that is executed, and the line that says it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.display: Live | _PlainPulse | None = None
        self.step, self.began, self.last, self.cell, self.bar = "", 0.0, "", "", ""

    def take(self, event: StepEvent) -> None:
        """Take note of an event, and print what it ends."""
        if event.state == "started":
            self.step, self.began, self.cell, self.bar = event.step, time.monotonic(), "", ""
            self.last = "first time" if event.seconds is None else f"last time {duration(event.seconds)}"
            self.start()
        elif event.state == "cell":
            self.cell, self.bar = event.text, ""
        elif event.state == "line":
            if (words := bar_in_words(event.text)) is not None:
                self.bar = words
        else:
            self.stop()
            self.console.print(_ending(event), soft_wrap=True)

    def start(self) -> None:
        """Begin to show the line."""
        if is_plain(self.console):
            say(self.console, f"  {self.step}  started ({self.last})")
            self.display = _PlainPulse(lambda: say(self.console, self.now().plain))
        else:
            self.display = Live(
                get_renderable=self.now, console=self.console, refresh_per_second=REFRESHES, transient=True
            )
        self.display.start()

    def stop(self) -> None:
        """Show the line no longer."""
        if self.display is not None:
            self.display.stop()
            self.display = None

    def now(self) -> Text:
        """Return the line."""
        elapsed = f"{duration(time.monotonic() - self.began)} ({self.last})"
        number, _, heading = self.cell.partition(", ")
        where = ", ".join(part for part in (number, self.bar or heading) if part)
        return Text(f"  {self.step}  {elapsed}  {visible(where)}".rstrip(), no_wrap=True, overflow="ellipsis")


class SideBySide:
    """Reports in plain lines on runs that are executed at once."""

    def __init__(self, console: Console) -> None:
        self.console, self.said = console, 0.0

    def step_ended(self, name: str, event: StepEvent) -> None:
        """Say that a notebook of a run has ended."""
        self.console.print(Text(visible(name), style="bold"), _ending(event), soft_wrap=True)

    def shard_done(self, name: str, done: int, total: int) -> None:
        """Say how many shards of a run's features are finished, every few seconds."""
        if done == total or time.monotonic() - self.said > SHARD_SILENCE:
            self.said = time.monotonic()
            say(self.console, f"{visible(name)}  features: {done} of {total} shards")


class _PlainPulse:
    """Calls a function again and again from a thread, which `stop` ends."""

    def __init__(self, say_it: Callable[[], None]) -> None:
        self.say_it, self.ended = say_it, threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()

    def _beat(self) -> None:
        while not self.ended.wait(SILENCE):
            self.say_it()


def bar_in_words(line: str) -> str | None:
    """Return a progress bar of tqdm as `encoding 41%, 00:03 left`, nothing once it is full; None for other lines."""
    bar = BAR.match(line)
    if bar is None:
        return None
    if bar["percent"] == "100":
        return ""
    return f"{bar['what']} {bar['percent']}%".strip() + (f", {bar['left']} left" if bar["left"] else "")


def _ending(event: StepEvent) -> Text:
    if event.state == "skipped":
        return Text(f"  {event.step}  unchanged, skipped", style="dim")
    word, style = ("done in", "green") if event.state == "finished" else ("failed after", "red")
    return Text.assemble(f"  {event.step}  ", (word, style), f" {duration(event.seconds)}")
