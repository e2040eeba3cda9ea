"""The arithmetic of preprocessing (paper, section 4.1): resampling to a voxel size, z-score of an image.

Training and prediction use these same functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.antialias import blur
from repmode_cl.data.percentiles import percentiles_of
from repmode_cl.errors import ImageError

__all__ = [
    "ZScore",
    "flat_text",
    "normalise",
    "resample",
    "resample_to",
    "resampled_shape",
    "strips",
    "z_score",
]

#: A volume that would shrink or grow more than this on an axis has a voxel size in another unit than um.
_LARGEST_RATIO = 100.0

#: Voxels summed at once: a plane, or rows of one where it is larger. The sums depend on it in their last bits.
_STRIP = 1 << 22


@dataclass(frozen=True)
class ZScore:
    """Mean and standard deviation of a volume's voxels; called with any part of it, gives that part's z-score."""

    mean: float
    deviation: float

    def __call__(self, part: NDArray[Any]) -> NDArray[np.float32]:
        """Return the z-score of `part`, float32, computed in float64."""
        centred = part.astype(np.float64)
        centred -= self.mean
        centred /= self.deviation
        return centred.astype(np.float32)


def strips(shape: Sequence[int]) -> Iterator[tuple[slice, slice, slice]]:
    """Yield the boxes (one plane thick) in which a volume of `shape` (Z, Y, X) is summed, in order."""
    depth, height, width = shape
    rows = max(1, min(height, _STRIP // max(width, 1)))
    for z in range(depth):
        for y in range(0, height, rows):
            yield slice(z, z + 1), slice(y, min(y + rows, height)), slice(0, width)


def z_score(
    pieces: Callable[[], Iterable[NDArray[Any]]],
    size: int,
    *,
    percentiles: tuple[float, float] | None = None,
    empty: str = "refuse",
) -> ZScore:
    """Find the mean and the deviation (that of the population) of a volume that is seen piece by piece.

    Parameters
    ----------
    pieces
        Called twice, with `percentiles` four times; gives the volume in the pieces of `strips` each time. Sums are
        taken in float64, piece by piece, so that the same pieces give the same bits wherever they come from.
    size
        Number of voxels in all of them.
    percentiles
        Take mean and deviation of the voxels clipped to this lower and upper percentile (0 to 100), so that a few hot
        pixels do not decide; the z-score itself clips nothing. ``(0, 100)`` gives what None does, but for rounding.
    empty
        ``zeros``: a constant volume gets a z-score of 0 everywhere; ``refuse``: it is an error.

    Raises
    ------
    ImageError
        If a voxel is not finite, the volume has no voxel, is constant (unless `empty` says otherwise), or is constant
        between the percentiles and nowhere else: such an image has no z-score.
    """
    if size == 0:
        raise ImageError("the volume is empty")
    low, high, total = math.inf, -math.inf, 0.0
    for piece in pieces():
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        total += float(piece.sum(dtype=np.float64))
        # NaN compares false with everything, so that a minimum alone might miss it; the sum does not.
        if not math.isfinite(total):
            raise ImageError("a voxel is NaN or infinite; replace such voxels or leave them out by a region")
    if low == high:
        if empty == "zeros":
            return ZScore(low, 1.0)
        raise ImageError(f"every voxel is {low:g}: a constant image has no z-score")
    if percentiles is not None:
        low, high = percentiles_of(pieces, size, percentiles)
        pieces = _clipped(pieces, low, high, percentiles)
        total = sum(float(piece.sum()) for piece in pieces())
    mean, squares = total / size, 0.0
    for piece in pieces():
        centred = piece.astype(np.float64)
        centred -= mean
        squares += float(np.square(centred, out=centred).sum())
    return ZScore(mean, math.sqrt(squares / size))


def flat_text(value: float, percentiles: tuple[float, float]) -> str:
    """Return what is wrong with an image that has one value at both percentiles."""
    return (
        f"percentile {percentiles[0]:g} and percentile {percentiles[1]:g} of its voxels are both {value:g}, so that "
        "it has no z-score by percentiles: take percentiles further apart, or normalise: z_score"
    )


def _clipped(
    pieces: Callable[[], Iterable[NDArray[Any]]], low: float, high: float, percentiles: tuple[float, float]
) -> Callable[[], Iterable[NDArray[Any]]]:
    """Return the pieces clipped to `low` and `high`, the voxels at these percentiles, in float64."""
    if not low < high:
        raise ImageError(flat_text(low, percentiles))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("voxels are beyond the range of float32, in which percentiles are taken")
    return lambda: (np.clip(piece.astype(np.float64), low, high) for piece in pieces())


def normalise(
    volume: NDArray[Any], *, percentiles: tuple[float, float] | None = None, empty: str = "refuse"
) -> NDArray[np.float32]:
    """Return the z-score of a volume: mean 0 and standard deviation 1 over all of its voxels.

    Parameters
    ----------
    volume
        (Z, Y, X), real numbers.
    percentiles, empty
        As of `z_score`.

    Returns
    -------
    ndarray
        float32 (Z, Y, X).

    Raises
    ------
    ImageError
        As of `z_score`.
    """
    if volume.size == 0:
        raise ImageError(f"the volume is empty: its shape is {volume.shape}")
    score = z_score(
        lambda: (volume[box] for box in strips(volume.shape)),
        volume.size,
        percentiles=percentiles,
        empty=empty,
    )
    result = np.empty(volume.shape, np.float32)
    for box in strips(volume.shape):
        result[box] = score(volume[box])
    return result


def resample(
    volume: NDArray[Any],
    from_voxel: Sequence[float],
    to_voxel: Sequence[float],
    order: int = 1,
    *,
    anti_alias: bool = False,
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
    anti_alias
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
    return resample_to(
        volume, resampled_shape(volume.shape, from_voxel, to_voxel), order, anti_alias=anti_alias
    )


def resampled_shape(
    shape: Sequence[int], from_voxel: Sequence[float], to_voxel: Sequence[float]
) -> tuple[int, int, int]:
    """Return how many voxels (Z, Y, X) of `to_voxel` um hold the field of `shape` voxels of `from_voxel` um.

    Raises
    ------
    ImageError
        If a voxel size is not a positive number or the two differ so much that a unit must be wrong.
    """
    found = []
    for axis, size, a, b in zip("zyx", shape, from_voxel, to_voxel, strict=True):
        if not (math.isfinite(a) and math.isfinite(b) and a > 0 and b > 0):
            raise ImageError(f"voxel sizes are positive numbers in um, got {a} and {b} on axis {axis}")
        if max(a / b, b / a) > _LARGEST_RATIO:
            raise ImageError(
                f"a voxel size of {a:g} um on axis {axis} cannot be resampled to {b:g} um: is it in another "
                "unit? The column voxel_size_zyx of a manifest overrides the file's"
            )
        found.append(max(1, round(size * a / b)))
    return found[0], found[1], found[2]


def resample_to(
    volume: NDArray[Any], shape: Sequence[int], order: int = 1, *, anti_alias: bool = False
) -> NDArray[Any]:
    """Resample a volume to another number of voxels over the same field.

    Voxels are boxes, so that the borders of the field stay where they are (not the centres of the outermost
    voxels).

    Parameters
    ----------
    volume
        (Z, Y, X).
    shape
        Voxels (Z, Y, X) wanted.
    order
        Of the spline, 0 to 3.
    anti_alias
        Blur axes that lose voxels by a Gaussian first (`repmode_cl.data.antialias`); never done to a mask.

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
        source = ndimage.zoom(source, factors, order=0 if is_mask else order, mode="nearest", grid_mode=True)
    return source.astype(np.bool_) if is_mask else source
