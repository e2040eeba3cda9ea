"""From a strategy's section of a configuration to the strategy itself: the registry of strategies."""

from __future__ import annotations

from typing import Any

from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.a_gem import AveragedGem
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.distillation import LearningWithoutForgetting
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.fine_tuning import FineTuning, FrozenEncoder
from repmode_cl.strategies.joint import Joint
from repmode_cl.strategies.multi_head import MultiHead
from repmode_cl.strategies.multi_net import MultiNet
from repmode_cl.strategies.own_file import file_digest, load_strategy
from repmode_cl.strategies.penalties import ElasticWeights, MemoryAwareSynapses
from repmode_cl.strategies.replay import Cumulative, Replay
from repmode_cl.strategies.state import architecture_of
from repmode_cl.strategies.synaptic_intelligence import SynapticIntelligence

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.errors import ConfigError

__all__ = [
    "STRATEGIES",
    "architecture_of",
    "base_key_of",
    "build_strategy",
    "strategy_class",
    "strategy_file_digest",
]

STRATEGIES: dict[str, type[StructureStrategy]] = {
    "experts_frozen": ExpertsFrozen,
    "fine_tuning": FineTuning,
    "frozen_encoder": FrozenEncoder,
    "multi_net": MultiNet,
    "multi_head": MultiHead,
    "replay": Replay,
    "a_gem": AveragedGem,
    "ewc": ElasticWeights,
    "synaptic_intelligence": SynapticIntelligence,
    "mas": MemoryAwareSynapses,
    "lwf": LearningWithoutForgetting,
    "cumulative": Cumulative,
    "joint": Joint,
}


def strategy_class(options: StrategyConfig) -> type[StructureStrategy]:
    """Return the class of a strategy: the package's, or a user's own.

    Raises
    ------
    ConfigError
        If it is a user's own, and cannot be imported.
    """
    return load_strategy(options.name) if options.is_custom else STRATEGIES[options.name]


def strategy_file_digest(options: StrategyConfig) -> str | None:
    """Return the SHA-256 of the file that defines a user's own strategy; None for those of the package.

    Raises
    ------
    ConfigError
        If the file is not there.
    """
    return file_digest(options.name) if options.is_custom else None


def build_strategy(
    config: Config, options: StrategyConfig, stream: StructureStream, seed: int, **common: Any
) -> StructureStrategy:
    """Build a strategy with a fresh network.

    Parameters
    ----------
    config
        The whole configuration: network, training, patch, inference.
    options
        Which one, and its options.
    stream
        What it will learn, grouped as its `regroup` says; its first experience's structures are the base.
    seed
        Seed of the weights.
    **common
        For `StructureStrategy`.

    Raises
    ------
    ConfigError
        If it is a user's own and does not take the options that the configuration gives it.
    """
    kind = strategy_class(options)
    common = {
        "training": config.training,
        "patch": config.patch.size,
        "inference": config.inference,
        "addition_learning_rate": options.learning_rate,
        **common,
    }
    try:
        strategy = kind.build(config, options, stream, seed, **common)
    except TypeError as error:
        if not options.is_custom:
            raise
        raise ConfigError(f"strategies: {options.name} with options {options.options}: {error}") from error
    strategy._base_key = base_key_of(config, options)
    strategy.base_learning_rate = options.base_learning_rate
    return strategy


def base_key_of(config: Config, options: StrategyConfig) -> str | None:
    """Return the key of the trained base that a strategy with these options shares, or None.

    Bases of one key are trained alike to the bit: by strategies of the same network, with the same rate.
    """
    key = strategy_class(options).shared_base(options)
    rate, usual = options.base_learning_rate, config.training.learning_rate
    # By every digit of the rate that it comes to: equal rates share, and different ones never do.
    return key if key is None or rate in (None, usual) else f"{key}_rate{rate!r}"
