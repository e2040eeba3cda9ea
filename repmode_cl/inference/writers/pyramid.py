"""Pyramid of a channel, its full and lower resolutions, made tile by tile while it is written.

Each level halves y and x (means of 2 x 2 voxels) and keeps every plane: that is what viewers of both formats
expect, and a plane needs no other. Lower levels wait on disk until they are written in their turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.preprocessing.normalisation import strips
from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.volume_source import VolumeSource

__all__ = ["Pyramid", "TILE", "halve", "level_shapes"]

Box = tuple[slice, slice, slice]

#: Voxels (y and x) of a tile. Even, so that a tile becomes part of one tile of the next level.
TILE = 256

#: Planes of the lowest level from which the range for viewers is computed.
_RANGE_PLANES = 32
#: The same where there are no lower levels.
_SAMPLED_PLANES = 8


def level_shapes(shape: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the voxels (Z, Y, X) of each level, until one tile holds a plane."""
    shapes = [(int(shape[0]), int(shape[1]), int(shape[2]))]
    while max(shapes[-1][1:]) > TILE:
        z, y, x = shapes[-1]
        shapes.append((z, -(-y // 2), -(-x // 2)))
    return shapes


def halve(values: NDArray[Any]) -> NDArray[Any]:
    """Return the means of 2 x 2 voxels (y, x) in the type of `values`; an odd last one is repeated."""
    _, y, x = values.shape
    if y % 2 or x % 2:
        values = np.pad(values, ((0, 0), (0, y % 2), (0, x % 2)), mode="edge")
    # Float32 holds the sum of four integers of 16 bits exactly.
    means = values[:, ::2, ::2].astype(np.float32)
    for j, i in ((0, 1), (1, 0), (1, 1)):
        means += values[:, j::2, i::2]
    means *= np.float32(0.25)
    if values.dtype.kind in "iu":
        np.rint(means, out=means)
    return means.astype(values.dtype, copy=False)


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """Return the finite ones: of predictions all are, of a map of distances a window's may be beyond float32."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        values = values[np.isfinite(values)]
    return values


def _percentiles(values: NDArray[Any]) -> tuple[float, float]:
    finite = _finite(values)
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, (0.5, 99.8))
    return float(low), float(high)


class Pyramid:
    """The levels of one channel.

    Parameters
    ----------
    source
        The channel at full resolution, read once.
    dtype
        Type of the voxels that are written.
    convert
        Conversion of the voxels of `source`; None only changes the type.
    lower_levels
        Beginning of the names of the files in which lower levels wait; files that are there are replaced.

    Attributes
    ----------
    shapes
        Voxels (Z, Y, X) of each level.
    low, high
        Least and largest finite number written so far; infinity and its opposite without any.
    """

    def __init__(
        self,
        source: VolumeSource,
        dtype: np.dtype[Any],
        convert: Callable[[NDArray[Any]], NDArray[Any]] | None,
        lower_levels: Path,
    ) -> None:
        self.shapes = level_shapes(source.shape)
        self.dtype = np.dtype(dtype)
        self.low, self.high = np.inf, -np.inf
        self._source, self._convert, self._lower_levels = source, convert, lower_levels
        self._lower: dict[int, RawVolume] = {}

    def tiles(self, level: int, planes: int = 1) -> Iterator[tuple[Box, NDArray[Any]]]:
        """Yield a level's tiles, z slowest and x fastest: box, and voxels (smaller at the far ends).

        Levels are read in their order, each once: the next is made meanwhile.

        Parameters
        ----------
        level
            0 is the full resolution.
        planes
            Planes of a tile.
        """
        z, y, x = self.shapes[level]
        has_next = level + 1 < len(self.shapes)
        if has_next:
            path = self._lower_levels.with_name(f"{self._lower_levels.name}.level-{level + 1}")
            path.unlink(missing_ok=True)
            self._lower[level + 1] = RawVolume(path, self.shapes[level + 1], self.dtype)
        for a, b, c in product(range(0, z, planes), range(0, y, TILE), range(0, x, TILE)):
            box = (
                slice(a, min(a + planes, z)),
                slice(b, min(b + TILE, y)),
                slice(c, min(c + TILE, x)),
            )
            values = self._read(level, box)
            if has_next:
                half = (
                    box[0],
                    slice(b // 2, -(-box[1].stop // 2)),
                    slice(c // 2, -(-box[2].stop // 2)),
                )
                self._lower[level + 1].write(half, halve(values))
            yield box, values
        if level and has_next:
            self._remove_level(level)

    def strips(self) -> Iterator[tuple[Box, NDArray[Any]]]:
        """Yield only the full resolution, in strips of whole rows."""
        for box in strips(self.shapes[0]):
            yield box, self._read(0, box)

    def rows(self, plane: int, start: int, stop: int) -> NDArray[Any]:
        """Return only rows of a plane of the full resolution, (rows, X)."""
        values = self._read(0, (slice(plane, plane + 1), slice(start, stop), slice(0, self.shapes[0][2])))
        return values.reshape(values.shape[1:])

    def sampled_range(self) -> tuple[float, float]:
        """Return the range for a viewer's contrast, of the middle rows of some planes of the full resolution."""
        z, y, _ = self.shapes[0]
        start = max(0, y // 2 - TILE // 2)
        planes = sorted({round(plane) for plane in np.linspace(0, z - 1, min(z, _SAMPLED_PLANES))})
        values = np.concatenate([self.rows(plane, start, min(start + TILE, y)).ravel() for plane in planes])
        low, high = _percentiles(values)
        return (low, high) if low < high else (low, low + 1)

    def _read(self, level: int, box: Box) -> NDArray[Any]:
        if level:
            return self._lower[level].read(box)
        values = self._source.read(box)
        values = values if self._convert is None else self._convert(values)
        values = values.astype(self.dtype, copy=False)
        finite = _finite(values)
        if finite.size:
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        return values

    def display_range(self) -> tuple[float, float]:
        """Return the range for a viewer's contrast: most of the voxels of the lowest level, once it is made."""
        z, y, x = self.shapes[-1]
        planes = sorted({round(plane) for plane in np.linspace(0, z - 1, min(z, _RANGE_PLANES))})
        lowest = len(self.shapes) - 1
        boxes = [(slice(plane, plane + 1), slice(0, y), slice(0, x)) for plane in planes]
        low, high = _percentiles(np.concatenate([self._read(lowest, box) for box in boxes]))
        if low < high:
            return low, high
        return (self.low, max(self.high, self.low + 1)) if self.low <= self.high else (0.0, 1.0)

    def _remove_level(self, level: int) -> None:
        volume = self._lower.pop(level)
        volume.close()
        volume.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the files of lower levels."""
        for level in list(self._lower):
            self._remove_level(level)
