"""Intervals about a prediction, calibrated on held-out images (split conformal prediction, by group of images).

The score of a voxel is its absolute error over its own scale, spread + floor. Voxels of an image belong together, and
so do images of one group, such as parts of one field: groups, not voxels, are what is exchangeable. Each group of
calibration images counts equally (and so does each image in its group), and the image to come counts with one part in
n + 1, of which nothing is known. Its voxels may all be within the interval or all beyond it; counting half of them puts
the expected coverage within 1 / (2 (n + 1)) of the level, whatever the distribution is. (Counting none of them is the
usual, one-sided guarantee of hierarchical conformal prediction: Dunn, Wasserman and Ramdas, JASA 2023; Lee, Barber and
Willett, 2023. With 30 groups its 90 % are 90 to 93.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repmode_cl.store.reliability import Calibration

__all__ = [
    "LEVELS",
    "FLOOR",
    "ImageCoverage",
    "calibrate",
    "conformal_factor",
    "coverage_band",
    "image_coverage",
]

#: Coverages that are calibrated; `predict --confidence` uses the one of `CONFIDENCE`.
LEVELS = (0.5, 0.8, 0.9, 0.95)
CONFIDENCE = 0.9
#: In z-score units, added to the spread of flips: where flips agree by chance, an error is still possible.
FLOOR = 0.1
#: Voxels of an image that are used at most, evenly spaced.
_MAX_VOXELS = 200_000


def conformal_factor(
    scores: Sequence[NDArray[np.floating]], level: float, groups: Sequence[Hashable] | None = None
) -> float:
    """Return the factor of an interval whose expected coverage of an image to come is near `level`.

    Parameters
    ----------
    scores
        Of each calibration image, the scores of its voxels, sorted.
    level
        Between 0 and 1.
    groups
        Group of each image; None where each is one by itself.

    Returns
    -------
    float
        The smallest score at which the mean over the n groups, of the mean over their images, of the share of voxels at
        or below it is at least ``level + (level - 1/2) / n``; the largest of all, where that is above 1.
    """
    groups = range(len(scores)) if groups is None else groups
    members = Counter(groups)
    wanted = level + (level - 0.5) / len(members)
    values = np.concatenate(scores)
    shares = np.concatenate(
        [
            np.full(len(one), 1.0 / (len(one) * len(members) * members[group]))
            for one, group in zip(scores, groups, strict=True)
        ]
    )
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(shares[order])
    # Rounding of the sum must not cost a whole step.
    place = int(np.searchsorted(reached, wanted - 1e-9))
    return float(values[order[min(place, len(order) - 1)]])


def coverage_band(groups: int, level: float) -> tuple[float, float]:
    """Return the bounds of the expected coverage of an image to come, by calibration on so many groups of images."""
    half = 0.5 / (groups + 1)
    return max(0.0, level - half), min(1.0, level + half)


def voxel_scores(
    prediction: NDArray[np.float32],
    spread: NDArray[np.float32],
    target: NDArray[np.floating],
    mask: NDArray[np.bool_] | None = None,
    *,
    floor: float = FLOOR,
) -> NDArray[np.float64]:
    """Return the sorted scores of an image's voxels, of `_MAX_VOXELS` evenly spaced ones where there are more.

    Parameters
    ----------
    prediction, spread, target
        (Z, Y, X), z-score units.
    mask
        Voxels that count; None counts all.
    floor
        Added to the spread.
    """
    inside = np.flatnonzero(np.ones(target.shape, bool) if mask is None else mask)
    step = max(1, -(-len(inside) // _MAX_VOXELS))
    # A step that shared a factor with a row or a plane would meet the same few columns again and again.
    while math.gcd(step, math.prod(target.shape[1:])) > 1:
        step += 1
    inside = inside[::step]
    error = np.abs(prediction.ravel()[inside].astype(np.float64) - target.ravel()[inside])
    return np.sort(error / (spread.ravel()[inside].astype(np.float64) + floor))


def calibrate(
    scores: Iterable[NDArray[np.float64]],
    *,
    split: str,
    flips: Sequence[str],
    floor: float = FLOOR,
    groups: Sequence[Hashable] | None = None,
) -> Calibration | None:
    """Return the calibration by the scores of held-out images (`voxel_scores`); None without an image.

    Parameters
    ----------
    scores
        Of each image.
    split
        ``test`` or ``val``.
    flips
        Axes that windows were flipped on.
    floor
        That of the scores.
    groups
        Group of each image, such as the field of which it is a part; None where each is one by itself.
    """
    every = list(scores)
    groups = range(len(every)) if groups is None else groups
    used = [(one, group) for one, group in zip(every, groups, strict=True) if len(one)]
    if not used:
        return None
    images, of_images = [one for one, _ in used], [group for _, group in used]
    factors = [(level, max(conformal_factor(images, level, of_images), 1e-6)) for level in LEVELS]
    return Calibration(len(images), split, tuple(flips), floor, tuple(factors), len(set(of_images)))


@dataclass(frozen=True)
class ImageCoverage:
    """Coverage and sharpness of an image's intervals.

    Attributes
    ----------
    coverage
        Share of voxels whose truth lies in their interval.
    width
        Mean width of the intervals, z-score units.
    """

    coverage: float
    width: float


def image_coverage(
    prediction: NDArray[np.float32],
    spread: NDArray[np.float32],
    target: NDArray[np.floating],
    calibration: Calibration,
    level: float = CONFIDENCE,
    mask: NDArray[np.bool_] | None = None,
) -> ImageCoverage:
    """Return coverage and sharpness of an image's intervals; parameters as of `voxel_scores`."""
    half = calibration.factor(level) * (spread.astype(np.float64) + calibration.floor)
    inside = np.abs(prediction.astype(np.float64) - target) <= half
    chosen = slice(None) if mask is None else mask
    return ImageCoverage(float(inside[chosen].mean()), float(2 * half[chosen].mean()))
