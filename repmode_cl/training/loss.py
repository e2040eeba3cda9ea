"""Loss: mean squared error over the voxels that count (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["masked_mse", "count_voxels", "voxel_loss"]


def masked_mse(output: Tensor, target: Tensor, *, count: float | None = None) -> Tensor:
    """Return the mean squared error in float32.

    Parameters
    ----------
    output
        Prediction, (N, 1, Z, Y, X), any precision.
    target
        (N, 1, Z, Y, X), or (N, 2, Z, Y, X) whose second channel weighs each voxel with 0 or 1.
    count
        For a part of a larger batch: the voxels that count in all of it. The losses of the parts then sum to that of
        the whole batch, and so do their gradients, however unevenly masks are spread over the parts.

    Returns
    -------
    Tensor
        Scalar; 0 where no voxel counts. In float64 if `output` is.
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    squared = (output.to(dtype) - target[:, :1].to(dtype)).square()
    if target.shape[1] == 1:
        return squared.mean() if count is None else squared.sum() / count
    weight = target[:, 1:].to(dtype)
    total = (squared * weight).sum()
    return total / (weight.sum().clamp_min(1.0) if count is None else max(count, 1.0))


def count_voxels(target: Tensor) -> float:
    """Return the number of voxels that `masked_mse` divides by for `target`."""
    if target.shape[1] == 1:
        return float(target.numel())
    return float(target[:, 1:].sum(dtype=torch.float64))


def voxel_loss(
    criterion: Callable[[Tensor, Tensor], Tensor],
    output: Tensor,
    target: Tensor,
    *,
    count: float | None = None,
) -> Tensor:
    """Return a user's loss of the voxels that count, in float32.

    Parameters
    ----------
    criterion
        Called with predictions and targets of the voxels that count, each of shape (number of voxels,): a target with a
        mask has two channels, which would broadcast against the one of a prediction. ``torch.nn.MSELoss()`` is
        `masked_mse`, to the bit.
    output, target, count
        As for `masked_mse`. With `count` the criterion must be a mean over voxels.
    """
    if type(criterion) is nn.MSELoss and criterion.reduction == "mean":
        return masked_mse(output, target, count=count)
    dtype = torch.promote_types(output.dtype, torch.float32)
    predicted, true = output[:, 0].to(dtype).flatten(), target[:, 0].to(dtype).flatten()
    if target.shape[1] > 1:
        counts = (target[:, 1] > 0).flatten()
        predicted, true = predicted[counts], true[counts]
    if not len(true):
        return predicted.sum()  # 0, with a gradient: no voxel counts
    loss = criterion(predicted, true)
    if loss.ndim:
        raise ValueError(
            f"the criterion returned a tensor of shape {list(loss.shape)}: a loss is one number, such as with "
            "reduction='mean'"
        )
    return loss if count is None else loss * (len(true) / max(count, 1.0))
