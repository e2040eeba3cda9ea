"""Progress of everything that takes long, on stderr: a bar on a terminal, lines elsewhere.

Results go to stdout and progress to stderr, so that a command's output can be piped. Without a terminal (a log file, a
batch queue) work that is over within seconds stays silent; longer work writes a line at least once a minute, with an
estimate of its end. The core calls `track` and `task` and does not know rich.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

__all__ = ["Task", "duration_text", "report_line", "task", "track"]

T = TypeVar("T")

#: Seconds until the first line of work that is not announced, and between lines.
_FIRST, _EVERY = 10.0, 60.0

# rich mangles the terminal when two bars are drawn at once: a bar inside another one stays silent, and so do its lines.
_drawing = threading.Lock()


class Task(Protocol):
    """A piece of work under way, as `task` yields it."""

    def advance(self, steps: float = 1) -> None:
        """Say that `steps` more of the total are done."""

    def update(
        self, *, completed: float | None = None, total: float | None = None, description: str | None = None
    ) -> None:
        """Set what is done, the total or the description; what is None stays as it is."""

    def report(self, text: str) -> None:
        """Write a line on something that happened, such as a validation; nothing on a terminal, which has the bar."""


class _Silent:
    def advance(self, steps: float = 1) -> None:
        pass

    def update(
        self, *, completed: float | None = None, total: float | None = None, description: str | None = None
    ) -> None:
        pass

    def report(self, text: str) -> None:
        pass


@contextmanager
def task(
    description: str,
    total: float | None = None,
    *,
    completed: float = 0,
    unit: str = "",
    transient: bool = True,
) -> Iterator[Task]:
    """Show the progress of the body while it runs.

    Parameters
    ----------
    description
        What is being done, a few words.
    total
        Number of steps; None shows that something moves, without an end.
    completed
        Steps that were done before, by an interrupted call.
    unit
        Name of a step, such as ``step`` or ``image``. Where it is given, the start is announced without a terminal.
    transient
        Remove the bar when the body ends.

    Yields
    ------
    Task
        Call its ``advance()`` after each step. It does nothing inside another task.
    """
    if sys.stderr is None or not _drawing.acquire(blocking=False):
        yield _Silent()
        return
    try:
        if sys.stderr.isatty():
            with _bar(description, total, completed, transient) as bar:
                yield bar
            return
        lines = _Lines(description, total, completed, unit)
        with lines.written():
            yield lines
    finally:
        _drawing.release()


def report_line(text: str, *, always: bool = False) -> None:
    """Write a line of progress where there is no terminal; on one too, if `always`."""
    if sys.stderr is not None and (always or not sys.stderr.isatty()):
        with suppress(OSError, ValueError):  # whoever read them is gone, which is no reason to end the work
            print(text, file=sys.stderr, flush=True)


def duration_text(seconds: float) -> str:
    """Write a duration as a person would: ``40 s``, ``25 min`` or ``3.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Lines:
    """Progress in lines: a thread writes one a minute, also while a single step takes longer."""

    def __init__(self, description: str, total: float | None, completed: float, unit: str) -> None:
        self.description, self.total, self.completed, self.unit = description, total, completed, unit
        # The estimate is of what was done since then: a resumed work was faster or slower before.
        self._before, self._began = completed, time.monotonic()
        self._ended = threading.Event()

    @contextmanager
    def written(self) -> Iterator[None]:
        """Announce the work if its steps have a name, and write a line a minute within the block."""
        if self.unit:
            self.report(self._start())
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        try:
            yield
        finally:
            self._ended.set()
            writer.join()

    def advance(self, steps: float = 1) -> None:
        self.completed += steps

    def update(
        self, *, completed: float | None = None, total: float | None = None, description: str | None = None
    ) -> None:
        if description is not None:
            self.description = description
        if total is not None:
            self.total = total
        if completed is not None:
            if completed < self.completed:  # another round, such as the next image
                self._before, self._began = completed, time.monotonic()
            self.completed = completed

    def report(self, text: str) -> None:
        report_line(f"{self.description}: {text}")

    def _write(self) -> None:
        seconds = _EVERY if self.unit else _FIRST
        while not self._ended.wait(seconds):
            self.report(self._progress())
            seconds = _EVERY

    def _start(self) -> str:
        if self.completed:
            return f"continuing at {self.unit} {self.completed:g}{'' if self.total is None else f' of {self.total:g}'}"
        return (
            "started"
            if self.total is None
            else f"started, {self.total:g} {self.unit}{'s' * (self.total != 1)}"
        )

    def _progress(self) -> str:
        elapsed, done = time.monotonic() - self._began, self.completed - self._before
        if self.total is None:
            return f"running for {duration_text(elapsed)}"
        unit = f" {self.unit}s" if self.unit else ""
        left = (
            f", about {duration_text(elapsed / done * (self.total - self.completed))} left"
            if done > 0
            else ""
        )
        return f"{self.completed:g} of {self.total:g}{unit}, running for {duration_text(elapsed)}{left}"


@contextmanager
def _bar(description: str, total: float | None, completed: float, transient: bool) -> Iterator[Task]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=transient) as progress:
        number = progress.add_task(description, total=total, completed=int(completed))

        class Bar:
            def advance(self, steps: float = 1) -> None:
                progress.advance(number, steps)

            def update(
                self,
                *,
                completed: float | None = None,
                total: float | None = None,
                description: str | None = None,
            ) -> None:
                progress.update(number, completed=completed, total=total, description=description)

            def report(self, text: str) -> None:
                pass

        yield Bar()


def track(
    iterable: Iterable[T], description: str, total: float | None = None, *, transient: bool = True
) -> Iterator[T]:
    """Iterate over `iterable` and show how far it is.

    Parameters
    ----------
    iterable
        What to iterate over.
    description
        What is being done, a few words.
    total
        Number of items; None takes ``len(iterable)`` where it has one.
    transient
        Remove the bar at the end.

    Examples
    --------
    >>> from repmode_cl.utils.progress import track
    >>> sum(track([1, 2, 3], "Adding"))
    6
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with task(description, total, transient=transient) as bar:
        for item in iterable:
            yield item
            bar.advance()
