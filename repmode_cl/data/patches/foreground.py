"""Bright voxels of a target, which crops can be centred on so that a sparse structure is seen often enough.

A voxel is foreground where the prepared target is above `BRIGHT`: brighter than its mean by more than one deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["BRIGHT", "ForegroundCache", "bright_voxels"]

#: In units of the prepared target, whose mean is 0 and deviation 1.
BRIGHT = 1.0

#: Most voxels stored of a volume: every k-th bright one, so that thousands of images need little memory.
_MOST_VOXELS = 4096


def bright_voxels(
    target: NDArray[np.generic], mask: NDArray[np.generic] | None = None, limit: int = _MOST_VOXELS
) -> NDArray[np.int64]:
    """Return bright voxels of a target, spread evenly over all that there are.

    Parameters
    ----------
    target
        (Z, Y, X), prepared; may be mapped, and is read plane by plane.
    mask
        Voxels that count, of the same shape; None counts all.
    limit
        Largest number of voxels returned.

    Returns
    -------
    ndarray
        int64 (n, 3): z, y, x, ascending; without a row where nothing is bright.
    """

    def bright(z: int) -> NDArray[np.bool_]:
        voxels = np.asarray(target[z] > BRIGHT)
        return voxels if mask is None else voxels & np.asarray(mask[z], np.bool_)

    total = sum(int(np.count_nonzero(bright(z))) for z in range(len(target)))
    step = max(1, -(-total // limit))
    voxels, passed = [], 0
    for z in range(len(target)) if total else ():
        y, x = np.nonzero(bright(z))
        chosen = slice(-passed % step, None, step)
        passed += len(y)
        voxels.append(np.stack([np.full_like(y, z), y, x], axis=1)[chosen])
    return np.concatenate(voxels).astype(np.int64) if voxels else np.empty((0, 3), np.int64)


class ForegroundCache:
    """Bright voxels of the targets of a dataset, searched when they are first needed: a cache, not state."""

    def __init__(self) -> None:
        self._cached: dict[tuple[Path, Path | None], NDArray[np.int64]] = {}

    def of(
        self, target: Path, mask: Path | None, load: Callable[[Path], NDArray[np.generic]]
    ) -> NDArray[np.int64]:
        """Return `bright_voxels` of prepared files that `load` maps."""
        key = (target, mask)
        if key not in self._cached:
            self._cached[key] = bright_voxels(load(target), None if mask is None else load(mask))
        return self._cached[key]
