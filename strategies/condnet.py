"""CondNet: a constant channel in the decoder tells the network its structure (Dmitriev and Kaufman, CVPR 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.errors import ConfigError
from repmode_cl.nn.conditioned_unet import ConditionedUNet
from repmode_cl.nn.condnet import CondNet
from repmode_cl.strategies.conditioned import ConditionedStrategy
from repmode_cl.strategies.hooks import Experiences

__all__ = ["CondNetStrategy"]


class CondNetStrategy(ConditionedStrategy):
    """A U-Net whose decoder reads a constant channel; a structure owns its value and its last layer.

    ``frozen``: a fresh last layer is trained, and the value, one number. ``fine_tuning``: the value is that of the
    table, and all that is shared is trained but the decoder's norms, which would subtract the value where only one
    structure is in a batch. ``slots`` is the most structures that the network can have, 12 by default. With
    ``last_layer="shared"`` in its network there is one last layer, which is frozen with the rest.
    """

    shares_base: ClassVar[bool] = True
    network_class: ClassVar[type[ConditionedUNet]] = CondNet
    has_slots: ClassVar[bool] = True

    @classmethod
    def network_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the slots, and whose the last layer is where it is not each structure's."""
        own = super().network_options(options)
        return own if options.last_layer == "own" else {**own, "last_layer": options.last_layer}

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse batches in which the condition would vanish."""
        super().check(config, options, experiences)
        training, [base, *_] = config.training, cls.regroup(experiences, options)[0]
        patches = training.batch_size // training.accumulate
        if len(base) > 1 and min(patches, training.structures_per_batch or patches) < 2:
            raise ConfigError(
                f"{options.title}: {len(base)} structures are trained jointly, and only one is in each batch that is "
                f"computed at once (training.batch_size {training.batch_size}, accumulate {training.accumulate}, "
                f"structures_per_batch {training.structures_per_batch}): batch norm would subtract the channel that "
                "tells them apart; let at least two patches, of two structures, be in each"
            )
