"""Adapters: each structure trains residual bottlenecks between frozen blocks (Houlsby et al., ICML 2019)."""

from __future__ import annotations

from typing import ClassVar

from repmode_cl.config import StrategyConfig
from repmode_cl.nn.adaptations import AdaptationKind, AdaptationSpec
from repmode_cl.strategies.frozen_base import FrozenBase, last_layer_base

__all__ = ["Adapter"]


class Adapter(FrozenBase):
    """``h + up(relu(down(h)))`` after every block, with 1 x 1 x 1 convolutions, and own norms as in the publication.

    ``bottleneck`` is the number of channels between. A nonlinear layer cannot be merged: prediction computes it too.
    """

    kind: ClassVar[AdaptationKind] = "adapter"

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the base of Multi-Head with a last layer for each structure."""
        return last_layer_base(options)

    @classmethod
    def spec_of(cls, options: StrategyConfig) -> AdaptationSpec:
        """Return bottleneck and norms of an addition."""
        return AdaptationSpec(cls.kind, norm=options.norm, bottleneck=options.bottleneck)
