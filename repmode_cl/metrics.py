"""Voxel metrics of a predicted volume: one definition of each for every table of the project.

All are computed per image in float64 on z-scored volumes, and averaged over images afterwards (paper,
section 4.1). For a target that was z-scored as a whole R2 is 1 - MSE, so the two are one piece of evidence;
Pearson's r is another, because it does not see a wrong scale or offset.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import ImageError

__all__ = ["image_metrics", "error_metrics", "mean_metrics", "HIGHER_IS_BETTER"]

#: Metric -> whether a larger value is a better one.
HIGHER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {"mse": False, "mae": False, "r2": True, "pearson": True}
)


def image_metrics(
    prediction: NDArray[Any], target: NDArray[Any], mask: NDArray[Any] | None = None
) -> dict[str, float]:
    """Compute the metrics of a prediction.

    Parameters
    ----------
    prediction, target
        Volumes of one shape, (Z, Y, X) as a rule, in z-score units.
    mask
        Volume of the same shape: only its non-zero voxels count. None counts all.

    Returns
    -------
    dict
        ``mse``, ``mae``, ``r2`` (1 - MSE / variance of the target; negative where the target's mean would
        predict better) and ``pearson``. A prediction that holds NaN or infinity gives NaN for all four: a
        network that diverged is a result, and ends no benchmark. A constant prediction has no correlation
        with anything: its ``pearson`` is NaN, the others are defined.

    Raises
    ------
    ImageError
        If shapes differ, no voxel counts, or the target is constant or not finite where it counts, so that
        R2 is undefined.
    """
    p, y = _counting_voxels(prediction, target, mask)
    centred = y - y.mean()
    variance = float(np.mean(centred * centred))
    # The range is checked too: the variance of equal numbers can round to something above zero.
    if y.max() == y.min() or variance == 0.0:
        raise ImageError(
            f"the target is {y[0]:g} in every voxel that counts: R2 and correlation are undefined for it; "
            "leave this image out or widen its mask"
        )
    if not np.isfinite(p).all():
        return dict.fromkeys(HIGHER_IS_BETTER, math.nan)
    errors = _errors(p, y)
    return {**errors, "r2": 1.0 - errors["mse"] / variance, "pearson": _pearson(p, centred)}


def error_metrics(
    prediction: NDArray[Any], target: NDArray[Any], mask: NDArray[Any] | None = None
) -> dict[str, float]:
    """Compute ``mse`` and ``mae`` of a prediction, as `image_metrics` does, also where the target is constant.

    Raises
    ------
    ImageError
        If shapes differ, no voxel counts, or the target is not finite where it counts.
    """
    p, y = _counting_voxels(prediction, target, mask)
    return _errors(p, y) if np.isfinite(p).all() else {"mse": math.nan, "mae": math.nan}


def _counting_voxels(
    prediction: NDArray[Any], target: NDArray[Any], mask: NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return prediction and target where they count, checked, as flat arrays of float64."""
    predicted, truth = np.asarray(prediction), np.asarray(target)
    if predicted.shape != truth.shape:
        raise ImageError(f"prediction has shape {predicted.shape}, target {truth.shape}: they must be equal")
    if mask is not None:
        counts = np.asarray(mask)
        if counts.shape != truth.shape:
            raise ImageError(f"mask has shape {counts.shape}, target {truth.shape}: they must be one volume")
        selected = counts != 0
        predicted, truth = predicted[selected], truth[selected]
    if truth.size == 0:
        raise ImageError("no voxel to compare: the volume is empty or its mask excludes every voxel")
    y = truth.astype(np.float64).ravel()
    if not np.isfinite(y).all():
        raise ImageError("the target holds NaN or infinite voxels: repair it or mask them out")
    return predicted.astype(np.float64).ravel(), y


def _errors(p: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, float]:
    error = p - y
    return {"mse": float(np.mean(error * error)), "mae": float(np.mean(np.abs(error)))}


def _pearson(p: NDArray[np.float64], centred: NDArray[np.float64]) -> float:
    if p.max() == p.min():
        return math.nan
    q = p - p.mean()
    # Scaled, so that the squares of very small numbers do not vanish.
    q, c = q / np.abs(q).max(), centred / np.abs(centred).max()
    r = float(np.dot(q, c) / (np.linalg.norm(q) * np.linalg.norm(c)))
    return min(1.0, max(-1.0, r))  # rounding can step outside


def mean_metrics(per_image: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Average the metrics of several images, each image counting the same.

    Parameters
    ----------
    per_image
        Results of `image_metrics`. An image's NaN makes the average NaN: no image is left out silently.

    Raises
    ------
    ValueError
        If there is no image.
    """
    rows = list(per_image)
    if not rows:
        raise ValueError("no image to average over")
    return {metric: math.fsum(row[metric] for row in rows) / len(rows) for metric in rows[0]}
