"""EWC (elastic weight consolidation): a penalty by the Fisher information of earlier experiences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repmode_cl.config import StrategyConfig
from repmode_cl.data.sample import digest_of
from repmode_cl.errors import ConfigError
from repmode_cl.strategies.regularization import GradientImportance
from repmode_cl.training import count_voxels, masked_mse

__all__ = ["EWC"]

_FISHERS = ("empirical", "gauss_newton")


class EWC(GradientImportance):
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017): a penalty by the Fisher information's diagonal.

    ``fisher="empirical"`` is the mean square of the gradient of a patch's mean squared error: it takes the residuals of
    the training images for draws of the model, and vanishes where they do.

    ``fisher="gauss_newton"`` is the Fisher information itself. A mean squared error over n voxels is, but for a
    constant, the negative logarithm of a Gaussian of variance n / 2 around the output f, whose Fisher information is
    ``2 / n * J^T J`` with the Jacobian J of f (Martens, "New insights and perspectives on the natural gradient method",
    JMLR 2020, section 9): it equals the Gauss-Newton matrix of the loss and needs no targets. Its diagonal is estimated
    without bias by the squared gradients of ``sqrt(2 / n) * sum_k v_k f_k`` with random signs v. The output is that of
    the patch's own structure; voxels that a mask leaves out do not count.

    Parameters
    ----------
    fisher
        ``"empirical"`` or ``"gauss_newton"``.
    probes
        Random sign vectors for each patch, with ``"gauss_newton"``.
    decay
        Factor of the importances of before when those of an experience are added (gamma of online EWC: Schwarz et al.,
        ICML 2018); 1 sums them, 0 keeps only the last.
    strength
        As of `RegularizationStrategy`. Of ``"gauss_newton"`` 1 is the default: the penalty is then the diagonal
        second-order approximation of earlier experiences' losses.
    """

    shares_base: ClassVar[bool] = True
    default_strength: ClassVar[float] = 1000.0
    #: Default strength with ``fisher="gauss_newton"``, whose importances have another unit.
    gauss_newton_strength: ClassVar[float] = 1.0

    def __init__(
        self,
        *,
        fisher: str = "empirical",
        probes: int | None = None,
        decay: float | None = None,
        strength: float | None = None,
        **kwargs: Any,
    ) -> None:
        if fisher not in _FISHERS:
            raise ConfigError(f"fisher is {fisher!r}: give {' or '.join(_FISHERS)}")
        if probes is not None and (fisher != "gauss_newton" or probes < 1):
            raise ConfigError(
                f"probes is {probes}: a whole number of at least 1, with fisher='gauss_newton', is needed"
            )
        if decay is not None and not 0 <= decay <= 1:
            raise ConfigError(f"decay is {decay}: give a number from 0 to 1")
        if strength is None and fisher == "gauss_newton":
            strength = self.gauss_newton_strength
        super().__init__(strength=strength, **kwargs)
        self.fisher, self.probes = fisher, probes or 1
        self.decay = 1.0 if decay is None else decay
        if fisher == "gauss_newton" and not _is_squared_error(self._criterion):
            raise ConfigError(
                "fisher='gauss_newton' is the Fisher information of the mean squared error, and another criterion is "
                "given: leave the criterion out, or take fisher='empirical'"
            )

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the strength of the penalty, the kind of its importances and their decay."""
        given = {key: getattr(options, key) for key in ("probes", "decay")}
        if options.fisher != "empirical":
            given["fisher"] = options.fisher
        return super().own_options(options) | {
            key: value for key, value in given.items() if value is not None
        }

    @classmethod
    def default_strength_of(cls, options: StrategyConfig) -> float | None:
        """Return the default strength of the kind of Fisher information."""
        return cls.gauss_newton_strength if options.fisher == "gauss_newton" else cls.default_strength

    def _quantities(self, number: int, item: int, output: Tensor, target: Tensor) -> Iterator[Tensor]:
        if self.fisher == "empirical":
            yield from super()._quantities(number, item, output, target)
            return
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(digest_of("probes", self.seed, number, item)[:7], "big"))
        scale = math.sqrt(2 / max(count_voxels(target), 1.0))
        for _ in range(self.probes):
            signs = torch.randint(0, 2, output.shape, generator=generator).mul_(2).sub_(1).to(output)
            counted = signs if target.shape[1] == 1 else signs * target[:, 1:].to(output)
            yield scale * (counted * output).sum()

    def _quantity(self, output: Tensor, target: Tensor) -> Tensor:
        return self.loss_of(output, target)

    def _importance_of_gradient(self, gradient: Tensor) -> Tensor:
        return gradient.square()


def _is_squared_error(criterion: Any) -> bool:
    return criterion is masked_mse or (type(criterion) is nn.MSELoss and criterion.reduction == "mean")
