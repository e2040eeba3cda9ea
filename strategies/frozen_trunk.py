"""Frozen trunk: each structure trains only a new decoder, or a new last layer, on what the base computes."""

from __future__ import annotations

from collections.abc import Sequence

from repmode_cl.config import StrategyConfig
from repmode_cl.errors import ConfigError
from repmode_cl.strategies.multi_head import MultiHead

__all__ = ["FrozenTrunk"]


class FrozenTrunk(MultiHead):
    """Multi-Head whose shared layers stay as the base left them, with their norms (feature extraction).

    What Li and Hoiem (ECCV 2016) call feature extraction, with a whole new decoder or only a new last layer. Nothing
    that structures share moves, so that no structure changes another.
    """

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of Multi-Head's base."""
        return MultiHead.shared_base(options)

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train all in the base; after it, only the heads of `structures`."""
        trained = super().choose_trained(structures)
        if not int(self.experience.current_experience):
            if later := [name for name in self.network.structures if name not in structures]:
                raise ConfigError(
                    f"the base cannot be trained any more: {', '.join(later)} depend on its frozen layers; make "
                    "another base"
                )
            return trained
        own: frozenset[str] = self.network.restrict_training(
            frozenset(name for name in trained if ".own." in name)
        )
        return own
