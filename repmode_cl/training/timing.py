"""Seconds that a computation takes, for estimates and measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["median_seconds", "synchronise"]


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
