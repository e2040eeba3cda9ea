"""Volumes of a preview: a part of an image, small enough to look at, and what is predicted of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box

__all__ = ["PREVIEW_SIZE", "PreviewVolumes", "preview_box", "voxel_size_on_grid"]

#: Most voxels (z, y, x) of a preview's box.
PREVIEW_SIZE = (48, 256, 256)


@dataclass(frozen=True)
class PreviewVolumes:
    """A part of an image and its predictions, all (Z, Y, X) float32 of one grid.

    Attributes
    ----------
    source
        The image's name, without folders.
    light
        Transmitted light, in its own units.
    predictions
        For each structure its prediction in z-score units.
    voxel_size
        um (z, y, x) of this grid; None where the image's is unknown.
    box
        Place of the part on the grid.
    grid
        Voxels (Z, Y, X) of the whole image on this grid.
    scene, t
        Which of several scenes or time points; None where the image has one.
    notes
        Remarks of the prediction.
    confidence
        For structures with a confidence channel: half-width of the interval, in z-score units.
    existed
        Whether the predictions were read from files that were there already.
    """

    source: str
    light: NDArray[np.float32]
    predictions: Mapping[str, NDArray[np.float32]]
    voxel_size: tuple[float, float, float] | None
    box: Box
    grid: tuple[int, int, int]
    scene: int | str | None = None
    t: int | None = None
    notes: Sequence[str] = field(default=())
    confidence: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    existed: bool = False

    @property
    def is_whole(self) -> bool:
        """True if the part is the whole image."""
        return self.light.shape == self.grid


def preview_box(shape: Sequence[int], most: int = math.prod(PREVIEW_SIZE)) -> Box:
    """Return the part of a volume that is shown.

    Parameters
    ----------
    shape
        Voxels (Z, Y, X).
    most
        A volume of at most so many voxels is shown whole; of a larger one the middle, `PREVIEW_SIZE` at most.
    """
    if math.prod(shape) <= most:
        sizes = tuple(shape)
    else:
        sizes = tuple(min(a, b) for a, b in zip(shape, PREVIEW_SIZE, strict=True))
    z, y, x = (
        slice((total - size) // 2, (total - size) // 2 + size)
        for total, size in zip(shape, sizes, strict=True)
    )
    return z, y, x


def voxel_size_on_grid(
    voxel_size: tuple[float, float, float] | None, shape: Sequence[int], grid: Sequence[int]
) -> tuple[float, float, float] | None:
    """Return the um (z, y, x) of a voxel of `grid`, which covers the same field as `shape` voxels of the image."""
    if voxel_size is None:
        return None
    z, y, x = (size * a / b for size, a, b in zip(voxel_size, shape, grid, strict=True))
    return z, y, x
