"""Sums under way of a prediction from disk to disk: what one block leaves to the next, in files beside the output.

Each axis has two slots, used in turn, so that writing what a block leaves never touches what it took up: a process
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

__all__ = ["Sums", "sums_nbytes"]


def _shapes(plan: BlockPlan) -> dict[str, tuple[int, int, int]]:
    """Return the sizes (z, y, x) of the slots: what goes on to the next layer, rows, and part of a row."""
    _, height, width = plan.grid.shape
    z, y, x = plan.carried()
    most = plan.largest()
    return {"layer": (z, height, width), "row": (most[0], y, width), "part": (most[0], most[1], x)}


def sums_nbytes(plan: BlockPlan) -> int:
    """Return the bytes on disk that the sums of one structure take."""
    return sum(2 * 4 * z * y * x for z, y, x in _shapes(plan).values())


class Sums:
    """The sums of one structure; a context manager.

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
            # Not before all are open: should one be missing, the others are closed.
            self._stack = stack.pop_all()
        self._written: set[RawVolume] = set()

    def load(self, block: Block) -> NDArray[np.float32]:
        """Return what earlier blocks left in a block's voxels: float32 (z, y, x), zero where nothing."""
        z, y, x = block.z, block.y, block.x
        found = np.zeros([span.stop - span.start for span in (z, y, x)], np.float32)
        # Of the blocks that reached a voxel the latest counts: the row's, else the layer's, else the one before.
        if z.known > z.start:
            slot = self._slots["layer"][(block.layer - 1) % 2]
            part = slot.read((slice(0, z.known - z.start), slice(y.known, y.stop), slice(x.known, x.stop)))
            found[: z.known - z.start, y.known - y.start :, x.known - x.start :] = part
        if y.known > y.start:
            slot = self._slots["row"][(block.row - 1) % 2]
            whole = slice(0, z.stop - z.start)
            part = slot.read((whole, slice(0, y.known - y.start), slice(x.known, x.stop)))
            found[:, : y.known - y.start, x.known - x.start :] = part
        if x.known > x.start:
            slot = self._slots["part"][(block.number - 1) % 2]
            box = (slice(0, z.stop - z.start), slice(0, y.stop - y.start), slice(0, x.known - x.start))
            found[:, :, : x.known - x.start] = slot.read(box)
        return found

    def store(self, block: Block, sums: NDArray[np.float32]) -> NDArray[np.float32]:
        """Leave to later blocks what a block's windows made of `load`'s, and return the sums that are complete."""
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
        """Have all that was stored survive a loss of power."""
        for slot in self._written:
            slot.sync()
        self._written.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
