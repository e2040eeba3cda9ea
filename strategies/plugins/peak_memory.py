"""The most memory that a training takes: on a GPU as torch's allocator counts it, on a CPU as the system sees it."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch

from repmode_cl.utils.memory import resident_memory

__all__ = ["PeakMemory"]

#: Seconds between two looks at the process. Each costs some microseconds.
INTERVAL = 0.02

#: Whether this process has trained on its CPU: what that left to the allocator, a later training takes unseen.
_trained_here = False


class PeakMemory:
    """Bytes above what was taken when this object was made, the most of them while it is entered and not paused.

    Parameters
    ----------
    device
        Where the training computes.

    Attributes
    ----------
    measures
        Whether it can tell: on a GPU always, on a CPU for the first training of a process alone.
    highest
        Bytes; None where they were not measured. May be set, to go on with what was found before an interruption.

    Notes
    -----
    On a CPU it is resident memory that is looked at, every 20 ms. What validation leaves to the allocator is given
    back to the system before training goes on, where the C library can (glibc): else it would be counted as
    training's. On a GPU the allocator's peak is begun anew there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.measures = device.type == "cuda" or not _trained_here
        self.highest: int | None = 0 if self.measures else None
        self._trim()
        self._before = self._now()
        self._watching = False
        self._lock = threading.Lock()  # no look is under way when what is not training begins
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin to watch."""
        global _trained_here
        if self.device.type != "cuda":
            _trained_here = True
        self._go_on()
        if self.measures and self.device.type != "cuda":
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look a last time."""
        self._stop()
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away while something is done that is not training, such as validation; may be nested."""
        if not self._watching:
            yield
            return
        self._stop()
        try:
            yield
        finally:
            self._go_on()

    def restart(self) -> None:
        """Begin anew, for another experience."""
        self.highest = 0 if self.measures else None

    def give_up(self) -> None:
        """Measure no more: a part of the training went unseen."""
        self.measures, self.highest = False, None

    def look(self) -> int | None:
        """Look now, if entered and not paused, and return the most so far."""
        with self._lock:
            if not self._watching or self.highest is None:
                return self.highest
            if self.device.type == "cuda":
                grown = torch.cuda.max_memory_allocated(self.device) - self._before
            else:
                grown = self._now() - self._before
            self.highest = max(self.highest, grown)
            return self.highest

    def _stop(self) -> None:
        self.look()
        with self._lock:
            self._watching = False

    def _go_on(self) -> None:
        if not self.measures:
            return
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._trim()
        with self._lock:
            self._watching = True

    def _trim(self) -> None:
        """Let the C library give the system back what is free."""
        if self.measures and self.device.type != "cuda" and sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
            if trim is not None:
                trim(0)

    def _now(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        return resident_memory()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.look()
