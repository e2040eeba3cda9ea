"""TGNet: DoDNet with features and skips that the structure guides (Wu, Pang, Sowmya, ISBI 2022), as we read it."""

from __future__ import annotations

from typing import ClassVar

from repmode_cl.nn.conditioned_unet import ConditionedUNet
from repmode_cl.nn.tgnet import TGNet
from repmode_cl.strategies.conditioned import ConditionedStrategy

__all__ = ["TGNetStrategy"]


class TGNetStrategy(ConditionedStrategy):
    """DoDNet, with channels of the encoder and voxels of the skips weighted by patch and structure.

    The form of these modules is our reading of an abstract (`repmode_cl.nn.tgnet`). ``frozen``: only the structure's
    columns are trained, of the controller and of the modules, which begin as the means of the base's.
    """

    shares_base: ClassVar[bool] = True
    network_class: ClassVar[type[ConditionedUNet]] = TGNet
