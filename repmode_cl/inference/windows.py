"""Windows of a large volume: where they lie, and the weight of each of their voxels.

Prediction in memory and from disk to disk walk the same windows, in the order of z, then y, then x: a z slab is final
once the windows have passed it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import shape_text
from repmode_cl.errors import ImageError, RepmodeError

__all__ = [
    "WindowGrid",
    "WindowWeights",
    "Window",
    "gaussian_weights",
    "summed_weights",
    "checked_window_grid",
    "plan_windows",
]

#: Least weight, relative to a Gaussian of height 1: a corner of the volume is covered only by the far corner of one
#: window, where the Gaussian itself (4 sigma away on each axis) is below 1e-10. MONAI's value.
WEIGHT_FLOOR = 1e-3

#: ``floored``: about the middle of the window, and nowhere below `WEIGHT_FLOOR`. ``authors``: as in the code of the
#: paper's authors, about voxel n // 2 of n, down to 3.8e-11 in a corner.
WindowWeights = Literal["floored", "authors"]


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


class WindowGrid:
    """The windows that cover a volume, numbered; computed when needed, because a large volume has millions.

    Parameters
    ----------
    shape
        Voxels (Z, Y, X) of the volume.
    window
        Voxels (z, y, x) of a window; an axis in which the volume is smaller takes the volume's size.
    overlap
        Part of a window, from 0 up to but not including 1, that its neighbour repeats (paper, section 4.1:
        one half).

    Attributes
    ----------
    size
        Voxels (z, y, x) that all windows have.
    overlap
        As given.
    starts
        First voxels of the windows on each axis, increasing; the last window of an axis is shifted back to end
        with the volume.

    Raises
    ------
    ValueError
        If a size is below 1, an axis is missing or `overlap` is out of range.
    """

    def __init__(self, shape: Sequence[int], window: Sequence[int], overlap: float = 0.5) -> None:
        if len(shape) != 3 or len(window) != 3:
            raise ValueError(f"shape and window have three axes, got {tuple(shape)} and {tuple(window)}")
        if min(*shape, *window) < 1:
            raise ValueError(
                f"sizes are at least 1 voxel, got shape {tuple(shape)} and window {tuple(window)}"
            )
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap is at least 0 and below 1, got {overlap}")
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        z, y, x = (min(int(a), int(b)) for a, b in zip(shape, window, strict=True))
        self.size = (z, y, x)
        self.overlap = overlap
        z_starts, y_starts, x_starts = (
            _starts(total, part, overlap) for total, part in zip(self.shape, self.size, strict=True)
        )
        self.starts = (z_starts, y_starts, x_starts)
        self.overlap = overlap

    def __len__(self) -> int:
        return len(self.starts[0]) * len(self.starts[1]) * len(self.starts[2])

    def __iter__(self) -> Iterator[Window]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Window:
        """Return a window by its number, z slowest, x fastest."""
        if not 0 <= number < len(self):
            raise IndexError(f"window {number} of {len(self)}")
        row, k = divmod(number, len(self.starts[2]))
        i, j = divmod(row, len(self.starts[1]))
        start = (self.starts[0][i], self.starts[1][j], self.starts[2][k])
        return Window(start, (start[0] + self.size[0], start[1] + self.size[1], start[2] + self.size[2]))


def checked_window_grid(
    shape: Sequence[int], grid: Sequence[int], window: Sequence[int], overlap: float, smallest: int
) -> WindowGrid:
    """Return the windows that cover an image, refusing sizes that the network cannot take.

    Parameters
    ----------
    shape
        Voxels (z, y, x) of the image.
    grid
        Voxels (z, y, x) of the image at the model's voxel size.
    window
        Voxels (z, y, x) of a window.
    overlap
        Part of a window that its neighbour repeats.
    smallest
        Fewest voxels along an axis that the network takes.

    Raises
    ------
    ImageError
        If the image is smaller along an axis.
    RepmodeError
        If the window is.
    """
    if min(grid) < smallest:
        after = "" if tuple(grid) == tuple(shape) else f", after resampling {shape_text(grid)}"
        raise ImageError(
            f"the image is too small: {shape_text(shape)} voxels (z, y, x){after}; the model's network takes "
            f"no fewer than {smallest} along each axis"
        )
    if min(window) < smallest:
        raise RepmodeError(
            f"window {shape_text(window)} (z, y, x) is too small: the model's network takes no fewer than "
            f"{smallest} voxels along each axis"
        )
    return WindowGrid(grid, window, overlap)


def plan_windows(shape: Sequence[int], window: Sequence[int], overlap: float = 0.5) -> list[Window]:
    """Return all windows of a `WindowGrid`, z slowest, x fastest."""
    return list(WindowGrid(shape, window, overlap))


def _starts(total: int, part: int, overlap: float) -> list[int]:
    # Rounding must not cost a voxel: 20 * (1 - 0.9) is a little less than 2.
    step = max(1, int(part * (1 - overlap) + 1e-9))
    count = 1 + math.ceil((total - part) / step)
    return [min(i * step, total - part) for i in range(count)]


def gaussian_weights(
    window: Sequence[int], sigma_fraction: float = 0.125, *, kind: WindowWeights = "floored"
) -> NDArray[np.float32]:
    """Return the weights of a window's voxels: a Gaussian about its centre, as in nnU-Net and MONAI.

    The paper (section 4.1) weighs windows so.

    Parameters
    ----------
    window
        Voxels (z, y, x).
    sigma_fraction
        Standard deviation on each axis, as a part of the window's size on it.
    kind
        Centre and least weight.

    Returns
    -------
    ndarray
        float32 (z, y, x), the largest is 1 and the smallest above 0.
    """
    if min(window) < 1 or sigma_fraction <= 0:
        raise ValueError(f"window and sigma_fraction are positive, got {tuple(window)} and {sigma_fraction}")
    weights = np.ones((), np.float64)
    for size in window:
        x = np.arange(size, dtype=np.float64) - ((size - 1) / 2 if kind == "floored" else size // 2)
        weights = weights[..., None] * np.exp(-(x**2) / (2 * (sigma_fraction * size) ** 2))
    # The floor is relative to the Gaussian's own height: an even window has no voxel at its very centre.
    if kind == "floored":
        weights = np.maximum(weights, WEIGHT_FLOOR)
    result: NDArray[np.float32] = (weights / weights.max()).astype(np.float32)
    return result


def summed_weights(
    grid: WindowGrid,
    weights: NDArray[np.float32],
    box: tuple[slice, slice, slice],
    values: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return the sum of all windows' weights in a box of the volume, float32 (z, y, x).

    Windows are added in their order, so that a voxel's sum has the same bits in every box that holds it.

    Parameters
    ----------
    grid
        The windows.
    weights
        Of a window's voxels.
    box
        Voxels of the volume (slices with both ends).
    values
        A number for each window, by which its weights are multiplied; None multiplies them by nothing.
    """
    result = np.zeros([part.stop - part.start for part in box], np.float32)
    reaching = [
        [
            (place, start)
            for place, start in enumerate(starts)
            if start < part.stop and start + size > part.start
        ]
        for starts, size, part in zip(grid.starts, grid.size, box, strict=True)
    ]
    _, height, width = (len(starts) for starts in grid.starts)
    for (i, z), (j, y), (k, x) in product(*reaching):
        corner = (z, y, x)
        low = [max(start, part.start) for start, part in zip(corner, box, strict=True)]
        high = [
            min(start + size, part.stop) for start, size, part in zip(corner, grid.size, box, strict=True)
        ]
        in_box = tuple(slice(a - p.start, b - p.start) for a, b, p in zip(low, high, box, strict=True))
        in_window = tuple(slice(a - start, b - start) for a, b, start in zip(low, high, corner, strict=True))
        own = weights[in_window]
        result[in_box] += own if values is None else own * values[(i * height + j) * width + k]
    return result
