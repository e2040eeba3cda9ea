"""Multi-Head, all fine-tuned (paper, section 4.4, Table 3): one head for each structure; the shared network drifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.nn import MultiHeadUNet
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.state import architecture_of

__all__ = ["MultiHead"]


class MultiHead(StructureStrategy):
    """Joint training of the base's heads; then each structure trains its own head and all shared parameters.

    The heads of earlier structures stay unchanged, and forget because the shared network drifts: the paper's
    "Multi-Head (Dec.), All Fine-Tuning" (Table 3), or with ``last`` its Multi-Head (Las.).
    """

    network_class: ClassVar[type[nn.Module] | None] = MultiHeadUNet
    shares_base: ClassVar[bool] = True

    @classmethod
    def make_network(
        cls, config: Config, options: StrategyConfig, base: Sequence[str], seed: int
    ) -> MultiHeadUNet:
        """Return the network with the heads of the base."""
        return MultiHeadUNet(architecture_of(config), options.kernel, base, head=options.head, seed=seed)

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return a key that names the kind of network."""
        return f"multi_head_{options.head}_k{options.kernel}"

    def grow(self, structures: Sequence[str]) -> None:
        """Give each structure a fresh head."""
        for name in structures:
            self.network.add(name, seed=self.seed)
