"""Voxel metrics of a prediction on disk: those of `repmode_cl.metrics.image_metrics`, plane by plane."""

from __future__ import annotations

import math

import numpy as np

from repmode_cl.data.preprocessing.normalisation import ZScore, strips
from repmode_cl.errors import ImageError
from repmode_cl.inference.volume_source import VolumeSource

__all__ = ["compare_volumes"]


def compare_volumes(prediction: VolumeSource, target: VolumeSource, score: ZScore) -> dict[str, float]:
    """Compare a prediction with the truth, both read once and in pieces, in float64.

    Parameters
    ----------
    prediction
        In z-score units.
    target
        The truth of the same shape, in its own units.
    score
        z-score of the truth.

    Returns
    -------
    dict
        ``mse``, ``mae``, ``r2`` and ``pearson``, the last NaN for a constant prediction.

    Raises
    ------
    ImageError
        If the shapes differ or the truth is constant.
    """
    if prediction.shape != target.shape:
        raise ImageError(
            f"prediction has shape {prediction.shape}, target {target.shape}: they must be equal"
        )
    size = math.prod(target.shape)
    squares = absolute = 0.0
    sums = np.zeros(5)
    low, high = math.inf, -math.inf
    for box in strips(target.shape):
        p = prediction.read(box).astype(np.float64)
        y = score(target.read(box)).astype(np.float64)
        error = p - y
        squares += float(np.square(error).sum())
        absolute += float(np.abs(error).sum())
        # Both are near z-scores: no shift is needed to keep their digits.
        sums += [float(part) for part in (p.sum(), y.sum(), (p * p).sum(), (y * y).sum(), (p * y).sum())]
        low, high = min(low, float(p.min())), max(high, float(p.max()))
    p_mean, y_mean, pp, yy, py = (float(part) / size for part in sums)
    variance = yy - y_mean**2
    if not variance > 0:
        raise ImageError("the target is constant: R2 and correlation are undefined for it")
    mse = squares / size
    spread = pp - p_mean**2
    pearson = math.nan
    if low < high and spread > 0:
        pearson = min(1.0, max(-1.0, (py - p_mean * y_mean) / math.sqrt(spread * variance)))
    return {"mse": mse, "mae": absolute / size, "r2": 1.0 - mse / variance, "pearson": pearson}
