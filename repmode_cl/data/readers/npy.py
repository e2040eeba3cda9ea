"""NumPy's ``.npy`` files as images: raw voxels behind a short header, read box by box and never unpickled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.data.readers.image_reader import ImageReader, SceneInfo
from repmode_cl.errors import ImageError

__all__ = ["NpyReader"]

# Version 3.0 differs only in the names of fields, which plain numbers do not have.
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpyReader(ImageReader):
    """A ``.npy`` file with axes ZYX or CZYX as an `ImageReader`; it states no voxel size and names no channel.

    Parameters
    ----------
    path
        The file. Leading axes of length 1 are dropped.
    scene, t
        None or 0: there is one.

    Raises
    ------
    ImageError
        If the header is damaged, claims more than the file holds, or describes no volume of intensities.

    Notes
    -----
    The file is mapped again for each `read`, so that earlier reads do not stay in memory; nothing is kept open.
    """

    def __init__(self, path: Path, *, scene: int | str | None = None, t: int | None = None) -> None:
        sizes, self._fortran, self._stored, self._offset = _read_header(path)
        if self._stored.kind not in "buif":
            raise ImageError(f"{path}: voxels of type {self._stored} are no intensities (integers or floats)")
        shape = sizes
        while len(sizes) > 4 and sizes[0] == 1:
            sizes = sizes[1:]
        if len(sizes) not in (3, 4):
            raise ImageError(
                f"{path}: an array of shape {shape}; readable are three axes (z, y, x) or four (channel, z, y, x)"
            )
        if min(sizes) < 1:
            raise ImageError(f"{path}: the array is empty: its shape is {shape}")
        claimed_bytes, stored_bytes = (
            math.prod(sizes) * self._stored.itemsize,
            path.stat().st_size - self._offset,
        )
        if claimed_bytes > stored_bytes:
            raise ImageError(
                f"{path}: truncated: its header claims {claimed_bytes} bytes of voxels, the file has "
                f"{max(stored_bytes, 0)}; copy it again"
            )
        self._sizes = sizes if len(sizes) == 4 else (1, *sizes)
        super().__init__(path, scene=scene, t=t)

    def _describe(self, scene: int) -> SceneInfo:
        channels, z, y, x = self._sizes
        names = tuple(f"C{number}" for number in range(channels))
        return SceneInfo((z, y, x), self._stored.newbyteorder("="), names, random_access=True)

    def _load(self, scene: int, t: int, channel: int, box: Box) -> NDArray[Any]:
        try:
            mapped = np.memmap(
                self._path,
                self._stored,
                mode="r",
                offset=self._offset,
                shape=self._sizes,
                order="F" if self._fortran else "C",
            )
        except (OSError, ValueError) as error:
            raise ImageError(
                f"{self._path}: cannot be read, damaged or truncated since it was opened ({error})"
            ) from error
        return np.array(mapped[channel][box], self.dtype, order="C")


def _read_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether in Fortran's order, type, and the byte at which voxels begin."""
    try:
        with path.open("rb") as handle:
            version = np.lib.format.read_magic(handle)
            read = _HEADERS.get(version)
            if read is not None:
                shape, fortran, dtype = read(handle)
                return tuple(int(size) for size in shape), bool(fortran), np.dtype(dtype), handle.tell()
    except Exception as error:  # NumPy raises whatever a damaged header leads it to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{path}: its .npy header is damaged ({reason})") from error
    raise ImageError(f"{path}: .npy version {version[0]}.{version[1]} holds no plain numbers")
