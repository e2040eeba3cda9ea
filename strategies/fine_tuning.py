"""Fine-tuning: each structure trains all shared parameters further, and owns only its gate rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from repmode_cl.config import StrategyConfig
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.hooks import REPMODE

__all__ = ["FineTuning", "FrozenEncoder"]


class FineTuning(StructureStrategy):
    """All parameters but the gate rows of other structures are trained; the norms are shared and drift.

    What a user without an incremental learner does: the lower reference for forgetting. Strategies that reduce
    forgetting (replay, penalties, distillation) start as this one does and are subclasses of it.
    """

    shares_base: ClassVar[bool] = True

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the one RepMode base."""
        return REPMODE

    def grow(self, structures: Sequence[str]) -> None:
        """Give each structure a gate row over the shared experts."""
        for name in structures:
            self.network.add_base_structure(name, seed=self.seed)


class FrozenEncoder(FineTuning):
    """Fine-tuning of all but the encoder: after the base, its shared experts, norms and down layers are frozen.

    Bottleneck and decoder are trained further, and so are the structure's own gate rows, also those in the encoder: a
    row that stayed as it was drawn would mix the encoder's experts at random.
    """

    shares_base: ClassVar[bool] = True

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train the parameters that fine-tuning trains, after the base without the shared ones of the encoder."""
        trained = super().choose_trained(structures)
        if not int(self.experience.current_experience):
            return trained
        frozen = {
            name for name in trained if name.startswith(("encoder.", "down.")) and ".gates." not in name
        }
        restricted: frozenset[str] = self.network.restrict_training(trained - frozen)
        return restricted
