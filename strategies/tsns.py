"""TSNs: an embedded code of the structure sets scale and shift of the decoder's layers (Sun et al., ICCV 2021)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.errors import ConfigError
from repmode_cl.nn.conditioned_unet import ConditionedUNet
from repmode_cl.nn.tsns import TSNs
from repmode_cl.strategies.conditioned import ConditionedStrategy
from repmode_cl.strategies.hooks import Experiences

__all__ = ["TSNsStrategy"]


class TSNsStrategy(ConditionedStrategy):
    """Task switching networks: a U-Net whose decoder is normalised by instance, and scaled and shifted by a code.

    ``frozen``: the scales and shifts of a structure are trained, which begin as the means of the base's, and a fresh
    last layer; with ``condition="code"`` in its network the code is trained, in their place. ``fine_tuning``: the
    structure takes the next code, and all is trained that is shared. ``slots`` is the most structures that the network
    can have, 12 by default; it decides the length of the codes. Instance norm depends on the patch, so that windows of
    prediction have the patches' size.
    """

    shares_base: ClassVar[bool] = True
    network_class: ClassVar[type[ConditionedUNet]] = TSNs
    has_slots: ClassVar[bool] = True

    @classmethod
    def network_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the slots, and what an addition trains where it is its code."""
        own = super().network_options(options)
        return own if options.condition == "scales" else {**own, "condition": options.condition}

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return a key of the network: what an addition trains changes nothing in the base."""
        return super().shared_base(options.model_copy(update={"condition": "scales"}))

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse patches of which the bottleneck has one voxel."""
        super().check(config, options, experiences)
        sizes = [-(-size // 2**config.network.depth) for size in config.patch.size]
        if math.prod(sizes) < 2:
            raise ConfigError(
                f"{options.title}: patches of {list(config.patch.size)} voxels leave one voxel at the bottleneck of a "
                f"network of depth {config.network.depth}, and instance norm would make all its channels zero: take "
                "larger patches or a shallower network"
            )
