"""Fine-tuning: every shared parameter goes on learning with each structure, which keeps only its gate rows."""

from __future__ import annotations

from collections.abc import Sequence

from repmode_cl.config import StrategyConfig
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.hooks import REPMODE

__all__ = ["FineTuning", "FrozenEncoder"]


class FineTuning(StructureStrategy):
    """All parameters but the gate rows of other structures are trained; the norms are shared and drift.

    What a user does who has no incremental learner: the lower reference of forgetting. Strategies that soften it
    (replay, penalties, distillation) begin as this one does and are subclasses of it.
    """

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the one RepMode base."""
        return REPMODE

    def grow(self, structures: Sequence[str]) -> None:
        """Give each structure a gate row over the shared experts."""
        for name in structures:
            self.network.add_base_structure(name, seed=self.seed)


class FrozenEncoder(FineTuning):
    """Fine-tuning after the base of all but the encoder: its shared experts, norms and down layers stay as they are.

    Bottleneck and decoder go on learning, and so do the structure's own gate rows, those in the encoder too: a row
    that stayed as it was drawn would mix the encoder's experts at random.
    """

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train what fine-tuning does, less what the encoder shares once the base is trained."""
        trained = super().choose_trained(structures)
        if not int(self.experience.current_experience):
            return trained
        kept = {name for name in trained if name.startswith(("encoder.", "down.")) and ".gates." not in name}
        restricted: frozenset[str] = self.network.restrict_training(trained - kept)
        return restricted
