"""From a strategy's section of a configuration to the strategy itself: the registry of strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.fine_tuning import FineTuning
from repmode_cl.strategies.multi_net import MultiNet, PlainNetworks

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet

__all__ = ["STRATEGIES", "architecture_of", "build_strategy"]

STRATEGIES: dict[str, type[StructureStrategy]] = {
    "experts_frozen": ExpertsFrozen,
    "fine_tuning": FineTuning,
    "multi_net": MultiNet,
}


def architecture_of(config: Config) -> Architecture:
    """Return the network's shape."""
    return Architecture(config.network.width, config.network.depth, config.network.experts)


def build_strategy(
    config: Config, strategy: StrategyConfig, stream: StructureStream, seed: int, **options: Any
) -> StructureStrategy:
    """Build `strategy` with a fresh network.

    Parameters
    ----------
    config
        The whole configuration: network, training, patch, inference.
    strategy
        Which one, and its options.
    stream
        What it will learn; its first experience's structures are the base.
    seed
        Seed of the weights.
    **options
        For `StructureStrategy`.
    """
    options = {
        "stream": stream,
        "training": config.training,
        "patch": config.patch.size,
        "inference": config.inference,
        "addition_learning_rate": strategy.learning_rate,
        "seed": seed,
        **options,
    }
    architecture = architecture_of(config)
    first: Sequence[str] = stream.experiences[0]
    if strategy.name == "multi_net":
        return MultiNet(network=PlainNetworks(architecture, strategy.kernel), **options)
    network = RepModeUNet(architecture, first, seed=seed)
    if strategy.name == "fine_tuning":
        return FineTuning(network=network, **options)
    spec = AdditionSpec(strategy.expert, strategy.sees, strategy.norm, strategy.resampling)
    return ExpertsFrozen(network=network, spec=spec, **options)
