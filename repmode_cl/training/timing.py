"""Seconds that a computation takes, for estimates and measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["duration_text", "median_seconds", "synchronise"]


def synchronise(device: torch.device | None) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median seconds of `repeats` calls, after a first one that sets up what later ones reuse."""
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        began = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def duration_text(seconds: float) -> str:
    """Write a duration as a person would: ``40 s``, ``25 min`` or ``3.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
