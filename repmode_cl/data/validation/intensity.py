"""Statistics of an image's voxels, and warnings about them: histogram, saturation, blank planes, voxel size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import VoxelSize
from repmode_cl.data.validation.absent_chunks import absent_chunks_note

__all__ = ["IntensityStatistics", "measure_intensity", "intensity_warnings", "voxel_size_warning", "BINS"]

#: Bins of a histogram.
BINS = 64
#: Share of voxels at one largest value from which an image counts as saturated: a spot of 30 x 30 voxels in a
#: million.
SATURATED = 1e-3
#: Share of voxels at the smallest value, and of the others at the largest, from which an image looks like a mask: of
#: nine masks and segmentations of real fields, four interpolated, the least had 0.83 and 0.05.
_MASK_BACKGROUND, _MASK_FOREGROUND = 0.5, 0.04
#: Fewest different values of an image whose brightest voxels count as saturated; one with fewer is a label image.
_FEWEST_VALUES = 16
#: Voxel edges (um) beyond which a stack of cells is unlikely: light resolves no less, a cell is no larger.
SMALLEST, LARGEST = 0.02, 10.0
#: Largest and smallest distance of planes, in widths of a voxel; planes hardly ever lie closer together than voxels.
THICKEST, THINNEST = 20.0, 0.5
#: Most planes that a message names.
_MOST_LISTED = 10


@dataclass(frozen=True)
class IntensityStatistics:
    """Statistics of the voxels of one channel.

    Attributes
    ----------
    low, high, mean, deviation
        Over all voxels.
    percentiles
        1st, 50th and 99th.
    edges, counts
        Histogram of `BINS` bins from `low` to `high`.
    saturated
        Share of voxels at the largest value; 0 where too few values occur to tell.
    lowest
        Share of voxels at the smallest value.
    at_limit
        Whether the largest value is the largest that the type can hold.
    constant_planes
        Numbers of the planes in which all voxels have one value.
    digest
        SHA-256 of the values; the same for any type, file or compression that they are stored in.
    """

    low: float
    high: float
    mean: float
    deviation: float
    percentiles: tuple[float, float, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    saturated: float
    lowest: float
    at_limit: bool
    constant_planes: tuple[int, ...]
    digest: str

    @property
    def like_mask(self) -> bool:
        """True if most voxels have the smallest value, and many of the others the largest."""
        return self.lowest >= _MASK_BACKGROUND and self.saturated >= _MASK_FOREGROUND * (1 - self.lowest) > 0


def measure_intensity(volume: NDArray[Any]) -> IntensityStatistics:
    """Measure a volume (Z, Y, X) whose voxels are finite and not all of one value."""
    low, high = float(volume.min()), float(volume.max())
    counts, edges = np.histogram(volume, BINS, (low, high))
    at_top = int(np.count_nonzero(volume == volume.max()))
    distinct = np.unique(volume[:: max(1, volume.shape[0] // 4), ::4, ::4]).size
    integer = volume.dtype.kind in "ui"
    saturated = at_top / volume.size if distinct >= _FEWEST_VALUES else 0.0
    # A sample tells percentiles well enough, and sorting all voxels would take longer than reading them.
    step = max(1, math.ceil((volume.size / 2e6) ** (1 / 3)))
    p1, p50, p99 = np.percentile(volume[::step, ::step, ::step].astype(np.float64), (1, 50, 99))
    flat = volume.reshape(volume.shape[0], -1)
    constant = np.flatnonzero(flat.min(axis=1) == flat.max(axis=1))
    digest = hashlib.sha256(str(volume.shape).encode())
    for plane in volume:  # a plane at a time: a float64 copy of a field would be four times the field
        digest.update(np.ascontiguousarray(plane, np.float64).tobytes())
    return IntensityStatistics(
        low,
        high,
        float(volume.mean(dtype=np.float64)),
        float(volume.std(dtype=np.float64)),
        (float(p1), float(p50), float(p99)),
        tuple(float(edge) for edge in edges),
        tuple(int(count) for count in counts),
        saturated,
        int(np.count_nonzero(volume == volume.min())) / volume.size,
        integer and high == float(np.iinfo(volume.dtype).max),
        tuple(int(plane) for plane in constant),
        digest.hexdigest(),
    )


def intensity_warnings(
    statistics: IntensityStatistics, image: str, absent_chunks: tuple[int, int] = (0, 0)
) -> Iterator[tuple[str, str]]:
    """Yield kind and message of each thing about an image that a person should look at.

    Parameters
    ----------
    statistics
        Of the image's voxels.
    image
        Name of the image, for messages.
    absent_chunks
        Number of chunks that are not stored, and of all.
    """
    if (note := absent_chunks_note(image, *absent_chunks)) is not None:
        yield "chunks absent", note
    if statistics.saturated >= SATURATED and statistics.like_mask:
        yield (
            "like a mask",
            f"{image}: {statistics.lowest:.0%} of the voxels have the smallest value, {statistics.low:g}, and "
            f"{statistics.saturated:.2%} the largest, {statistics.high:g}, as in a mask or a segmentation: a network "
            "can learn it as it is; if it is a recorded image, its contrast was cut off: use the original values",
        )
    elif statistics.saturated >= SATURATED:
        limit = ", the largest that its type holds" if statistics.at_limit else ""
        yield (
            "saturated",
            f"{image}: {statistics.saturated:.2%} of the voxels have the largest value, {statistics.high:g}{limit}: "
            "what is brighter was cut off; record with less light or gain",
        )
    planes = statistics.constant_planes
    if planes:
        listed = ", ".join(map(str, planes[:_MOST_LISTED])) + (", ..." if len(planes) > _MOST_LISTED else "")
        which = f"plane {listed} has" if len(planes) == 1 else f"planes {listed} have"
        yield (
            "constant plane",
            f"{image}: {which} one value in all voxels (a frame that was lost, or padding); exclude with a region",
        )


def voxel_size_warning(voxel_size: VoxelSize | None, path: Path) -> tuple[str, str] | None:
    """Return kind and message of what is unlikely about an image's voxel size; None where nothing is."""
    if voxel_size is None:
        return (
            "voxel size missing",
            f"{path}: no voxel size is known, so that the image keeps its grid; state it in voxel_size_zyx",
        )
    z, y, x = voxel_size
    why = ""
    if voxel_size == (1.0, 1.0, 1.0):
        why = "which some programs write where they know none"
    elif not all(SMALLEST <= edge <= LARGEST for edge in voxel_size):
        why = f"outside {SMALLEST:g} to {LARGEST:g} um (another unit?)"
    elif abs(y - x) > 0.5 * max(y, x):
        why = "whose width and height differ by half or more"
    elif z > THICKEST * max(y, x) or z < THINNEST * min(y, x):
        why = f"whose planes are {z / max(y, x):.2g} times as far apart as its voxels are wide"
    if not why:
        return None
    return (
        "voxel size unlikely",
        f"{path}: voxels of {z:g} x {y:g} x {x:g} um (z, y, x), {why}; see voxel_size_zyx",
    )
