"""Overlap, objects and cells after the same segmentation of truth and prediction.

The segmentation is a threshold, Otsu's or a given one, and objects are its connected components. It is the same
procedure for both, so that a structure that is found too pale is not missed for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from repmode_cl.errors import ImageError

__all__ = ["CELL_FEATURES", "cell_features", "feature_correlations", "foreground", "object_measures"]

Volume = NDArray[Any]
Mask = NDArray[np.bool_]

#: Features of a cell: voxels of its foreground, mean and deviation of its intensity, mean magnitude of its gradient.
CELL_FEATURES = ("area", "mean", "deviation", "texture")

#: Fewest cells whose features are correlated: of two the correlation is always 1 or -1.
_FEWEST_CELLS = 3


def foreground(volume: Volume, mask: Mask | None = None, threshold: float | None = None) -> Mask:
    """Segment a volume by a threshold.

    Parameters
    ----------
    volume
        (Z, Y, X).
    mask
        Voxels that count: only from these Otsu's threshold is taken, and all others are background.
    threshold
        Voxels above it are foreground; None takes Otsu's (1979).

    Returns
    -------
    ndarray
        bool, (Z, Y, X); all False for a constant volume without a threshold.
    """
    counted = volume if mask is None else volume[mask]
    if threshold is None:
        if counted.size == 0 or counted.min() == counted.max():
            return np.zeros(volume.shape, bool)
        from skimage.filters import threshold_otsu

        # Flat, because a last axis of 3 or 4 would be taken for colours.
        threshold = float(threshold_otsu(counted.ravel()))
    found: Mask = volume > threshold
    return found if mask is None else found & mask


def object_measures(
    prediction: Volume,
    truth: Volume,
    mask: Mask | None = None,
    threshold: float | None = None,
    min_size: int = 1,
) -> dict[str, float]:
    """Compare the segmentations of a prediction and its truth.

    Parameters
    ----------
    prediction, truth
        Volumes of one shape.
    mask, threshold
        As of `foreground`.
    min_size
        Voxels of the smallest object that is counted.

    Returns
    -------
    dict
        ``dice`` and ``iou`` of the foregrounds (NaN where both are empty), number of connected components of
        ``objects_truth`` and ``objects_prediction``, and their mean ``size_truth`` and ``size_prediction`` in voxels
        (NaN without any).
    """
    true, predicted = foreground(truth, mask, threshold), foreground(prediction, mask, threshold)
    common, total = int(np.count_nonzero(true & predicted)), int(true.sum()) + int(predicted.sum())
    union = total - common
    measures = {
        "dice": 2 * common / total if total else math.nan,
        "iou": common / union if union else math.nan,
    }
    for name, segmented in (("truth", true), ("prediction", predicted)):
        sizes = _object_sizes(segmented, min_size)
        measures[f"objects_{name}"] = float(len(sizes))
        measures[f"size_{name}"] = float(np.mean(sizes)) if len(sizes) else math.nan
    return measures


def _object_sizes(segmented: Mask, min_size: int) -> NDArray[np.intp]:
    """Return the voxels of each object: voxels that share a face are one."""
    labels, _ = ndimage.label(segmented)
    sizes = np.bincount(labels.ravel())[1:]
    return sizes[sizes >= min_size]


def cell_features(
    volume: Volume, segmented: Mask, labels: NDArray[np.integer[Any]]
) -> dict[str, list[float]]:
    """Return features of each labelled cell.

    Parameters
    ----------
    volume
        (Z, Y, X).
    segmented
        Its foreground.
    labels
        Number of the cell that each voxel belongs to; 0 for none.

    Returns
    -------
    dict
        `CELL_FEATURES` -> one value for each cell, by increasing label.

    Raises
    ------
    ImageError
        If the shapes differ.
    """
    if not volume.shape == segmented.shape == labels.shape:
        raise ImageError(
            f"labels have shape {labels.shape}, the image {volume.shape}: they must show the same voxels"
        )
    numbers, labels = np.unique(labels, return_inverse=True)
    labels = labels.reshape(volume.shape)
    # Consecutive: scipy computes, and warns about, the labels between that do not occur.
    cells = np.flatnonzero(numbers)
    values = volume.astype(np.float64)
    # An axis of one plane has no gradient.
    slopes = [np.gradient(values, axis=axis) for axis in range(3) if values.shape[axis] > 1]
    gradient = np.sqrt(sum((slope * slope for slope in slopes), np.zeros(values.shape)))
    return {
        "area": [float(value) for value in ndimage.sum_labels(segmented, labels, cells)],
        "mean": [float(value) for value in ndimage.mean(values, labels, cells)],
        "deviation": [float(value) for value in ndimage.standard_deviation(values, labels, cells)],
        "texture": [float(value) for value in ndimage.mean(gradient, labels, cells)],
    }


def feature_correlations(
    truth: Mapping[str, Sequence[float]], prediction: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """Return Pearson's correlation of each feature over cells; a feature is left out where it is undefined.

    Parameters
    ----------
    truth, prediction
        Features of the same cells, in the same order.
    """
    correlations = {}
    for name, values in truth.items():
        true, predicted = np.asarray(values, float), np.asarray(prediction[name], float)
        if len(true) < _FEWEST_CELLS or np.ptp(true) == 0 or np.ptp(predicted) == 0:
            continue
        correlations[name] = float(np.corrcoef(true, predicted)[0, 1])
    return correlations
