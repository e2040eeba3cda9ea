"""Volumes as plain bytes in a file, read and written box by box.

Not memory maps: a mapped page that was touched counts as the process's memory, and the point of these files is
that a volume takes none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import RepmodeError

__all__ = ["RawVolume"]


class RawVolume(AbstractContextManager["RawVolume"]):
    """A (Z, Y, X) array in a file, from byte `offset` on, in C order and this machine's byte order.

    Parameters
    ----------
    path
        The file.
    shape
        Voxels (Z, Y, X).
    dtype
        Type of the voxels.
    offset
        Bytes before the array.
    new
        Make the file, or make it longer, if it does not hold the whole array; bytes never written are zero.

    Raises
    ------
    RepmodeError
        If the file is missing or too short, unless `new`.
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        dtype: np.dtype[Any] | type = np.float32,
        offset: int = 0,
        *,
        new: bool = True,
    ) -> None:
        self.path = Path(path)
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.dtype = np.dtype(dtype)
        self.offset = offset
        expected = offset + self.nbytes
        if new:
            # "a" makes the file where it is missing and cuts nothing off.
            with self._named_in_errors(), self.path.open("ab") as file:
                if file.tell() < expected:
                    file.truncate(expected)
        size = self.path.stat().st_size if self.path.is_file() else None
        if size is None or size < expected:
            raise self._damaged("is missing" if size is None else f"has {size} bytes of {expected}")
        self._file = self.path.open("r+b")

    def _damaged(self, problem: str) -> RepmodeError:
        return RepmodeError(
            f"{self.path}: {problem}, so that this prediction cannot continue; give --restart (restart=True) to start "
            "over"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.dtype.itemsize

    def read(self, box: tuple[slice, slice, slice]) -> NDArray[Any]:
        """Return a box (slices with both ends) as a new array.

        Raises
        ------
        RepmodeError
            If the file has become shorter.
        """
        result = np.empty([part.stop - part.start for part in box], self.dtype)
        for index, start in self._runs(box):
            view = memoryview(result[index]).cast("B") if result[index].size else memoryview(b"")
            self._file.seek(start)
            if self._file.readinto(view) != view.nbytes:
                raise self._damaged(f"ends at byte {self._file.tell()}, in the middle of its voxels")
        return result

    def write(self, box: tuple[slice, slice, slice], values: NDArray[Any]) -> None:
        """Write `values` (z, y, x) into a box (slices with both ends)."""
        values = np.ascontiguousarray(values, self.dtype)
        with self._named_in_errors():
            for index, start in self._runs(box):
                if values[index].size:
                    self._file.seek(start)
                    self._file.write(memoryview(values[index]).cast("B"))

    @contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        """Name the file in an error of the system, such as of a full disk, which does not."""
        try:
            yield
        except OSError as error:
            if error.filename is None:
                error.filename = str(self.path)
            raise

    def _runs(self, box: tuple[slice, slice, slice]) -> Iterator[tuple[tuple[int, ...], int]]:
        """Yield the parts of a box that lie in the file in one piece: index into the box, first byte."""
        z, y, x = box
        _, height, width = self.shape
        whole_rows = (x.start, x.stop) == (0, width)
        whole_planes = whole_rows and (y.start, y.stop) == (0, height)
        axes = [range(z.stop - z.start), range(y.stop - y.start)]
        axes = axes[:0] if whole_planes else axes[:1] if whole_rows else axes
        for index in product(*axes):
            plane = z.start + (index[0] if index else 0)
            row = y.start + (index[1] if len(index) > 1 else 0)
            yield index, self.offset + ((plane * height + row) * width + x.start) * self.dtype.itemsize

    def sync(self) -> None:
        """Make what was written survive a loss of power."""
        with self._named_in_errors():
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with self._named_in_errors():
            self._file.close()

    def __exit__(self, *error: object) -> None:
        self.close()
