"""EWC (elastic weight consolidation): a penalty by the Fisher information of earlier experiences."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from repmode_cl.strategies.regularization import GradientImportance

__all__ = ["EWC"]


class EWC(GradientImportance):
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017): the diagonal of the empirical Fisher information.

    The information is that of a Gaussian of unit variance around the prediction, for each patch: the mean square of the
    gradient of the patch's mean squared error.
    """

    shares_base: ClassVar[bool] = True
    default_strength: ClassVar[float] = 1000.0

    def _quantity(self, output: Tensor, target: Tensor) -> Tensor:
        return self.loss_of(output, target)

    def _importance_of_gradient(self, gradient: Tensor) -> Tensor:
        return gradient.square()
