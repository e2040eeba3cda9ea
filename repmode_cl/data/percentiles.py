"""Percentiles of a volume that is seen piece by piece: exact, in bounded memory, whatever the pieces are.

Counting is what makes it so: an order statistic of 32-bit numbers is found by a histogram of their upper 16 bits and
one of the lower 16 bits of those that the first leaves in question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["percentiles_of"]

_HALF = 16
_BINS = 1 << _HALF
_SIGN = np.uint32(1 << 31)

#: Voxels counted at once, for each of which some 30 bytes are needed.
_AT_ONCE = 1 << 20


def percentiles_of(
    pieces: Callable[[], Iterable[NDArray[Any]]], size: int, percentiles: Sequence[float]
) -> list[float]:
    """Return percentiles of a volume.

    Parameters
    ----------
    pieces
        Called twice; gives all voxels, finite real numbers, in arrays of any shape.
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
    for bits in _ordered(pieces()):
        upper += np.bincount(bits >> _HALF, minlength=_BINS)
    before = np.concatenate([[0], np.cumsum(upper)])
    bins = [int(np.searchsorted(before, rank, side="right")) - 1 for rank in ranks]
    lower = {number: np.zeros(_BINS, np.int64) for number in bins}
    for bits in _ordered(pieces()):
        top = bits >> _HALF
        for number, counts in lower.items():
            counts += np.bincount(bits[top == number] & (_BINS - 1), minlength=_BINS)
    found = []
    for rank, number in zip(ranks, bins, strict=True):
        rest = int(np.searchsorted(np.cumsum(lower[number]), rank - before[number], side="right"))
        found.append(_value((number << _HALF) | rest))
    return found


def _ordered(pieces: Iterable[NDArray[Any]]) -> Iterator[NDArray[np.uint32]]:
    """Yield the float32 of all voxels as integers that are ordered as the numbers are."""
    for piece in pieces:
        flat = np.ravel(piece)
        for start in range(0, len(flat), _AT_ONCE):
            # Adding 0 makes the negative zero positive, which it equals.
            bits = (flat[start : start + _AT_ONCE].astype(np.float32) + np.float32(0)).view(np.uint32)
            yield np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _value(ordered: int) -> float:
    bits = np.uint32(ordered)
    bits = bits & ~_SIGN if bits & _SIGN else ~bits
    return float(bits.view(np.float32))
