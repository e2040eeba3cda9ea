"""NumPy's ``.npy`` files as images: raw voxels behind a short header, read box by box and never unpickled."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.readers.protocol import Region, find_channel
from repmode_cl.errors import ImageError

__all__ = ["NpyReader"]

# Version 3.0 differs only in the names of fields, which plain numbers do not have.
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpyReader:
    """A ``.npy`` file with axes ZYX or CZYX as an `ImageReader`; it states no voxel size and names no channel.

    Parameters
    ----------
    path
        The file.
    scene
        None or 0: there is one.

    Raises
    ------
    ImageError
        If the header is damaged, claims more than the file holds, or describes no volume of intensities.

    Notes
    -----
    The file is mapped anew for each `read`, so that what was read before does not stay in memory; nothing
    is kept open.
    """

    def __init__(self, path: Path, scene: int | None = None) -> None:
        self._path = path
        self._check_scene(scene)
        sizes, self._fortran, self._stored, self._offset = _read_header(path)
        if self._stored.kind not in "buif":
            raise ImageError(f"{path}: voxels of type {self._stored} are no intensities (integers or floats)")
        if len(sizes) not in (3, 4):
            raise ImageError(
                f"{path}: an array of shape {sizes}; readable are three axes (z, y, x) or four (channel, z, y, x)"
            )
        if min(sizes) < 1:
            raise ImageError(f"{path}: the array is empty: its shape is {sizes}")
        claimed, held = math.prod(sizes) * self._stored.itemsize, path.stat().st_size - self._offset
        if claimed > held:
            raise ImageError(
                f"{path}: truncated: its header claims {claimed} bytes of voxels, the file has {max(held, 0)}; "
                "copy it again"
            )
        self._sizes = sizes

    def _check_scene(self, scene: int | None) -> None:
        if scene not in (None, 0):
            raise ImageError(f"{self._path}: there is no scene {scene}; there is one, 0")

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def axes(self) -> str:
        """``"CZYX"``."""
        return "CZYX"

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return self._sizes[0] if len(self._sizes) == 4 else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (Z, Y, X) of one channel."""
        z, y, x = self._sizes[-3:]
        return z, y, x

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels, in this machine's byte order."""
        native: np.dtype[Any] = self._stored.newbyteorder("=")
        return native

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """None: the format has no place for one."""
        return None

    @property
    def channel_names(self) -> tuple[str, ...]:
        """``C0``, ``C1`` ..."""
        return tuple(f"C{number}" for number in range(self.n_channels))

    @property
    def n_scenes(self) -> int:
        """1."""
        return 1

    @property
    def n_times(self) -> int:
        """1."""
        return 1

    @property
    def random_access(self) -> bool:
        """True: a box costs no more than its own rows."""
        return True

    def channel_index(self, channel: str | int | None) -> int:
        """Return the number of a channel given by name, number, or (where there is only one) not at all."""
        return find_channel(channel, self.channel_names, self._path)

    def read(
        self, channel: int, region: Region | None = None, scene: int | None = None, t: int | None = None
    ) -> NDArray[Any]:
        """Return one channel's sub-volume (Z, Y, X) in the file's own type, native byte order.

        Raises
        ------
        ImageError
            If the channel, scene, time point or region is not there, or the file has become shorter.
        """
        self._check_scene(scene)
        if t not in (None, 0):
            raise ImageError(f"{self._path}: there is no time point {t}; there is one, 0")
        if not 0 <= channel < self.n_channels:
            raise ImageError(
                f"{self._path}: there is no channel {channel}; there are 0 to {self.n_channels - 1}"
            )
        try:
            box = (region or Region()).resolve(self.shape)
        except ImageError as error:
            raise ImageError(f"{self._path}: {error}") from None
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
        volume = mapped[channel] if len(self._sizes) == 4 else mapped
        return np.array(volume[box], self.dtype, order="C")

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
