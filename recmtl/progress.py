"""How long work shows itself: a bar with rate and remaining time on a terminal, plain lines elsewhere.

Rooms are handed a :class:`Progress` and never print. :class:`Silent` is the null object of the Python API and tests.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

__all__ = ["Bar", "Lines", "Progress", "Silent", "Terminal", "for_stream"]


class Bar(Protocol):
    """One piece of work under way."""

    def advance(self, amount: int = 1) -> None:
        """This much more is done."""

    def note(self, text: str) -> None:
        """A short text beside the bar, such as the current loss."""


class Progress(Protocol):
    """Where a stage says what it is doing."""

    def say(self, text: str) -> None:
        """One line for a person."""

    def warn(self, text: str) -> None:
        """One line that a person should not overlook."""

    def bar(self, title: str, total: int | None, unit: str = "rows", done: int = 0) -> AbstractContextManager[Bar]:
        """Show work of ``total`` units (None: unknown), of which ``done`` were done before (a resumed run)."""


class _SilentBar:
    def advance(self, amount: int = 1) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """Shows nothing; keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Keep the warning in ``warnings``."""
        self.warnings.append(text)

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str = "rows", done: int = 0) -> Iterator[Bar]:
        """A bar that shows nothing."""
        yield _SilentBar()


class _LineBar:
    def __init__(self, stream: TextIO, title: str, total: int | None, unit: str, done: int, every: float) -> None:
        self._stream, self._title, self._total, self._unit = stream, title, total, unit
        self._done, self._begun_at, self._every = done, done, every
        self._start = self._shown = time.monotonic()
        self._note = ""

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._shown >= self._every:
            self._shown = now
            self._show(now)

    def note(self, text: str) -> None:
        self._note = text

    def _show(self, now: float) -> None:
        rate = (self._done - self._begun_at) / max(now - self._start, 1e-9)
        parts = [f"{self._title}: {self._done:,}"]
        if self._total:
            parts[0] += f" of {self._total:,}"
            if rate > 0 and self._done < self._total:
                parts.append(f"{(self._total - self._done) / rate:.0f} s left")
        parts[0] += f" {self._unit}"
        parts.insert(1, f"{rate:,.0f} {self._unit}/s")
        if self._note:
            parts.append(self._note)
        print(", ".join(parts), file=self._stream, flush=True)


class Lines:
    """Plain lines, for logs and pipes: a bar speaks every ``every`` seconds."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = stream
        self._every = every

    @property
    def _out(self) -> TextIO:
        return self._stream or sys.stderr

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._out, flush=True)

    def warn(self, text: str) -> None:
        """Print a line that begins with `warning:`."""
        self.say(f"warning: {text}")

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str = "rows", done: int = 0) -> Iterator[Bar]:
        """A bar as plain lines."""
        yield _LineBar(self._out, title, total, unit, done, self._every)


class Terminal:
    """Bars and colours on a terminal, by rich."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console

        self._console = Console(file=stream or sys.stderr, highlight=False)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a yellow line."""
        self._console.print(f"warning: {text}", style="yellow", markup=False)

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str = "rows", done: int = 0) -> Iterator[Bar]:
        """A moving bar with rate and remaining time."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self._console, transient=True) as rich_bar:
            task = rich_bar.add_task(title, total=total, completed=done, rate="", note="")
            start = time.monotonic()

            class _RichBar:
                advanced = 0

                def advance(self, amount: int = 1) -> None:
                    self.advanced += amount
                    rate = self.advanced / max(time.monotonic() - start, 1e-9)
                    rich_bar.update(task, advance=amount, rate=f"{rate:,.0f}/s")

                def note(self, text: str) -> None:
                    rich_bar.update(task, note=text)

            yield _RichBar()


def for_stream(stream: TextIO | None = None) -> Progress:
    """:class:`Terminal` when the stream (standard error by default) is one, else :class:`Lines`."""
    out = stream or sys.stderr
    return Terminal(stream) if out.isatty() else Lines(stream)
