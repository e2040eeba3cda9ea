"""A Gaussian blur before voxels are left out: detail finer than the new voxels would else leave a pattern of its own.

The deviation along an axis that shrinks by a factor f is (f - 1) / 2 voxels, as in scikit-image's ``resize``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["blur", "blur_box", "blur_radius"]

Box = tuple[slice, slice, slice]

#: Deviations at which the Gaussian ends.
_TRUNCATE = 4.0


def _deviation(size: int, wanted: int) -> float:
    return max(0.0, (size / wanted - 1) / 2)


def blur_radius(size: int, wanted: int) -> int:
    """Return how many voxels on either side the blur of an axis sees that goes from `size` to `wanted` voxels."""
    return math.floor(_TRUNCATE * _deviation(size, wanted) + 0.5)


def blur(volume: NDArray[Any], wanted: Sequence[int]) -> NDArray[Any]:
    """Return a volume (Z, Y, X) blurred for resampling to `wanted` voxels, in its own number format.

    Axes that do not shrink are left alone. Beyond the border the volume goes on with the border's values.
    """
    # Imported here, because most resampling does without.
    from scipy import ndimage

    for axis, (size, new) in enumerate(zip(volume.shape, wanted, strict=True)):
        if blur_radius(size, new):
            volume = ndimage.gaussian_filter1d(
                volume, _deviation(size, new), axis=axis, mode="nearest", truncate=_TRUNCATE
            )
    return volume


def blur_box(
    read: Callable[[Box], NDArray[Any]], shape: Sequence[int], wanted: Sequence[int], box: Box
) -> NDArray[np.float64]:
    """Return ``blur(volume, wanted)[box]`` of a volume that is read around the box alone, computed in float64.

    Parameters
    ----------
    read
        Gives a box of the volume, real numbers.
    shape, wanted
        Voxels (Z, Y, X) of the volume, and those it is resampled to.
    box
        Slices with both ends.
    """
    from scipy import ndimage

    radii = [blur_radius(size, new) for size, new in zip(shape, wanted, strict=True)]
    around = tuple(
        slice(max(0, part.start - radius), min(size, part.stop + radius))
        for part, radius, size in zip(box, radii, shape, strict=True)
    )
    values = read((around[0], around[1], around[2])).astype(np.float32).astype(np.float64)
    for axis, (size, new, radius) in enumerate(zip(shape, wanted, radii, strict=True)):
        if not radius:
            continue
        # Cut inside the volume, the end of `around` is as far from the box as the Gaussian sees; at the volume's own
        # border it goes on as that of the whole does.
        values = ndimage.gaussian_filter1d(
            values, _deviation(size, new), axis=axis, mode="nearest", truncate=_TRUNCATE
        )
        inside = [slice(None)] * 3
        start = box[axis].start - around[axis].start
        inside[axis] = slice(start, start + box[axis].stop - box[axis].start)
        values = values[tuple(inside)]
    return values
