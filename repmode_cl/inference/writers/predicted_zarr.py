"""Reading back of predicted OME-Zarr folders, as `write_zarr` writes them, without zarr.

Time points and the fields of a plate are predicted as OME-Zarr folders first, each by itself; these become one image
later.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.errors import RepmodeError
from repmode_cl.inference.writers.image_metadata import NAMESPACE, ChannelMetadata, ImageMetadata
from repmode_cl.utils.atomic_files import read_json

__all__ = ["PredictedZarr"]

_REMEDY = "remove this folder, and give the same command again: it is predicted again"


@dataclass(frozen=True)
class _Array:
    """The array of full resolution: its folder, voxels (c, z, y, x) and those of a chunk."""

    folder: Path
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]


class PredictedZarr:
    """A predicted image without an axis of time, in a folder.

    Parameters
    ----------
    path
        The folder.

    Attributes
    ----------
    metadata
        Of the image, as it was written.

    Raises
    ------
    RepmodeError
        If it is no predicted image, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            attributes = read_json(path / "zarr.json", _REMEDY)["attributes"]
            array = read_json(path / "0" / "zarr.json", _REMEDY)
            self._array = _Array(
                path / "0" / "c",
                tuple(int(size) for size in array["shape"]),
                tuple(int(size) for size in array["chunk_grid"]["configuration"]["chunk_shape"]),
                np.dtype(array["data_type"]),
            )
            self.metadata = _metadata(attributes, self._array)
        except (KeyError, IndexError, TypeError, ValueError, FileNotFoundError) as error:
            raise RepmodeError(
                f"{path}: is no prediction that can be read back ({error!r}); {_REMEDY}"
            ) from error

    def channel(self, number: int) -> _ChannelOfZarr:
        """Return one channel as a source of voxels."""
        return _ChannelOfZarr(self._array, number)


class _ChannelOfZarr:
    """One channel of a predicted image; a row of its chunks is kept, because tiles are read plane by plane."""

    def __init__(self, array: _Array, number: int) -> None:
        _, z, y, x = array.shape
        self.shape = (z, y, x)
        self._array, self._number = array, number
        self._layer, self._chunks = -1, dict[tuple[int, int], NDArray[Any]]()

    def read(self, box: Box) -> NDArray[Any]:
        """Return a box (slices with both ends) as a new array."""
        result = np.empty([part.stop - part.start for part in box], self._array.dtype)
        _, *sizes = self._array.chunk
        places = [range(part.start // n, -(-part.stop // n)) for part, n in zip(box, sizes, strict=True)]
        for k in places[0]:
            for j in places[1]:
                for i in places[2]:
                    starts = [place * size for place, size in zip((k, j, i), sizes, strict=True)]
                    low = [max(a, part.start) for a, part in zip(starts, box, strict=True)]
                    high = [min(a + n, part.stop) for a, n, part in zip(starts, sizes, box, strict=True)]
                    inside = tuple(
                        slice(a - part.start, b - part.start)
                        for a, b, part in zip(low, high, box, strict=True)
                    )
                    of_chunk = tuple(
                        slice(a - start, b - start) for a, b, start in zip(low, high, starts, strict=True)
                    )
                    result[inside] = self._chunk(k, j, i)[of_chunk]
        return result

    def _chunk(self, k: int, j: int, i: int) -> NDArray[Any]:
        if k != self._layer:
            self._layer, self._chunks = k, {}
        if (j, i) not in self._chunks:
            array = self._array
            path = array.folder / str(self._number) / str(k) / str(j) / str(i)
            shape = array.chunk[1:]
            expected = math.prod(shape) * array.dtype.itemsize
            try:
                data = gzip.decompress(path.read_bytes())
            except (OSError, EOFError) as error:
                raise RepmodeError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
            if len(data) != expected:
                raise RepmodeError(f"{path}: holds {len(data)} bytes of {expected}; {_REMEDY}")
            values = np.frombuffer(data, array.dtype.newbyteorder("<")).reshape(shape)
            self._chunks[j, i] = values.astype(array.dtype, copy=False)
        return self._chunks[j, i]


def _metadata(attributes: Mapping[str, Any], array: _Array) -> ImageMetadata:
    """Return what `write_zarr` was given."""
    [scale] = attributes["ome"]["multiscales"]
    about = dict(attributes[NAMESPACE])
    colours = [channel["color"] for channel in attributes["ome"]["omero"]["channels"]]
    channels = []
    for channel, colour in zip(about.pop("channels"), colours, strict=True):
        facts = dict(channel)
        red, green, blue = bytes.fromhex(colour)
        channels.append(ChannelMetadata(str(facts.pop("name")), (red, green, blue), facts))
    _, z, y, x = array.shape
    return ImageMetadata(
        name=str(scale["name"]),
        shape=(z, y, x),
        dtype=array.dtype,
        channels=tuple(channels),
        voxel_size=_voxel_size(scale),
        description=str(about.pop("description")),
        uuid=about.pop("uuid"),
        about=about,
    )


def _voxel_size(scale: Mapping[str, Any]) -> tuple[float, float, float] | None:
    if "unit" not in scale["axes"][-1]:
        return None
    steps: Sequence[float] = scale["datasets"][0]["coordinateTransformations"][0]["scale"]
    z, y, x = (float(step) for step in steps[-3:])
    return z, y, x
