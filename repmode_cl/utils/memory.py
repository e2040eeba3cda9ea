"""Memory: of the process and the machine as the system sees them, and of tensors as torch counts them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

from repmode_cl.errors import RepmodeError

__all__ = [
    "available_memory",
    "format_bytes",
    "is_out_of_memory",
    "memory_errors",
    "parameter_bytes",
    "parse_memory",
    "peak_memory",
    "peak_tensor_bytes",
    "quiet_profiler",
    "reset_peak",
    "resident_memory",
    "tensor_bytes",
    "total_memory",
]

_UNITS = {
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def resident_memory() -> int:
    """Return the bytes of this process that are in memory now."""
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> None:
    """Make `peak_memory` start from what is resident now. Only Linux can: elsewhere it counts from the start."""
    with suppress(OSError):
        # 5 resets the high-water mark of the resident set (man 5 proc).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """Return the most bytes of this process that were in memory at once, since its start or the last `reset_peak`."""
    # psutil has the peak of Windows only.
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    # On Linux, ru_maxrss cannot be reset and starts with the peak of the program that started this one.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    # Kilobytes on Linux and the BSDs, bytes on macOS.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def available_memory() -> int:
    """Return the bytes that the system could give to this process besides what it holds."""
    available = int(psutil.virtual_memory().available)
    # psutil does not know the limit of a container ("max" where there is none).
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        # Files that the kernel keeps in memory count as used there, and are given back when memory is asked for.
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
        available = min(available, max(0, limit - used))
    return available


def total_memory() -> int:
    """Return the bytes of memory that the machine has."""
    return int(psutil.virtual_memory().total)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory could not be had, or that no machine has so much."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # What torch's allocator says on Linux and macOS, on Windows, and of a size beyond 64 bits.
    texts = ("can't allocate memory", "not enough memory", "calculation overflowed")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


@contextmanager
def memory_errors(asked: str) -> Iterator[None]:
    """Raise a `RepmodeError` that says what was asked for, where it needs more memory than can be had."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first, _, _ = str(error).partition("\n")
        raise RepmodeError(
            f"there is too little memory for {asked}; the machine has {format_bytes(available_memory())} left: set "
            f"less ({first or type(error).__name__})"
        ) from error


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


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes that the values of tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def parameter_bytes(network: torch.nn.Module, names: Sequence[str]) -> tuple[int, int]:
    """Return scalars and bytes of the named state-dict entries.

    Counters of batch norms do not count, and a tensor that has several names counts once.
    """
    state = network.state_dict()
    floating = (state[name] for name in names if state[name].is_floating_point())
    chosen = {(tensor.data_ptr(), tensor.numel()): tensor for tensor in floating}.values()
    return sum(t.numel() for t in chosen), tensor_bytes(chosen)


def parse_memory(text: str | int) -> int:
    """Read ``2GB``, ``500MB`` or ``1.5GiB`` as bytes; a whole number is bytes already.

    Raises
    ------
    RepmodeError
        If it is nothing of that kind.
    """
    if isinstance(text, int):
        amount = float(text)
    else:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
        if found is None or found[2] not in _UNITS:
            raise RepmodeError(f"memory {text!r}: give a number with a unit, such as 2GB, 500MB or 1.5GiB")
        amount = float(found[1]) * _UNITS[found[2]]
    if not 1 <= amount < 1 << 60:
        raise RepmodeError(f"memory {text!r}: an amount that a computer may have is needed, such as 2GB")
    return int(amount)


def format_bytes(count: float) -> str:
    """Write a number of bytes for people: ``1.5 GB``."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 100 or unit == "kB" else f"{value:.1f} {unit}"
    return f"{count:.0f} B"
