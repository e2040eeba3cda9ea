"""repmode_cl.strategies.mas."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from repmode_cl.strategies.regularization import GradientImportance

__all__ = ["MAS"]


class MAS(GradientImportance):
    """Memory aware synapses (Aljundi et al., ECCV 2018): how much a parameter moves the square of the prediction.

    The mean magnitude of the gradient of the prediction's mean square; targets have no part in it.
    """

    default_strength: ClassVar[float] = 1.0

    def _quantity(self, output: Tensor, target: Tensor) -> Tensor:
        return output.float().square().mean()

    def _of_gradient(self, gradient: Tensor) -> Tensor:
        return gradient.abs()
