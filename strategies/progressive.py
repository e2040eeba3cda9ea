"""Progressive networks: each structure trains a column, which reads all earlier ones (Rusu et al., 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.nn.progressive_unet import ProgressiveUNet
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.frozen_base import last_layer_base
from repmode_cl.strategies.state import architecture_of

__all__ = ["Progressive"]

#: Cost of predicting with a column, relative to training one.
_PREDICTION_COST = 1 / 3


class Progressive(StructureStrategy):
    """A fresh plain network for each structure, with lateral 1 x 1 x 1 connections from the base and earlier columns.

    All earlier columns are frozen, with their norms. Prediction computes every column that a structure reads.

    Notes
    -----
    A structure that returns continues to train its column; where later ones read that, a copy of it, which takes its
    place.
    """

    network_class: ClassVar[type[nn.Module] | None] = ProgressiveUNet

    @classmethod
    def make_network(
        cls, config: Config, options: StrategyConfig, base: Sequence[str], seed: int
    ) -> nn.Module:
        """Return the base's network, without columns."""
        return ProgressiveUNet(architecture_of(config), options.kernel, base, seed=seed)

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the base of Multi-Head with a last layer for each structure."""
        return last_layer_base(options)

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return one, and the cost of predicting with the columns before it (at most one for each structure)."""
        return 1 + _PREDICTION_COST * earlier

    def grow(self, structures: Sequence[str]) -> None:
        """Give each structure a column."""
        for name in structures:
            self.network.add_structure(name, seed=self.seed)

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train the structure's column, or a copy of it where later ones read it."""
        for name in structures:
            if name in self.network.column_names:
                self.network.continue_structure(name)
        return super().choose_trained(structures)

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the structure of each column, and how many it reads."""
        earlier = [column.earlier for column in self.network.columns]
        return {}, {"columns": list(self.network.column_names), "earlier": earlier}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Make the columns, whose weights are loaded next."""
        self.network.restore_columns(values["columns"], values["earlier"])
