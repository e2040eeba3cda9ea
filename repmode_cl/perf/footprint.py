"""Memory of a computation: of the process as the system sees it, and of tensors as torch counts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["peak_resident", "peak_tensor_bytes", "quiet_profiler", "reset_peak", "resident"]

_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Make the peak start from what is resident now, where the system can; elsewhere it counts from the start."""
    try:
        # Linux: 5 resets the high-water mark of the resident set (man 5 proc).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def resident() -> int | None:
    """Return the bytes resident now, or None where the system does not tell."""
    return _status("VmRSS")


def peak_resident() -> int | None:
    """Return the most bytes that were resident since the last `reset_peak`, or None where the system does not tell."""
    found = _status("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024


def _status(key: str) -> int | None:
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def quiet_profiler() -> None:
    """Keep torch's profiler from writing its own start and end on stderr; to be called before its first use."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak_tensor_bytes(compute: Callable[[], object]) -> int | None:
    """Return by how much the memory of CPU tensors grows at most while `compute` runs.

    The same on every machine with the same torch, unlike the resident memory of a process.

    Returns
    -------
    int or None
        Bytes; ``None`` if this torch's profiler records no allocations.
    """
    quiet_profiler()
    # The profiler beneath torch.profiler, which would spend seconds on summaries that nobody reads here.
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        compute()
    results = getattr(profiler, "kineto_results", None)
    if results is None:
        return None
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    if not changes:
        return None
    now = peak = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak
