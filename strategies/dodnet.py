"""DoDNet: weights of the last layers are generated for each sample (Zhang et al., CVPR 2021)."""

from __future__ import annotations

from typing import ClassVar

from repmode_cl.nn.conditioned_unet import ConditionedUNet
from repmode_cl.nn.dodnet import DoDNet
from repmode_cl.strategies.conditioned import ConditionedStrategy

__all__ = ["DoDNetStrategy"]


class DoDNetStrategy(ConditionedStrategy):
    """A U-Net with a controller and a dynamic head; a structure owns a column of the controller, 153 numbers.

    ``frozen``: only that column is trained, which begins as the mean of the base's; it is a free bias of the
    generated layers. Generated weights depend on the patch, so that nothing is fused, and windows of prediction have
    the patches' size.
    """

    shares_base: ClassVar[bool] = True
    network_class: ClassVar[type[ConditionedUNet]] = DoDNet
