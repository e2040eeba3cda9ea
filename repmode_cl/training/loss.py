"""The loss: mean squared error over the voxels that count (paper, section 4.1)."""

from __future__ import annotations

from torch import Tensor

__all__ = ["masked_mse"]


def masked_mse(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error in float32.

    Parameters
    ----------
    output
        Prediction, (N, 1, Z, Y, X), any precision.
    target
        (N, 1, Z, Y, X), or (N, 2, Z, Y, X) whose second channel weighs each voxel with 0 or 1.

    Returns
    -------
    Tensor
        Scalar; 0 where no voxel counts.
    """
    squared = (output.float() - target[:, :1].float()).square()
    if target.shape[1] == 1:
        return squared.mean()
    weight = target[:, 1:].float()
    return (squared * weight).sum() / weight.sum().clamp_min(1.0)
