"""MAS (memory aware synapses): a penalty by how much parameters change the predictions of earlier experiences."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from repmode_cl.strategies.regularization import GradientImportance
from repmode_cl.training import masked_mse

__all__ = ["MAS"]


class MAS(GradientImportance):
    """Memory aware synapses (Aljundi et al., ECCV 2018): how much a parameter changes the square of the prediction.

    The importance is the mean magnitude of the gradient of the prediction's mean square, over the voxels that count; it
    does not use targets.
    """

    shares_base: ClassVar[bool] = True
    default_strength: ClassVar[float] = 1.0

    def _quantity(self, output: Tensor, target: Tensor) -> Tensor:
        nothing = target.clone()
        nothing[:, :1] = 0
        return masked_mse(output, nothing)  # of the voxels that count

    def _importance_of_gradient(self, gradient: Tensor) -> Tensor:
        return gradient.abs()
