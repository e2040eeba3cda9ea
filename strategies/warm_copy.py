"""Warm copy: each structure trains a whole copy of the trained base, which itself stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.nn.copied_networks import CopiedMultiHeadUNet, CopiedRepModeUNet, CopiedUNet
from repmode_cl.strategies.hooks import REPMODE
from repmode_cl.strategies.multi_head import MultiHead
from repmode_cl.strategies.state import architecture_of
from repmode_cl.strategies.warm_start import WarmStart

__all__ = ["WarmCopy"]


class WarmCopy(WarmStart):
    """Fine-tuning of a separate copy of the base for each structure: nothing is forgotten, and nothing shared.

    What anyone can do without a method for it, and so the first reference for each method that never forgets. A copy
    is trained as fine-tuning (or, of Multi-Head's base, as Multi-Head) trains its first structure after the base: to
    the same bits.

    Notes
    -----
    All tensors of a copy count as added: from them it can be trained further. Fused for prediction, each is a plain
    network.
    """

    network_class: ClassVar[type[nn.Module] | None] = CopiedUNet

    @classmethod
    def make_network(
        cls, config: Config, options: StrategyConfig, base: Sequence[str], seed: int
    ) -> nn.Module:
        """Return the base, RepMode's or Multi-Head's, without copies."""
        architecture = architecture_of(config)
        if options.of == "repmode":
            shared_bias = config.training.gate == "shared_bias"
            return CopiedRepModeUNet(architecture, base, seed=seed, shared_gate_bias=shared_bias)
        return CopiedMultiHeadUNet(architecture, options.kernel, base, head=options.head, seed=seed)

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the base of fine-tuning, or of Multi-Head."""
        return REPMODE if options.of == "repmode" else MultiHead.shared_base(options)

    def grow(self, structures: Sequence[str]) -> None:
        """Give each structure a copy of the base."""
        for name in structures:
            self.network.add_copy(name, seed=self.seed)
