"""PIPO-FAN: pyramids of inputs and outputs, adaptively fused (Fang and Yan, TMI 2020)."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor

from repmode_cl.config import StrategyConfig
from repmode_cl.nn.conditioned_unet import ConditionedUNet
from repmode_cl.nn.pipo_fan import PIPOFAN
from repmode_cl.strategies.conditioned import ConditionedStrategy

__all__ = ["PIPOFANStrategy"]


class PIPOFANStrategy(ConditionedStrategy):
    """A U-Net with a map for each level, and a net that says how much each counts.

    ``frozen``: a fresh 1 x 1 x 1 convolution for each map is trained. Fusion pools over the patch, so that windows of
    prediction have the patches' size.

    Parameters
    ----------
    deep_supervision
        Add the mean error of the maps of all levels to that of the fused map. The authors train the maps first, and
        then the fusion; here both are trained in one stage.
    """

    shares_base: ClassVar[bool] = True
    network_class: ClassVar[type[ConditionedUNet]] = PIPOFAN

    def __init__(self, *, deep_supervision: bool = False, **kwargs: Any) -> None:
        self.deep_supervision = deep_supervision
        self._maps: Tensor | None = None
        super().__init__(**kwargs)

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return how the network learns, and from which maps."""
        return {**super().own_options(options), "deep_supervision": options.deep_supervision}

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return a key of the network and of what it learns from."""
        key = super().shared_base(options)
        return f"{key}_deep" if key is not None and options.deep_supervision else key

    def forward(self) -> Tensor:
        """Predict; in training keep the maps of all levels for the loss, where it has them."""
        self._maps = None
        if not (self.is_training and self.deep_supervision):
            return super().forward()
        names = self.stream.names(self.mb_task_id.tolist())
        with self.precision.autocast():
            together: Tensor = cast(PIPOFAN, self.network).predict_maps(self.mb_x, names)
        self._maps = together[:, 1:]
        return together[:, :1]

    def criterion(self) -> Tensor:
        """Return the loss of the fused map, and in training with deep supervision the mean of the maps' losses too."""
        loss = super().criterion()
        if self._maps is None:
            return loss
        target = self.mb_y.to(self._maps.device)
        losses = [self.loss_of(one, target, count=self._voxels) for one in self._maps.split(1, dim=1)]
        return loss + sum(losses) / len(losses)
