"""Resampling of one box of a volume without the rest of it, for prediction of volumes larger than memory.

`resample_to` gives scipy a whole volume. A spline is separable and (after its prefilter) local, so any box of the
result follows from a slightly larger box of the source. The coordinates and borders are computed as scipy does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.data.preprocessing.resampling import blur_box, blur_radius

__all__ = ["resample_box", "resample_tiles"]

#: Voxels around a box that the prefilter of orders 2 and 3 also runs over: its pole is at most 0.268, so that voxels
#: further away count less than 1e-9.
_HALO = 16

#: Voxels by which scipy continues a volume before it filters in mode "nearest" (the border's own values).
_PADDING = 12


@dataclass(frozen=True)
class _Axis:
    """Sources of one axis of a box: indices `take[k]` with weights `weight[k]` into the source voxels start:stop.

    `before` and `after` copies of the border's values continue the source; None of `take` leaves the axis as it
    is.
    """

    start: int
    stop: int
    before: int
    after: int
    take: tuple[NDArray[np.intp], ...] | None
    weight: tuple[NDArray[np.float64], ...]

    @property
    def size(self) -> int:
        return self.before + self.stop - self.start + self.after


def resample_box(
    read: Callable[[Box], NDArray[Any]],
    shape: Sequence[int],
    wanted: Sequence[int],
    box: Box,
    order: int = 1,
    *,
    anti_alias: bool = False,
    corners: bool = False,
) -> NDArray[np.float32]:
    """Return ``resample_to(volume, wanted, order)[box]``, reading only the part of the volume that it needs.

    Parameters
    ----------
    read
        Gives a box of the volume, real numbers (z, y, x).
    shape
        Voxels (Z, Y, X) of the volume.
    wanted
        Voxels (Z, Y, X) over the same field; at least one axis differs from `shape`.
    box
        Slices with both ends into a volume of `wanted`.
    order
        Of the spline, 0 to 3.
    anti_alias
        Blur axes that lose voxels first, as `resample_to` does.
    corners
        As of `resample_to`.

    Returns
    -------
    ndarray
        float32 (z, y, x). Order 0 gives the same bits as the whole; others are summed in float64 in another order
        than scipy's, and rounded to float32 once.
    """
    axes = [_axis(n, m, part, order, corners) for n, m, part in zip(shape, wanted, box, strict=True)]
    z, y, x = (slice(axis.start, axis.stop) for axis in axes)
    if anti_alias:
        values = blur_box(read, shape, wanted, (z, y, x))
    else:
        # Half precision and the like are no types of scipy's; whole volumes are taken as float32 too.
        values = read((z, y, x)).astype(np.float32).astype(np.float64)
    if any(axis.before or axis.after for axis in axes):
        values = np.pad(values, [(axis.before, axis.after) for axis in axes], mode="edge")
    for place, axis in enumerate(axes):
        if axis.take is None:
            continue
        if order > 1:
            # Imported here, because linear resampling, the default, does not need it.
            from scipy import ndimage

            values = ndimage.spline_filter1d(values, order, axis=place, output=np.float64, mode="nearest")
        values = _gather(values, axis, place)
    return values.astype(np.float32)


def _gather(values: NDArray[np.float64], axis: _Axis, place: int) -> NDArray[np.float64]:
    assert axis.take is not None
    along = [1, 1, 1]
    along[place] = -1
    total: NDArray[np.float64] | None = None
    for take, weight in zip(axis.take, axis.weight, strict=True):
        part = np.take(values, take, axis=place)
        if len(axis.take) > 1:
            part *= weight.reshape(along)
        if total is None:
            total = part
        else:
            total += part
    assert total is not None
    return total


def _axis(size: int, wanted: int, part: slice, order: int, corners: bool) -> _Axis:
    if size == wanted:
        return _Axis(part.start, part.stop, 0, 0, None, ())
    places = np.arange(part.start, part.stop, dtype=np.float64)
    if corners:
        # As scipy's zoom by default: the centres of the first and of the last voxel stay where they are.
        places *= (size - 1) / (wanted - 1) if wanted > 1 else 1.0
    else:
        # As scipy's zoom with grid_mode: voxels are boxes, so that the field's borders stay where they are.
        places = (places + 0.5) * (size / wanted) - 0.5
    padding = _PADDING if order > 1 else 0
    if not padding:
        places = np.clip(places, 0, size - 1)
    first, weight = _weights(places, order)
    low, high = int(first.min()), int(first.max()) + order + 1
    halo = _HALO if order > 1 else 0
    low, high = max(low - halo, -padding), min(high + halo, size + padding)
    start, stop = max(low, 0), min(high, size)
    before, after = start - low, high - stop
    take = tuple(np.clip(first + k - low, 0, high - low - 1) for k in range(order + 1))
    return _Axis(start, stop, before, after, take, weight)


def _weights(
    places: NDArray[np.float64], order: int
) -> tuple[NDArray[np.intp], tuple[NDArray[np.float64], ...]]:
    """Return the first voxel that each place is interpolated from, and the weights of it and of the next ones."""
    if order == 0:
        return np.floor(places + 0.5).astype(np.intp), (np.ones_like(places),)
    if order == 1:
        low = np.floor(places)
        return low.astype(np.intp), (1 - (places - low), places - low)
    if order == 2:
        low = np.floor(places + 0.5)
        x = places - low
        middle, last = 0.75 - x * x, 0.5 * (0.5 + x) ** 2
        return low.astype(np.intp) - 1, (1 - middle - last, middle, last)
    if order == 3:
        low = np.floor(places)
        x = places - low
        y = 1 - x
        first = y**3 / 6
        second, third = (x * x * (x - 2) * 3 + 4) / 6, (y * y * (y - 2) * 3 + 4) / 6
        return low.astype(np.intp) - 1, (first, second, third, 1 - first - second - third)
    raise ValueError(f"the order of the spline is 0 to 3, got {order}")


def resample_tiles(
    shape: Sequence[int], wanted: Sequence[int], order: int, memory: int, *, anti_alias: bool = False
) -> Iterator[Box]:
    """Yield boxes that cover a volume of `wanted`, each resampled within about `memory` bytes.

    Their size is the one that reads least in all, given that a reader of compressed planes decodes whole planes.

    Parameters
    ----------
    shape, wanted
        Voxels (Z, Y, X) of the source and of the result; the same where it is only copied.
    order
        Of the spline.
    memory
        Bytes for the arrays of one box; where no size fits, the smallest is used.
    anti_alias
        Whether axes that lose voxels are blurred first.
    """
    choices = [_steps(size, least) for size, least in zip(wanted, (1, 32, 32), strict=True)]
    best: tuple[float, tuple[int, ...]] | None = None
    for tile in product(*choices):
        need, work = _cost(shape, wanted, tile, order, anti_alias)
        if need <= memory and (best is None or work <= best[0]):
            best = work, tile
    tile = best[1] if best is not None else tuple(choice[0] for choice in choices)
    for z, y, x in product(*(range(0, size, step) for size, step in zip(wanted, tile, strict=True))):
        yield (
            slice(z, min(z + tile[0], wanted[0])),
            slice(y, min(y + tile[1], wanted[1])),
            slice(x, min(x + tile[2], wanted[2])),
        )


def _steps(size: int, least: int) -> list[int]:
    """Return the sizes a tile may have on an axis: `least`, doubled up to the whole axis."""
    sizes = [min(least, size)]
    while sizes[-1] < size:
        sizes.append(min(2 * sizes[-1], size))
    return sizes


def _cost(
    shape: Sequence[int], wanted: Sequence[int], tile: Sequence[int], order: int, anti_alias: bool
) -> tuple[float, float]:
    """Return the bytes that one inner tile needs, and the voxels read and decoded for all tiles."""
    source = [
        min(
            n,
            part * n / m
            + (0 if n == m else order + 1 + (2 * _HALO if order > 1 else 0))
            + (2 * blur_radius(n, m) if anti_alias else 0),
        )
        for n, m, part in zip(shape, wanted, tile, strict=True)
    ]
    read = source[0] * source[1] * source[2]
    made = float(tile[0] * tile[1] * tile[2])
    # The source in its own type, float32 and float64, and two arrays in float64 at each of the steps.
    need = 16 * read + 24 * max(read, made)
    tiles = 1.0
    for m, part in zip(wanted, tile, strict=True):
        tiles *= -(-m // part)
    return need, tiles * (read + source[0] * shape[1] * shape[2])
