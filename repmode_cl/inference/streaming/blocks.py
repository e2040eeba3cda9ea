"""Blocks in which a volume is predicted from disk to disk, and the sums that each leaves to later ones.

Windows overlap, so a voxel's sum is complete only when the last window over it is done. A block is a stretch of
windows in their order: several rows (fixed z, neighbouring y, all x), one row, or part of a row where the volume
is very wide. Of a block's voxels some are complete when it ends; the sums of the others go to the next part of
the row, to the next rows or to the next layer of windows. Windows at the far end of an axis are shifted back and
more than two may meet in a voxel; a sum that is carried on holds all that came before, so that nothing depends on how
many they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repmode_cl.inference.windows import WindowGrid

__all__ = ["Block", "BlockPlan", "Span"]


@dataclass(frozen=True)
class Span:
    """The voxels of one axis that a block covers.

    Attributes
    ----------
    start, stop
        First voxel, and the one after the last.
    previous_stop
        Where the span before stops (not included): up to here it left sums; `start` of the first span.
    final
        Up to here (not included) no later window adds anything on this axis; from here on the next span begins.
    """

    start: int
    stop: int
    previous_stop: int
    final: int

    @property
    def continued(self) -> int:
        """Voxels whose sums the span before left."""
        return self.previous_stop - self.start

    @property
    def carried(self) -> int:
        """Voxels whose sums the next span continues."""
        return self.stop - self.final


@dataclass(frozen=True)
class Block:
    """A stretch of windows.

    Attributes
    ----------
    number
        Its place among all blocks.
    windows
        Numbers of its windows.
    z, y, x
        The voxels that they cover.
    layer, row
        Its place among the spans of z, and among all stretches of rows, those of earlier layers included.
    """

    number: int
    windows: range
    z: Span
    y: Span
    x: Span
    layer: int
    row: int

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The voxels that the block's windows cover."""
        return (
            slice(self.z.start, self.z.stop),
            slice(self.y.start, self.y.stop),
            slice(self.x.start, self.x.stop),
        )

    @property
    def final(self) -> tuple[slice, slice, slice]:
        """The voxels that are complete when the block is done; those of all blocks make up the volume."""
        return (
            slice(self.z.start, self.z.final),
            slice(self.y.start, self.y.final),
            slice(self.x.start, self.x.final),
        )


class BlockPlan:
    """All blocks of a grid of windows, in order.

    Parameters
    ----------
    grid
        The windows.
    rows
        Rows of windows in a block; 1 where `columns` cuts rows.
    columns
        Windows of a row in a block; None takes whole rows.
    """

    def __init__(self, grid: WindowGrid, rows: int = 1, columns: int | None = None) -> None:
        width = len(grid.starts[2])
        columns = width if columns is None else min(columns, width)
        if rows < 1 or columns < 1 or (rows > 1 and columns < width):
            raise ValueError(
                f"a block is rows or part of one row, not {columns} of {width} windows of {rows} rows"
            )
        self.grid, self.rows, self.columns = grid, rows, columns
        self._spans = tuple(
            _spans(starts, size, step)
            for starts, size, step in zip(grid.starts, grid.size, (1, rows, columns), strict=True)
        )

    def __len__(self) -> int:
        z, y, x = self._spans
        return len(z) * len(y) * len(x)

    def __getitem__(self, number: int) -> Block:
        if not 0 <= number < len(self):
            raise IndexError(f"block {number} of {len(self)}")
        z, y, x = self._spans
        row, part = divmod(number, len(x))
        layer, rows = divmod(row, len(y))
        _, height, width = (len(starts) for starts in self.grid.starts)
        first = (layer * height + rows * self.rows) * width + part * self.columns
        count = min(self.rows, height - rows * self.rows) * min(self.columns, width - part * self.columns)
        return Block(number, range(first, first + count), z[layer], y[rows], x[part], layer, row)

    def block_of(self, window: int) -> Block:
        """Return the block that holds a window."""
        _, height, width = (len(starts) for starts in self.grid.starts)
        row, k = divmod(window, width)
        layer, j = divmod(row, height)
        _, y, x = self._spans
        return self[(layer * len(y) + j // self.rows) * len(x) + k // self.columns]

    def carried(self) -> tuple[int, int, int]:
        """Return the most voxels (z, y, x) that a span leaves to the next."""
        z, y, x = (max(span.carried for span in spans) for spans in self._spans)
        return z, y, x

    def largest(self) -> tuple[int, int, int]:
        """Return the most voxels (z, y, x) that a block covers on each axis."""
        z, y, x = (max(span.stop - span.start for span in spans) for spans in self._spans)
        return z, y, x


def _spans(starts: Sequence[int], size: int, step: int) -> list[Span]:
    """Return the spans of an axis, `step` windows of `size` voxels in each."""
    spans: list[Span] = []
    for first in range(0, len(starts), step):
        stop = starts[min(first + step, len(starts)) - 1] + size
        previous_stop = spans[-1].stop if spans else starts[first]
        final = starts[first + step] if first + step < len(starts) else stop
        spans.append(Span(starts[first], stop, previous_stop, final))
    return spans
