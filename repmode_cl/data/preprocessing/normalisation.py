"""Normalisation of images (paper, section 4.1): z-scores, optionally of voxels clipped to percentiles.

Training and prediction use these same functions. Volumes are read piece by piece, so that they need not fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import ImageError

__all__ = [
    "normalise",
    "z_score",
    "ZScore",
    "strips",
    "z_score_of_volume",
    "streaming_percentiles",
    "flat_message",
]

#: Voxels summed at once: a plane, or rows of one where it is larger. The sums depend on it in their last bits.
_STRIP = 1 << 22

#: The largest z-score, which is stored as float32.
_LARGEST = float(np.finfo(np.float32).max)

# Percentiles are counted by the upper, then by the lower half of the 32 bits of a float32.
_HALF_BITS = 16
_BINS = 1 << _HALF_BITS
_SIGN = np.uint32(1 << 31)

#: Voxels counted at once, each of which needs some 30 bytes.
_CHUNK = 1 << 20


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
    given: ZScore | None = None,
) -> ZScore:
    """Compute the mean and the standard deviation (of the population) of a volume that is read piece by piece.

    Parameters
    ----------
    pieces
        Called twice, with `percentiles` four times; yields the volume in the pieces of `strips` each time. Sums are
        taken in float64, piece by piece, so that the same pieces give the same bits wherever they come from.
    size
        Number of voxels in all of them.
    percentiles
        Take mean and deviation of the voxels clipped to this lower and upper percentile (0 to 100), so that a few hot
        pixels do not decide; the z-score itself clips nothing. ``(0, 100)`` gives what None does, but for rounding.
    empty
        ``zeros``: a constant volume gets a z-score of 0 everywhere; ``refuse``: it is an error; ``keep``: with `given`
        it is as good as any other, and without its deviation is 0.
    given
        Mean and deviation that are known already, such as those of a data set: the volume is read once and checked,
        and these are returned.

    Raises
    ------
    ImageError
        If a voxel is not finite, the volume has no voxel, is constant (unless `empty` says otherwise), or is constant
        between the percentiles and nowhere else: such an image has no z-score. If its values are so large or small
        that their squares are beyond float64, or their z-score by `given` is beyond float32.
    """
    if size == 0:
        raise ImageError("the volume is empty")
    low, high, total = math.inf, -math.inf, 0.0
    for piece in pieces():
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        with np.errstate(over="ignore"):
            total += float(piece.sum(dtype=np.float64))
        # NaN compares false with everything, so that a minimum might miss it; the sum does not.
        if not math.isfinite(total):
            if np.isfinite(piece).all():
                raise ImageError(_range_message(low, high))
            raise ImageError("a voxel is NaN or infinite; replace such voxels or leave them out by a region")
    if low == high and given is not None and empty != "keep":
        raise ImageError(
            f"every voxel is {low:g}: such an image shows nothing; data.preprocessing.empty: keep would accept it"
        )
    if given is not None:
        if given.deviation > 0 and max(high - given.mean, given.mean - low) / given.deviation > _LARGEST:
            raise ImageError(
                f"its voxels reach from {low:g} to {high:g}, so that z-scores by a mean of {given.mean:g} and a "
                f"deviation of {given.deviation:g} are beyond float32; replace such voxels, or leave them out by a "
                "region"
            )
        return given
    if low == high:
        if empty == "zeros":
            return ZScore(low, 1.0)
        if empty == "keep":
            return ZScore(low, 0.0)
        raise ImageError(f"every voxel is {low:g}: a constant image has no z-score")
    if percentiles is not None:
        low, high = streaming_percentiles(pieces, size, percentiles)
        pieces = _clipped(pieces, low, high, percentiles)
        total = sum(float(piece.sum()) for piece in pieces())
    mean, squares = total / size, 0.0
    for piece in pieces():
        centred = piece.astype(np.float64)
        centred -= mean
        with np.errstate(over="ignore"):
            squares += float(np.square(centred, out=centred).sum())
    deviation = math.sqrt(squares / size)
    if not 0 < deviation < math.inf:
        raise ImageError(_range_message(low, high))
    return ZScore(mean, deviation)


def _range_message(low: float, high: float) -> str:
    """Return the message about an image whose values differ, but have no deviation in float64."""
    return (
        f"its voxels reach from {low:g} to {high:g}, whose squares are beyond the numbers of float64, so that no "
        "z-score can be computed: multiply or divide the image by a constant, which leaves its z-score the same"
    )


def flat_message(value: float, percentiles: tuple[float, float]) -> str:
    """Return the message about an image that has one value at both percentiles."""
    return (
        f"percentile {percentiles[0]:g} and percentile {percentiles[1]:g} of its voxels are both {value:g}, so that "
        "it has no z-score by percentiles: take percentiles further apart, or normalise: z_score"
    )


def _clipped(
    pieces: Callable[[], Iterable[NDArray[Any]]], low: float, high: float, percentiles: tuple[float, float]
) -> Callable[[], Iterable[NDArray[Any]]]:
    """Return the pieces clipped to `low` and `high`, the voxels at these percentiles, in float64."""
    if not low < high:
        raise ImageError(flat_message(low, percentiles))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("voxels are beyond the range of float32, in which percentiles are taken")
    return lambda: (np.clip(piece.astype(np.float64), low, high) for piece in pieces())


def normalise(
    volume: NDArray[Any],
    *,
    percentiles: tuple[float, float] | None = None,
    empty: str = "refuse",
    given: ZScore | None = None,
) -> NDArray[np.float32]:
    """Return the z-score of a volume: mean 0 and standard deviation 1 over all of its voxels, unless they are `given`.

    Parameters
    ----------
    volume
        (Z, Y, X), real numbers.
    percentiles, empty, given
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
    score = z_score_of_volume(volume, percentiles=percentiles, empty=empty, given=given)
    result = np.empty(volume.shape, np.float32)
    for box in strips(volume.shape):
        result[box] = score(volume[box])
    return result


def z_score_of_volume(
    volume: NDArray[Any],
    *,
    percentiles: tuple[float, float] | None = None,
    empty: str = "refuse",
    given: ZScore | None = None,
) -> ZScore:
    """Return mean and deviation of a volume (Z, Y, X); parameters and errors of `normalise`."""
    if volume.size == 0:
        raise ImageError(f"the volume is empty: its shape is {volume.shape}")
    return z_score(
        lambda: (volume[box] for box in strips(volume.shape)),
        volume.size,
        percentiles=percentiles,
        empty=empty,
        given=given,
    )


def streaming_percentiles(
    pieces: Callable[[], Iterable[NDArray[Any]]], size: int, percentiles: Sequence[float]
) -> list[float]:
    """Return percentiles of a volume that is read piece by piece.

    Parameters
    ----------
    pieces
        Called twice; yields all voxels, finite real numbers, in arrays of any shape.
    size
        Number of voxels in all of them, at least 1.
    percentiles
        0 to 100.

    Returns
    -------
    list[float]
        One for each: the voxel of rank ``floor(percentile / 100 * (size - 1))`` in float32, as
        ``numpy.percentile(..., method="lower")`` of the volume as float32 gives.
    """
    ranks = [min(size - 1, int(one / 100 * (size - 1))) for one in percentiles]
    upper = np.zeros(_BINS, np.int64)
    for bits in _to_ordered(pieces()):
        upper += np.bincount(bits >> _HALF_BITS, minlength=_BINS)
    before = np.concatenate([[0], np.cumsum(upper)])
    bins = [int(np.searchsorted(before, rank, side="right")) - 1 for rank in ranks]
    lower = {number: np.zeros(_BINS, np.int64) for number in bins}
    for bits in _to_ordered(pieces()):
        top = bits >> _HALF_BITS
        for number, counts in lower.items():
            counts += np.bincount(bits[top == number] & (_BINS - 1), minlength=_BINS)
    values = []
    for rank, number in zip(ranks, bins, strict=True):
        rest = int(np.searchsorted(np.cumsum(lower[number]), rank - before[number], side="right"))
        values.append(_from_ordered((number << _HALF_BITS) | rest))
    return values


def _to_ordered(pieces: Iterable[NDArray[Any]]) -> Iterator[NDArray[np.uint32]]:
    """Yield the float32 of all voxels as integers that are ordered as the numbers are."""
    for piece in pieces:
        flat = np.ravel(piece)
        for start in range(0, len(flat), _CHUNK):
            # Adding 0 makes the negative zero positive, which it equals.
            bits = (flat[start : start + _CHUNK].astype(np.float32) + np.float32(0)).view(np.uint32)
            yield np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _from_ordered(ordered: int) -> float:
    """Return the float32 whose ordered integer this is."""
    bits = np.uint32(ordered)
    bits = bits & ~_SIGN if bits & _SIGN else ~bits
    return float(bits.view(np.float32))
