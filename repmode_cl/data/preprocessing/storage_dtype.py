"""Number format of stored volumes: half precision where one rule finds it precise enough.

Half the bytes are half the disk, and half of what a loader waits for where a collection is larger than memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST_ERROR", "to_storage_dtype"]

#: Root mean square of what storing may change, as a part of the volume's standard deviation: 0.0005. Were all
#: rounding errors in league against a prediction that is off by e (root mean square, in the same unit), its MSE
#: would change by ``0.001 e``; they are not, and it changes by some 5e-8.
LARGEST_ERROR = 2.0**-11


def to_storage_dtype(volume: NDArray[Any]) -> NDArray[Any]:
    """Convert a volume to the number format that it is stored in.

    Parameters
    ----------
    volume
        (Z, Y, X), real numbers or bool.

    Returns
    -------
    ndarray
        bool as it is. Else float16 where each voxel fits into it (up to 65504) and the root mean square of the
        rounding errors is at most `LARGEST_ERROR` of the volume's standard deviation; else float32.

    Notes
    -----
    float16 rounds by at most 2^-11 of a value, so that a volume whose mean is 0, as a z-score's is, always keeps the
    bound. It fits too, because no z-score of N voxels exceeds the root of N: 5120 for 64x640x640. Half precision is
    refused only for a volume far from 0 for its contrast, or one single bright voxel among more than 4e9.
    """
    if volume.dtype == np.bool_:
        return volume
    single = volume.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        half = single.astype(np.float16)
    if not np.isfinite(half).all():
        return single
    mean = sum(float(plane.sum(dtype=np.float64)) for plane in single) / single.size
    # Plane by plane, because float64 copies of a large volume are larger still.
    variance = sum(_squares(plane.astype(np.float64) - mean) for plane in single)
    error = sum(_squares(a.astype(np.float64) - b) for a, b in zip(half, single, strict=True))
    return half if error <= LARGEST_ERROR**2 * variance else single


def _squares(values: NDArray[np.float64]) -> float:
    return float(np.square(values).sum())
