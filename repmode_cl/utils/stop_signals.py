"""SIGTERM and Ctrl-C: the process ends at once, or, while it trains, at the next step, with a checkpoint.

SLURM and ``timeout`` send SIGTERM some seconds before they kill. A training that is `deferred` looks after each step
whether a signal came (`requested`), writes a checkpoint and raises `Stopped`. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["Stopped", "check_stop", "deferred", "handled", "handle_stop_signals", "requested"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Line that is printed when a training will stop after its present step.
_NOTICE = "\nstopping after this step, with a checkpoint; a second signal stops at once\n"


class Stopped(KeyboardInterrupt):
    """End of the process by a signal.

    Parameters
    ----------
    number
        The signal.
    saved
        What a training saved before it ended, for the message; empty outside a training.
    """

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(saved)
        self.number = number
        self.saved = saved


class _State:
    """State of this process; signals are handled by its main thread."""

    handled = False
    deferring = False
    requested: int | None = None


def handled() -> bool:
    """Return whether this process handles the signals; a library leaves them to its caller."""
    return _State.handled


def requested() -> int | None:
    """Return the signal that asked a `deferred` work to stop; None if none did."""
    return _State.requested


def check_stop() -> None:
    """Raise `Stopped` if a signal asked to stop."""
    if _State.requested is not None:
        raise Stopped(_State.requested)


@contextmanager
def handle_stop_signals(*, child: bool = False) -> Iterator[None]:
    """Handle SIGTERM and Ctrl-C within the block; in a thread other than the main one, do nothing.

    Parameters
    ----------
    child
        Whether the parent decides: Ctrl-C, which reaches both, is ignored, and so is a second signal.
    """
    if threading.current_thread() is not threading.main_thread() or _State.handled:
        yield
        return
    after_first = signal.SIG_IGN if child else signal.SIG_DFL

    def handle(number: int, frame: FrameType | None) -> None:
        for one in _SIGNALS:
            if signal.getsignal(one) is not signal.SIG_IGN:
                signal.signal(one, after_first)
        if not _State.deferring:
            raise Stopped(number)
        _State.requested = number
        if not child:
            with suppress(OSError):
                os.write(2, _NOTICE.encode())  # a signal may have interrupted a write of sys.stderr

    before = {one: signal.getsignal(one) for one in _SIGNALS}
    _State.handled = True
    for one, handler in before.items():
        if child and one == signal.SIGINT:
            signal.signal(one, signal.SIG_IGN)
        elif handler is not signal.SIG_IGN:  # as a shell has it in what it runs in the background
            signal.signal(one, handle)
    try:
        yield
    finally:
        _State.handled, _State.requested = False, None
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait within the block until the work asks for it; at the latest, the block's end raises it.

    Raises
    ------
    Stopped
        If a signal came, and the work ended without asking.
    """
    _State.deferring = True
    try:
        yield
    finally:
        _State.deferring = False
    check_stop()
