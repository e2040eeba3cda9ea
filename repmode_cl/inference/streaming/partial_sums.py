"""Partial sums of a prediction from disk to disk: what one block leaves to the next, in files next to the output.

Each axis has two slots, used in turn, so that writing what a block leaves never touches what it continued: a process
may die at any instant, and the block is computed again from the same sums.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.streaming.blocks import Block, BlockPlan

__all__ = ["PartialSums", "partial_sums_nbytes"]


def _shapes(plan: BlockPlan) -> dict[str, tuple[int, int, int]]:
    """Return the sizes (z, y, x) of the slots: what is left to the next layer, rows, and part of a row."""
    _, height, width = plan.grid.shape
    z, y, x = plan.carried()
    depth, rows, _ = plan.largest()
    return {"layer": (z, height, width), "row": (depth, y, width), "part": (depth, rows, x)}


def partial_sums_nbytes(plan: BlockPlan) -> int:
    """Return the bytes on disk that the sums of one structure take."""
    return sum(2 * 4 * z * y * x for z, y, x in _shapes(plan).values())


class PartialSums:
    """The partial sums of one structure; a context manager.

    Parameters
    ----------
    folder
        Where its files are made.
    name
        Of the structure: part of the files' names.
    plan
        The blocks.
    new
        Make the files; else they must be there.
    """

    def __init__(self, folder: Path, name: str, plan: BlockPlan, *, new: bool = True) -> None:
        with ExitStack() as stack:
            self._slots = {
                axis: [
                    stack.enter_context(RawVolume(folder / f"{name}.{axis}-{number}", shape, new=new))
                    for number in (0, 1)
                ]
                for axis, shape in _shapes(plan).items()
                if 0 not in shape
            }
            # Only after all are open: should one be missing, the others are closed.
            self._stack = stack.pop_all()
        self._written: set[RawVolume] = set()

    def load(self, block: Block) -> NDArray[np.float32]:
        """Return the sums of earlier blocks in a block's voxels: float32 (z, y, x), zero where there are none."""
        z, y, x = block.z, block.y, block.x
        sums = np.zeros([span.stop - span.start for span in (z, y, x)], np.float32)
        # Of the blocks that reached a voxel the latest counts: the row's, else the layer's, else the one before.
        if z.continued:
            slot = self._slots["layer"][(block.layer - 1) % 2]
            box = (slice(0, z.continued), slice(y.previous_stop, y.stop), slice(x.previous_stop, x.stop))
            sums[: z.continued, y.continued :, x.continued :] = slot.read(box)
        if y.continued:
            slot = self._slots["row"][(block.row - 1) % 2]
            box = (slice(0, z.stop - z.start), slice(0, y.continued), slice(x.previous_stop, x.stop))
            sums[:, : y.continued, x.continued :] = slot.read(box)
        if x.continued:
            slot = self._slots["part"][(block.number - 1) % 2]
            box = (slice(0, z.stop - z.start), slice(0, y.stop - y.start), slice(0, x.continued))
            sums[:, :, : x.continued] = slot.read(box)
        return sums

    def store(self, block: Block, sums: NDArray[np.float32]) -> NDArray[np.float32]:
        """Store a block's sums, `load`'s and its windows', for later blocks, and return those that are complete."""
        z, y, x = block.z, block.y, block.x
        if x.carried:
            box = (slice(0, z.stop - z.start), slice(0, y.stop - y.start), slice(0, x.carried))
            self._write("part", block.number, box, sums[:, :, x.final - x.start :])
        sums = sums[:, :, : x.final - x.start]
        across = slice(x.start, x.final)
        if y.carried:
            box = (slice(0, z.stop - z.start), slice(0, y.carried), across)
            self._write("row", block.row, box, sums[:, y.final - y.start :])
        sums = sums[:, : y.final - y.start]
        if z.carried:
            box = (slice(0, z.carried), slice(y.start, y.final), across)
            self._write("layer", block.layer, box, sums[z.final - z.start :])
        return sums[: z.final - z.start]

    def _write(
        self, axis: str, number: int, box: tuple[slice, slice, slice], values: NDArray[np.float32]
    ) -> None:
        slot = self._slots[axis][number % 2]
        slot.write(box, values)
        self._written.add(slot)

    def sync(self) -> None:
        """Make all that was stored survive a loss of power."""
        for slot in self._written:
            slot.sync()
        self._written.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
