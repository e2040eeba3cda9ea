"""One pass over an image's voxels: their histogram, saturation, blank planes, and a digest of what they show."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Measure", "measure", "remarks", "size_remark"]

#: Bins of a histogram.
BINS = 64
#: Share of voxels at one largest value from which an image counts as saturated: a spot of 30 x 30 voxels in a
#: million.
SATURATED = 1e-3
#: Fewest values that occur, from which voxels at the largest one are saturation and no label.
_SHADES = 16
#: Voxel edges (um) beyond which a stack of cells is unlikely: light resolves no less, a cell is no larger.
SMALLEST, LARGEST = 0.02, 10.0
#: Times that planes may lie farther apart than voxels are wide; they hardly ever lie closer together.
THICKEST, THINNEST = 20.0, 0.5
#: Share of an image's chunks that are not stored from which that is told: one that was blank may be left out.
ABSENT = 0.1
#: Planes that a message names at most.
_LISTED = 10


@dataclass(frozen=True)
class Measure:
    """What the voxels of one channel are like.

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
    at_limit
        Whether that is the largest value that the type can hold.
    constant_planes
        Numbers of the planes in which all voxels are alike.
    digest
        SHA-256 of the values, whatever type, file or compression they are stored in.
    """

    low: float
    high: float
    mean: float
    deviation: float
    percentiles: tuple[float, float, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    saturated: float
    at_limit: bool
    constant_planes: tuple[int, ...]
    digest: str


def measure(volume: NDArray[Any]) -> Measure:
    """Measure a volume (Z, Y, X) whose voxels are finite and not all alike."""
    low, high = float(volume.min()), float(volume.max())
    counts, edges = np.histogram(volume, BINS, (low, high))
    at_top = int(np.count_nonzero(volume == volume.max()))
    shades = np.unique(volume[:: max(1, volume.shape[0] // 4), ::4, ::4]).size
    integer = volume.dtype.kind in "ui"
    saturated = at_top / volume.size if shades >= _SHADES else 0.0
    # A sample tells percentiles well enough, and sorting all voxels would take longer than reading them.
    step = max(1, math.ceil((volume.size / 2e6) ** (1 / 3)))
    p1, p50, p99 = np.percentile(volume[::step, ::step, ::step].astype(np.float64), (1, 50, 99))
    flat = volume.reshape(volume.shape[0], -1)
    constant = np.flatnonzero(flat.min(axis=1) == flat.max(axis=1))
    digest = hashlib.sha256(str(volume.shape).encode())
    for plane in volume:  # a plane at a time: a float64 copy of a field would be four times the field
        digest.update(np.ascontiguousarray(plane, np.float64).tobytes())
    return Measure(
        low,
        high,
        float(volume.mean(dtype=np.float64)),
        float(volume.std(dtype=np.float64)),
        (float(p1), float(p50), float(p99)),
        tuple(float(edge) for edge in edges),
        tuple(int(count) for count in counts),
        saturated,
        integer and high == float(np.iinfo(volume.dtype).max),
        tuple(int(plane) for plane in constant),
        digest.hexdigest(),
    )


def remarks(found: Measure, place: str, absent: tuple[int, int] = (0, 0)) -> Iterator[tuple[str, str]]:
    """Yield what a person should look at, as kind and message; `absent` parts of all are not stored."""
    missing, parts = absent
    if missing and missing >= ABSENT * parts:
        yield (
            "chunks absent",
            f"{place}: {missing} of {parts} chunks are not there, and read as blank: some programs leave out chunks "
            "that are blank, but a folder that was not copied whole looks the same; compare it with its source, or "
            "copy it again",
        )
    if found.saturated >= SATURATED:
        limit = ", the largest that its type holds" if found.at_limit else ""
        yield (
            "saturated",
            f"{place}: {found.saturated:.2%} of the voxels have the largest value, {found.high:g}{limit}: what is "
            "brighter was cut off; record with less light or gain",
        )
    planes = found.constant_planes
    if planes:
        listed = ", ".join(map(str, planes[:_LISTED])) + (", ..." if len(planes) > _LISTED else "")
        which = f"plane {listed} is" if len(planes) == 1 else f"planes {listed} are"
        yield (
            "constant plane",
            f"{place}: {which} the same value all over (a frame that was lost, or padding); cut off by a region",
        )


def size_remark(voxel: tuple[float, float, float] | None, path: Path) -> tuple[str, str] | None:
    """Return kind and message of what is unlikely about a voxel size (z, y, x) in um, if anything."""
    if voxel is None:
        return (
            "voxel size missing",
            f"{path}: no voxel size is known, so that the image keeps its grid; state it in voxel_size_zyx",
        )
    z, y, x = voxel
    why = ""
    if voxel == (1.0, 1.0, 1.0):
        why = "which some programs write where they know none"
    elif not all(SMALLEST <= edge <= LARGEST for edge in voxel):
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
