"""Peak memory of training: on a GPU as torch's allocator counts it, on a CPU as the system reports it."""

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

#: Seconds between two readings of the process's memory. Each costs some microseconds.
INTERVAL = 0.02

#: Whether this process has trained on its CPU: a later training reuses unmeasured what that left to the allocator.
_trained_here = False


class PeakMemory:
    """Peak memory while this object is entered and not paused, above the memory when it was made.

    Parameters
    ----------
    device
        Device of the training.

    Attributes
    ----------
    measurable
        Whether it can be measured: on a GPU always, on a CPU only for the first training of a process.
    peak
        Bytes; None where they were not measured. May be set, to continue from the peak before an interruption.

    Notes
    -----
    On a CPU, resident memory is read every 20 ms. Before training continues, memory that validation left to the
    allocator is returned to the system, where the C library can do so (glibc); otherwise it would count as training's.
    On a GPU the allocator's peak is reset there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.measurable = device.type == "cuda" or not _trained_here
        self.peak: int | None = 0 if self.measurable else None
        self._trim()
        self._baseline = self._now()
        self._active = False
        self._lock = threading.Lock()  # no reading is under way when a pause starts
        self._stop_sampling = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start measuring."""
        global _trained_here
        if self.device.type != "cuda":
            _trained_here = True
        self._continue()
        if self.measurable and self.device.type != "cuda":
            self._stop_sampling.clear()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the last reading."""
        self._pause()
        if self._thread is not None:
            self._stop_sampling.set()
            self._thread.join()
            self._thread = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not measure work that is not training, such as validation; may be nested."""
        if not self._active:
            yield
            return
        self._pause()
        try:
            yield
        finally:
            self._continue()

    def reset(self) -> None:
        """Start again, for another experience."""
        self.peak = 0 if self.measurable else None

    def stop_measuring(self) -> None:
        """Stop measuring for good: a part of the training was not measured."""
        self.measurable, self.peak = False, None

    def update(self) -> int | None:
        """Take a reading, if entered and not paused, and return the peak so far."""
        with self._lock:
            if not self._active or self.peak is None:
                return self.peak
            if self.device.type == "cuda":
                grown = torch.cuda.max_memory_allocated(self.device) - self._baseline
            else:
                grown = self._now() - self._baseline
            self.peak = max(self.peak, grown)
            return self.peak

    def _pause(self) -> None:
        self.update()
        with self._lock:
            self._active = False

    def _continue(self) -> None:
        if not self.measurable:
            return
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._trim()
        with self._lock:
            self._active = True

    def _trim(self) -> None:
        """Make the C library return free memory to the system."""
        if self.measurable and self.device.type != "cuda" and sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
            if trim is not None:
                trim(0)

    def _now(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        return resident_memory()

    def _sample(self) -> None:
        while not self._stop_sampling.wait(INTERVAL):
            self.update()
