"""SSF: each structure scales and shifts the frozen network's features (Lian et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import ClassVar

from repmode_cl.config import StrategyConfig
from repmode_cl.nn.adaptations import AdaptationKind
from repmode_cl.strategies.frozen_base import FrozenBase, last_layer_base

__all__ = ["SSF"]


class SSF(FrozenBase):
    """A learned scale and shift of each channel after every convolution and every norm; merged for prediction.

    The norms are the base's, with its running statistics.
    """

    kind: ClassVar[AdaptationKind] = "ssf"

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the base of Multi-Head with a last layer for each structure."""
        return last_layer_base(options)
