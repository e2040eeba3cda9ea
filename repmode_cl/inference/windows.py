"""Where the windows of a large volume lie, and how much each of their voxels counts.

The iterator is apart from the prediction because predicting in memory and, later, from and to disk walk the
same windows: they come in the order of z, then y, then x, so that a z slab is final once the windows have
passed it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

__all__ = ["Window", "gaussian_weights", "plan_windows"]

#: Least weight, relative to a Gaussian of height 1: a corner of the volume is seen by the far corner of one
#: window alone, where the Gaussian itself (4 sigma away on each axis) is below 1e-10. MONAI's value.
WEIGHT_FLOOR = 1e-3


@dataclass(frozen=True)
class Window:
    """One box of voxels, `start` included and `stop` not, both (z, y, x)."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The window as an index into a (Z, Y, X) array."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x


def plan_windows(shape: Sequence[int], window: Sequence[int], overlap: float = 0.5) -> list[Window]:
    """Cover a volume with windows of one size.

    Parameters
    ----------
    shape
        Voxels (Z, Y, X) of the volume.
    window
        Voxels (z, y, x) of a window; an axis in which the volume is smaller takes the volume's size.
    overlap
        Part of a window, from 0 up to but not including 1, that its neighbour repeats (paper, section 4.1:
        one half).

    Returns
    -------
    list[Window]
        All of one size and inside the volume (the last of an axis is shifted back), z slowest, x fastest.

    Raises
    ------
    ValueError
        If a size is below 1, an axis is missing or `overlap` is out of range.
    """
    if len(shape) != 3 or len(window) != 3:
        raise ValueError(f"shape and window have three axes, got {tuple(shape)} and {tuple(window)}")
    if min(*shape, *window) < 1:
        raise ValueError(f"sizes are at least 1 voxel, got shape {tuple(shape)} and window {tuple(window)}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is at least 0 and below 1, got {overlap}")
    size = [min(a, b) for a, b in zip(shape, window, strict=True)]
    starts = [_starts(total, part, overlap) for total, part in zip(shape, size, strict=True)]
    return [Window((z, y, x), (z + size[0], y + size[1], x + size[2])) for z, y, x in product(*starts)]


def _starts(total: int, part: int, overlap: float) -> list[int]:
    step = max(1, int(part * (1 - overlap)))
    count = 1 + math.ceil((total - part) / step)
    return [min(i * step, total - part) for i in range(count)]


def gaussian_weights(window: Sequence[int], sigma_fraction: float = 0.125) -> NDArray[np.float32]:
    """Weigh the voxels of a window: a Gaussian about its centre, as nnU-Net and MONAI (paper, section 4.1).

    Parameters
    ----------
    window
        Voxels (z, y, x).
    sigma_fraction
        Standard deviation on each axis, as a part of the window's size on it.

    Returns
    -------
    ndarray
        float32 (z, y, x), the largest is 1 and the smallest above 0.
    """
    if min(window) < 1 or sigma_fraction <= 0:
        raise ValueError(f"window and sigma_fraction are positive, got {tuple(window)} and {sigma_fraction}")
    weights = np.ones((), np.float64)
    for size in window:
        x = np.arange(size, dtype=np.float64) - (size - 1) / 2
        weights = weights[..., None] * np.exp(-(x**2) / (2 * (sigma_fraction * size) ** 2))
    # The floor is relative to the Gaussian's own height: an even window has no voxel at its very centre.
    weights = np.maximum(weights, WEIGHT_FLOOR)
    result: NDArray[np.float32] = (weights / weights.max()).astype(np.float32)
    return result
