"""LoRA: each structure trains a low-rank update of every frozen convolution (Hu et al., ICLR 2022)."""

from __future__ import annotations

from typing import ClassVar

from repmode_cl.config import StrategyConfig
from repmode_cl.nn.adaptations import AdaptationKind, AdaptationSpec
from repmode_cl.strategies.frozen_base import FrozenBase, last_layer_base

__all__ = ["LoRA"]


class LoRA(FrozenBase):
    """The kernel W + B A in every convolution, down and up layers too; merged for prediction.

    ``rank`` is that of the update. Each structure has its own norms, or with ``norm: base`` the base's, frozen. The
    kernel is merged in training too, which for the few channels of these networks takes less time than convolving
    twice.
    """

    kind: ClassVar[AdaptationKind] = "lora"

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the base of Multi-Head with a last layer for each structure."""
        return last_layer_base(options)

    @classmethod
    def spec_of(cls, options: StrategyConfig) -> AdaptationSpec:
        """Return rank and norms of an addition."""
        return AdaptationSpec(cls.kind, norm=options.norm, rank=options.rank)
