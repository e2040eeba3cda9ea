"""The most memory that a training takes: on a GPU as torch's allocator counts it, on a CPU as the system sees it."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil
import torch

__all__ = ["PeakMemory"]

#: Seconds between two looks at the process. Each costs some microseconds.
INTERVAL = 0.02


class PeakMemory:
    """Bytes above what was taken when this object was made, the most of them while it is entered.

    Parameters
    ----------
    device
        Where the training computes.

    Attributes
    ----------
    highest
        Bytes; may be set, to go on with what was found before an interruption or to begin anew.

    Notes
    -----
    On a CPU it is resident memory that is looked at, every 20 ms. What an earlier training of the same process gave
    back to its allocator and not to the system is taken again unseen: figures of trainings in processes of their own
    can be compared, those of several in one process are too small.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.highest = 0
        self._process = psutil.Process()
        self._before = self._now()
        self._entered = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._entered = True
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look a last time."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
        self.look()
        self._entered = False

    def look(self) -> int:
        """Look now, if entered, and return the most so far."""
        if not self._entered:
            return self.highest
        if self.device.type == "cuda":
            grown = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            grown = self._now() - self._before
        self.highest = max(self.highest, grown)
        return self.highest

    def _now(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        return int(self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.look()
