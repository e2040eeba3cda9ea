"""PIPO-FAN: pyramids of inputs and outputs, adaptively fused (Fang and Yan, TMI 2020)."""

from __future__ import annotations

from typing import ClassVar

from repmode_cl.nn.conditioned_unet import ConditionedUNet
from repmode_cl.nn.pipo_fan import PIPOFAN
from repmode_cl.strategies.conditioned import ConditionedStrategy

__all__ = ["PIPOFANStrategy"]


class PIPOFANStrategy(ConditionedStrategy):
    """A U-Net with a map for each level, and a net that says how much each counts.

    ``frozen``: a fresh 1 x 1 x 1 convolution for each map is trained. Fusion pools over the patch, so that windows of
    prediction have the patches' size.
    """

    shares_base: ClassVar[bool] = True
    network_class: ClassVar[type[ConditionedUNet]] = PIPOFAN
