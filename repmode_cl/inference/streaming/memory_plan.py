"""Memory of a prediction: how much it takes, and the batch and blocks that fit into a limit.

Counted is the process's resident memory: what torch and the networks hold already, the activations of a batch
of windows, the sums of a block, and what resampling takes at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from repmode_cl.errors import RepmodeError
from repmode_cl.inference.streaming.blocks import BlockPlan
from repmode_cl.inference.windows import WindowGrid
from repmode_cl.utils.memory import format_bytes

__all__ = ["MemoryPlan", "plan_memory", "MemoryNeeds", "activation_bytes", "tile_bytes"]

#: Copies of one full-resolution level, of `width` channels each, that a batch holds at most: the decoder's last
#: concatenation is two, a convolution's other layout of it two more, and its result one. Measured for widths of 4 to
#: 32 and batches of 1 to 4: 3.5 to 4.6, in addition to the fixed part.
_LEVEL_COPIES = 5

#: Work space of convolutions in addition to their activations, and what an allocator loses.
_WORKSPACE_BYTES = 64 << 20

#: Arrays of a plane or strip while statistics are computed or a part is z-scored, and small things.
_OTHER_BYTES = 128 << 20

#: Windows in a block, if rows are short: the most that is computed again after an interruption.
_BLOCK_WINDOWS = 8

#: Most bytes for resampling at once; more makes nothing faster.
_MAX_TILE_BYTES = 256 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """Batch and blocks that fit into the memory.

    Attributes
    ----------
    batch
        Windows computed at once: the model's, or fewer.
    rows, columns
        Windows in a block, as in `BlockPlan`.
    """

    batch: int
    rows: int
    columns: int

    def blocks(self, grid: WindowGrid) -> BlockPlan:
        """Return the blocks of a grid."""
        return BlockPlan(grid, self.rows, self.columns)


def activation_bytes(width: int, depth: int, window: Sequence[int], batch: int) -> int:
    """Return the bytes that a fused U-Net needs for a batch of windows on the CPU, its input and output included.

    Parameters
    ----------
    width, depth
        Channels of the first level, and levels, of the network.
    window
        Voxels (z, y, x) of a window; padded to multiples of 2^depth, as the network does.
    batch
        Windows.
    """
    multiple = 1 << depth
    voxels = math.prod(-(-size // multiple) * multiple for size in window)
    return _WORKSPACE_BYTES + 4 * batch * voxels * (_LEVEL_COPIES * width + 4)


@dataclass(frozen=True)
class MemoryNeeds:
    """Everything that decides how much memory a prediction takes.

    Attributes
    ----------
    width, depth
        Channels of the first level, and levels, of the networks.
    structures
        Number of structures predicted at once.
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

    def total(self, blocks: BlockPlan, batch: int) -> int:
        """Return the most bytes that the process holds."""
        # Cut windows, predictions of each structure, and as many again: made ahead of the network, blended behind it.
        windows = batch * math.prod(blocks.grid.size) * 4 * (2 + 2 * self.structures)
        if self.on_cpu:
            windows += activation_bytes(self.width, self.depth, blocks.grid.size, batch)
        # A block's input, its z-score, the sums of each structure, and what dividing them by weights takes.
        block = math.prod(blocks.largest()) * (self.itemsize + 4 + 4 * self.structures + 12)
        return self.resident + _OTHER_BYTES + windows + block

    def check(self, memory: int, blocks: BlockPlan, batch: int) -> None:
        """Refuse blocks and a batch that do not fit within `memory` bytes.

        Raises
        ------
        RepmodeError
            If they do not.
        """
        need = self.total(blocks, batch)
        if need > memory:
            size = " x ".join(str(extent) for extent in blocks.grid.size)
            several = self.structures > 1
            raise RepmodeError(
                f"a memory of {format_bytes(memory)} is too little: windows of {size} voxels, {batch} at a time, "
                f"need about {format_bytes(need)}, of which {format_bytes(self.resident)} are the libraries and "
                f"{self.structures} network{'s' if several else ''}; give more memory"
                f"{', name fewer structures' if several else ''} or take a smaller window"
            )


def plan_memory(memory: int, grid: WindowGrid, batch: int, needs: MemoryNeeds) -> MemoryPlan:
    """Choose batch and blocks so that a prediction stays within `memory` bytes.

    The batch decides last bits: it is lowered only if it does not fit with the smallest blocks.

    Raises
    ------
    RepmodeError
        If not even one window at a time fits.
    """
    smallest = BlockPlan(grid, 1, 1)
    while batch > 1 and needs.total(smallest, batch) > memory:
        batch -= 1
    needs.check(memory, smallest, batch)
    columns = len(grid.starts[2])
    rows = min(-(-_BLOCK_WINDOWS // columns), len(grid.starts[1]))
    while rows > 1 and needs.total(BlockPlan(grid, rows), batch) > memory:
        rows -= 1
    while columns > 1 and rows == 1 and needs.total(BlockPlan(grid, 1, columns), batch) > memory:
        columns = -(-columns // 2)
    return MemoryPlan(batch, rows, columns)


def tile_bytes(memory: int, resident: int) -> int:
    """Return the bytes that resampling may take at once, in addition to `resident` bytes."""
    return max(16 << 20, min(_MAX_TILE_BYTES, memory - resident - _OTHER_BYTES))
