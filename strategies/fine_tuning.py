"""Fine-tuning: every shared parameter goes on learning with each structure, which keeps only its gate rows."""

from __future__ import annotations

from collections.abc import Sequence

from repmode_cl.strategies.base import StructureStrategy

__all__ = ["FineTuning"]


class FineTuning(StructureStrategy):
    """All parameters but the gate rows of other structures are trained; the norms are shared and drift.

    What a user does who has no incremental learner: the lower reference of forgetting.
    """

    def grow(self, structures: Sequence[str]) -> None:
        """Give each structure a gate row over the shared experts."""
        for name in structures:
            self.network.add_base_structure(name, seed=self.seed)
