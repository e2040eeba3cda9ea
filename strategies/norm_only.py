"""Norms only: each structure trains its own batch norms and last layer on frozen convolutions."""

from __future__ import annotations

from typing import ClassVar

from repmode_cl.config import StrategyConfig
from repmode_cl.nn.adaptations import AdaptationKind
from repmode_cl.strategies.frozen_base import FrozenBase, last_layer_base

__all__ = ["NormOnly"]


class NormOnly(FrozenBase):
    """Own batch norms for each structure, on shared convolutions (Bilen and Vedaldi, arXiv 1701.07275, 2017)."""

    kind: ClassVar[AdaptationKind] = "norm_only"

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the base of Multi-Head with a last layer for each structure."""
        return last_layer_base(options)
