"""Progress bars for everything slow: on stderr, and silent without a terminal.

Results go to stdout and progress to stderr, so that a command's output can be piped. Without a terminal (a
log file, a batch queue, a test) nothing is drawn. Only this module uses rich.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

__all__ = ["Task", "task", "track"]

T = TypeVar("T")

# rich garbles the terminal when two bars are drawn at once: a bar inside another one stays silent.
_drawing = threading.Lock()


class Task(Protocol):
    """A running piece of work, as `task` yields it."""

    def advance(self, steps: float = 1) -> None:
        """Add `steps` to the completed part of the total."""

    def update(
        self, *, completed: float | None = None, total: float | None = None, description: str | None = None
    ) -> None:
        """Set the completed part, the total or the description; None leaves a value as it is."""


class _Silent:
    def advance(self, steps: float = 1) -> None:
        pass

    def update(
        self, *, completed: float | None = None, total: float | None = None, description: str | None = None
    ) -> None:
        pass


@contextmanager
def task(description: str, total: float | None = None, *, transient: bool = True) -> Iterator[Task]:
    """Show a bar while the body runs.

    Parameters
    ----------
    description
        Name of the work, in a few words.
    total
        Number of steps; None shows activity without an end.
    transient
        Remove the bar when the body ends.

    Yields
    ------
    Task
        Call its ``advance()`` after each step. It does nothing where stderr is no terminal, and for a bar
        inside another one.
    """
    if sys.stderr is None or not sys.stderr.isatty() or not _drawing.acquire(blocking=False):
        yield _Silent()
        return
    try:
        with _bar(description, total, transient) as bar:
            yield bar
    finally:
        _drawing.release()


@contextmanager
def _bar(description: str, total: float | None, transient: bool) -> Iterator[Task]:
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
        number = progress.add_task(description, total=total)

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

        yield Bar()


def track(
    iterable: Iterable[T], description: str, total: float | None = None, *, transient: bool = True
) -> Iterator[T]:
    """Iterate over `iterable` with a progress bar.

    Parameters
    ----------
    iterable
        The items.
    description
        Name of the work, in a few words.
    total
        Number of items; None uses ``len(iterable)`` if it has a length.
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
