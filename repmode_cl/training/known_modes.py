"""Fit of known structures to the images of a new one: which of their networks predicts it best, before training.

Measured on a fixed sample of the training patches, so that an addition can start from the weights of the best one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repmode_cl.data.patches.dataset import PatchDataset

__all__ = ["fit_of", "sample_of"]

#: Patches of the sample: one of each training image, within these limits.
_MIN_PATCHES, _MAX_PATCHES = 8, 32

#: Patches that are predicted at once: one by one they take five times as long.
_BATCH = 8


def sample_of(patches: PatchDataset) -> PatchDataset:
    """Return a few of the patches: the first ones, which depend only on the seed."""
    count = min(_MAX_PATCHES, max(_MIN_PATCHES, len(patches.samples)))
    return PatchDataset(
        patches.samples,
        patch=patches.patch,
        seed=patches.seed,
        length=count,
        flips=patches.flips,
        foreground=patches.foreground,
    )


def fit_of(plain: nn.Module, patches: PatchDataset, device: torch.device) -> dict[str, float]:
    """Return how well a network of one structure predicts the targets of `patches`.

    Parameters
    ----------
    plain
        Network (N, 1, Z, Y, X) -> (N, 1, Z, Y, X), in evaluation mode; it is moved to `device`.
    patches
        Such as `sample_of` returns.
    device
        Where it is computed.

    Returns
    -------
    dict of str to float
        ``mse`` and ``r2`` over all voxels within the masks; ``mse`` alone where the targets are constant, and nothing
        where the predictions are not finite.
    """
    plain = plain.to(device)
    squared_error = voxels = total = total_of_squares = 0.0
    low, high = math.inf, -math.inf
    with torch.inference_mode():
        for start in range(0, len(patches), _BATCH):
            batch = [patches[index] for index in range(start, min(start + _BATCH, len(patches)))]
            predictions = plain(torch.stack([signal for signal, _ in batch]).to(device))[:, 0]
            for prediction, (_, loaded) in zip(predictions, batch, strict=True):
                target = loaded.to(device)
                weight = target[1] if len(target) > 1 else torch.ones_like(target[0])
                squared_error += _weighted_sum(weight, (prediction - target[0]) ** 2)
                voxels += float(weight.sum(dtype=torch.float64))
                total += _weighted_sum(weight, target[0])
                total_of_squares += _weighted_sum(weight, target[0] ** 2)
                if len(counted := target[0][weight > 0]):
                    low, high = min(low, float(counted.min())), max(high, float(counted.max()))
    if not math.isfinite(squared_error) or not voxels:
        return {}
    variance = total_of_squares / voxels - (total / voxels) ** 2
    mse = squared_error / voxels
    # Of constant targets the variance may be a rounding error above 0.
    return {"mse": mse, "r2": 1 - mse / variance} if variance > 0 and low < high else {"mse": mse}


def _weighted_sum(weight: Tensor, values: Tensor) -> float:
    return float((weight * values).sum(dtype=torch.float64))
