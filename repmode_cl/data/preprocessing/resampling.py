"""Resampling of volumes to another voxel size, with an optional Gaussian blur against aliasing.

Detail finer than the new voxels would else leave a false pattern. The blur's deviation along an axis that shrinks
by a factor f is (f - 1) / 2 voxels, as in scikit-image's ``resize``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.errors import ImageError

__all__ = [
    "resample",
    "resample_to",
    "resampled_shape",
    "blur",
    "blur_box",
    "blur_radius",
    "VOXEL_SIZE_REMEDY",
]

#: A volume that would shrink or grow more than this on an axis has a voxel size in another unit than um.
_LARGEST_RATIO = 100.0

#: What a person can do about a voxel size in another unit, where a manifest lists the image.
VOXEL_SIZE_REMEDY = "The column voxel_size_zyx of a manifest overrides the file's"

#: Deviations at which the Gaussian ends.
_TRUNCATE = 4.0


def resample(
    volume: NDArray[Any],
    from_voxel: Sequence[float],
    to_voxel: Sequence[float],
    order: int = 1,
    *,
    anti_alias: bool = False,
    corners: bool = False,
) -> NDArray[Any]:
    """Resample a volume to another voxel size.

    Parameters
    ----------
    volume
        (Z, Y, X); bool and order 0 for a mask.
    from_voxel, to_voxel
        Voxel sizes (z, y, x) in um.
    order
        Of the spline: 0 takes the nearest voxel, 1 is linear, 3 cubic.
    anti_alias, corners
        As of `resample_to`.

    Returns
    -------
    ndarray
        float32, or bool where `volume` is. Sizes are rounded to whole voxels; both volumes cover the same
        field.

    Raises
    ------
    ImageError
        If a voxel size is not a positive number or the two differ so much that a unit must be wrong.
    """
    shape = resampled_shape(volume.shape, from_voxel, to_voxel)
    return resample_to(volume, shape, order, anti_alias=anti_alias, corners=corners)


def resampled_shape(
    shape: Sequence[int],
    from_voxel: Sequence[float],
    to_voxel: Sequence[float],
    *,
    remedy: str = VOXEL_SIZE_REMEDY,
) -> tuple[int, int, int]:
    """Return how many voxels (Z, Y, X) of `to_voxel` um hold the field of `shape` voxels of `from_voxel` um.

    Raises
    ------
    ImageError
        If a voxel size is not a positive number or the two differ so much that a unit must be wrong.
    """
    sizes = []
    for axis, size, a, b in zip("zyx", shape, from_voxel, to_voxel, strict=True):
        if not (math.isfinite(a) and math.isfinite(b) and a > 0 and b > 0):
            raise ImageError(f"voxel sizes are positive numbers in um, got {a} and {b} on axis {axis}")
        if max(a / b, b / a) > _LARGEST_RATIO:
            raise ImageError(
                f"a voxel size of {a:g} um on axis {axis} cannot be resampled to {b:g} um: is it in another "
                f"unit? {remedy}"
            )
        sizes.append(max(1, round(size * a / b)))
    return sizes[0], sizes[1], sizes[2]


def resample_to(
    volume: NDArray[Any],
    shape: Sequence[int],
    order: int = 1,
    *,
    anti_alias: bool = False,
    corners: bool = False,
) -> NDArray[Any]:
    """Resample a volume to another number of voxels over the same field.

    Voxels are boxes, so that the borders of the field stay where they are (not the centres of the outermost
    voxels), unless `corners` says otherwise.

    Parameters
    ----------
    volume
        (Z, Y, X).
    shape
        Voxels (Z, Y, X) wanted.
    order
        Of the spline, 0 to 3.
    anti_alias
        Blur axes that lose voxels by a Gaussian first (see `blur`); never done to a mask.
    corners
        Keep the centres of the outermost voxels where they are, as `scipy.ndimage.zoom` does by default.

    Returns
    -------
    ndarray
        float32, or bool where `volume` is.
    """
    is_mask = volume.dtype == np.bool_
    wanted = tuple(int(size) for size in shape)
    # Half precision and the like are no types of scipy's; of a mask it interpolates 0 and 1.
    source = volume.astype(np.uint8 if is_mask else np.float32)
    if wanted != volume.shape:
        # Imported here, because training reads the cache and never resamples.
        from scipy import ndimage

        if anti_alias and not is_mask:
            source = blur(source, wanted)
        factors = [new / old for new, old in zip(wanted, volume.shape, strict=True)]
        source = ndimage.zoom(
            source, factors, order=0 if is_mask else order, mode="nearest", grid_mode=not corners
        )
    return source.astype(np.bool_) if is_mask else source


def blur_radius(size: int, wanted: int) -> int:
    """Return the reach of the blur, in voxels on either side, of an axis that goes from `size` to `wanted` voxels."""
    return math.floor(_TRUNCATE * _deviation(size, wanted) + 0.5)


def blur(volume: NDArray[Any], wanted: Sequence[int]) -> NDArray[Any]:
    """Return a volume (Z, Y, X) blurred for resampling to `wanted` voxels, in its own number format.

    Axes that do not shrink are not changed. Beyond the border the volume continues with the border's values.
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
    """Return ``blur(volume, wanted)[box]`` of a volume that is only read around the box, computed in float64.

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
        # border it continues as that of the whole volume does.
        values = ndimage.gaussian_filter1d(
            values, _deviation(size, new), axis=axis, mode="nearest", truncate=_TRUNCATE
        )
        inside = [slice(None)] * 3
        start = box[axis].start - around[axis].start
        inside[axis] = slice(start, start + box[axis].stop - box[axis].start)
        values = values[tuple(inside)]
    return values


def _deviation(size: int, wanted: int) -> float:
    return max(0.0, (size / wanted - 1) / 2)
