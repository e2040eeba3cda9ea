"""How much memory a prediction takes, and how to keep it within what was asked for.

Counted is the process's resident memory: what torch and the networks hold already, the activations of a batch
of windows, the sums of a block, and what resampling takes at once.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.errors import RepmodeError
from repmode_cl.inference.blocks import BlockPlan
from repmode_cl.inference.windows import WindowGrid

__all__ = [
    "MemoryPlan",
    "Needs",
    "activation_bytes",
    "available_memory",
    "format_bytes",
    "parse_memory",
    "peak_memory",
    "plan_memory",
    "resident_memory",
    "tile_bytes",
]

_UNITS = {
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip

#: What a process holds where the system cannot be asked: torch with CUDA, roughly.
_UNKNOWN_RESIDENT = 800_000_000

#: Copies of one full-resolution level, of `width` channels each, that a batch holds at the most: the decoder's last
#: concatenation is two, a convolution's other layout of it two more, and its result one. Measured for widths of 4 to
#: 32 and batches of 1 to 4: 3.5 to 4.6, beside the fixed part.
_LEVELS = 5

#: Work space that convolutions keep beside their activations, and what an allocator loses.
_FIXED = 64 << 20

#: Arrays of a plane or strip while statistics are taken or a part is z-scored, and sundries.
_SUNDRIES = 128 << 20

#: Windows in a block, if rows are short: what is computed again after an interruption at the most.
_LEAST_WINDOWS = 8

#: What resampling may take at once; more makes nothing faster.
_TILE = 256 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """What fits.

    Attributes
    ----------
    batch
        Windows computed at once: as asked for, or fewer.
    rows, columns
        Of windows in a block, as of `BlockPlan`.
    """

    batch: int
    rows: int
    columns: int

    def blocks(self, grid: WindowGrid) -> BlockPlan:
        """Return the blocks of a grid."""
        return BlockPlan(grid, self.rows, self.columns)


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


def resident_memory() -> int:
    """Return the bytes of this process that are in memory now; a guess where the system does not say."""
    return _status("VmRSS") or peak_memory()


def peak_memory() -> int:
    """Return the most bytes of this process that were in memory at once; a guess where the system does not say."""
    found = _status("VmHWM")
    if found is None and sys.platform != "win32":
        import resource

        # Kilobytes on Linux and the BSDs, bytes on macOS.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = most if sys.platform == "darwin" else most * 1024
    return found or _UNKNOWN_RESIDENT


def _status(key: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0]) * 1024
    return None


def available_memory() -> int:
    """Return the bytes that the system could give to this process besides what it holds."""
    found: list[int] = []
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # a container's limit, where there is one ("max": none)
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        # Files that the kernel keeps in memory count as used there, and are given back when memory is asked for.
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
        found.append(max(0, limit - used))
    if not found:
        with suppress(AttributeError, OSError, ValueError):
            # How much of it is free is not said: assume a half.
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return min(found) if found else 4 * 10**9


def activation_bytes(width: int, depth: int, window: Sequence[int], batch: int) -> int:
    """Return what a fused U-Net needs for a batch of windows on the CPU, its input and output included.

    Parameters
    ----------
    width, depth
        Of the network.
    window
        Voxels (z, y, x) of a window; padded to multiples of 2^depth, as the network does.
    batch
        Windows.
    """
    multiple = 1 << depth
    voxels = math.prod(-(-size // multiple) * multiple for size in window)
    return _FIXED + 4 * batch * voxels * (_LEVELS * width + 4)


@dataclass(frozen=True)
class Needs:
    """What decides how much memory a prediction takes.

    Attributes
    ----------
    width, depth
        Of the networks.
    structures
        How many are predicted at once.
    itemsize
        Bytes of a voxel of the image.
    on_cpu
        Whether activations take this memory, or a GPU's.
    resident
        Bytes that the process holds already, networks included.
    """

    width: int
    depth: int
    structures: int
    itemsize: int
    on_cpu: bool
    resident: int

    def of(self, blocks: BlockPlan, batch: int) -> int:
        """Return the bytes that the process holds at the most."""
        # Cut windows, predictions of each structure, and as many again on their way.
        windows = batch * math.prod(blocks.grid.size) * 4 * (2 + 2 * self.structures)
        if self.on_cpu:
            windows += activation_bytes(self.width, self.depth, blocks.grid.size, batch)
        # A block's input, its z-score, the sums of each structure, and what dividing them by weights takes.
        block = math.prod(blocks.largest()) * (self.itemsize + 4 + 4 * self.structures + 12)
        return self.resident + _SUNDRIES + windows + block

    def check(self, memory: int, blocks: BlockPlan, batch: int) -> None:
        """Refuse what does not fit within `memory` bytes.

        Raises
        ------
        RepmodeError
            If it does not.
        """
        need = self.of(blocks, batch)
        if need > memory:
            size = " x ".join(str(extent) for extent in blocks.grid.size)
            several = self.structures > 1
            raise RepmodeError(
                f"a memory of {format_bytes(memory)} is too little: windows of {size} voxels, {batch} at a time, "
                f"need about {format_bytes(need)}, of which {format_bytes(self.resident)} are the libraries and "
                f"{self.structures} network{'s' if several else ''}; give more memory"
                f"{', name fewer structures' if several else ''} or take a smaller window"
            )


def plan_memory(memory: int, grid: WindowGrid, batch: int, needs: Needs) -> MemoryPlan:
    """Choose batch and blocks so that a prediction stays within `memory` bytes.

    The batch decides last bits: it is lowered only if it does not fit with the smallest of blocks.

    Raises
    ------
    RepmodeError
        If not even one window at a time fits.
    """
    smallest = BlockPlan(grid, 1, 1)
    while batch > 1 and needs.of(smallest, batch) > memory:
        batch -= 1
    needs.check(memory, smallest, batch)
    columns = len(grid.starts[2])
    rows = min(-(-_LEAST_WINDOWS // columns), len(grid.starts[1]))
    while rows > 1 and needs.of(BlockPlan(grid, rows), batch) > memory:
        rows -= 1
    while columns > 1 and rows == 1 and needs.of(BlockPlan(grid, 1, columns), batch) > memory:
        columns = -(-columns // 2)
    return MemoryPlan(batch, rows, columns)


def tile_bytes(memory: int, resident: int) -> int:
    """Return what resampling may take at once beside `resident` bytes."""
    return max(16 << 20, min(_TILE, memory - resident - _SUNDRIES))
