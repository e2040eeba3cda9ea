"""Registry of strategies: the package's by name, and a user's own by file and class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.errors import ConfigError
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.adapter import Adapter
from repmode_cl.strategies.agem import AGEM
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.condnet import CondNetStrategy
from repmode_cl.strategies.constructor_options import inherit_options
from repmode_cl.strategies.cumulative import Cumulative
from repmode_cl.strategies.der_pp import DERPlusPlus
from repmode_cl.strategies.dodnet import DoDNetStrategy
from repmode_cl.strategies.ewc import EWC
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.extensions import plugins_digest
from repmode_cl.strategies.fine_tuning import FineTuning, FrozenEncoder
from repmode_cl.strategies.frozen_trunk import FrozenTrunk
from repmode_cl.strategies.joint import Joint
from repmode_cl.strategies.lora import LoRA
from repmode_cl.strategies.lwf import LwF
from repmode_cl.strategies.mas import MAS
from repmode_cl.strategies.multi_head import MultiHead
from repmode_cl.strategies.multi_net import MultiNet
from repmode_cl.strategies.norm_only import NormOnly
from repmode_cl.strategies.off_the_shelf import avalanche_strategy
from repmode_cl.strategies.own_files import file_of, import_file
from repmode_cl.strategies.packnet import PackNet
from repmode_cl.strategies.piggyback import Piggyback
from repmode_cl.strategies.pipo_fan import PIPOFANStrategy
from repmode_cl.strategies.progressive import Progressive
from repmode_cl.strategies.replay import Replay
from repmode_cl.strategies.ssf import SSF
from repmode_cl.strategies.synaptic_intelligence import SynapticIntelligence
from repmode_cl.strategies.tgnet import TGNetStrategy
from repmode_cl.strategies.tsns import TSNsStrategy
from repmode_cl.strategies.warm_copy import WarmCopy
from repmode_cl.utils.atomic_files import sha256_file

__all__ = [
    "STRATEGIES",
    "build_strategy",
    "strategy_class",
    "load_strategy",
    "strategy_file_digest",
    "strategy_section",
    "base_key_of",
    "code_digest",
]

#: Name in a configuration -> class.
STRATEGIES: dict[str, type[StructureStrategy]] = {
    "experts_frozen": ExpertsFrozen,
    "fine_tuning": FineTuning,
    "frozen_encoder": FrozenEncoder,
    "multi_net": MultiNet,
    "multi_head": MultiHead,
    "replay": Replay,
    "a_gem": AGEM,
    "ewc": EWC,
    "synaptic_intelligence": SynapticIntelligence,
    "mas": MAS,
    "lwf": LwF,
    "cumulative": Cumulative,
    "joint": Joint,
    "der_pp": DERPlusPlus,
    "warm_copy": WarmCopy,
    "frozen_trunk": FrozenTrunk,
    "norm_only": NormOnly,
    "lora": LoRA,
    "ssf": SSF,
    "adapter": Adapter,
    "piggyback": Piggyback,
    "packnet": PackNet,
    "progressive": Progressive,
    "dodnet": DoDNetStrategy,
    "tgnet": TGNetStrategy,
    "condnet": CondNetStrategy,
    "tsns": TSNsStrategy,
    "pipo_fan": PIPOFANStrategy,
}


def strategy_class(options: StrategyConfig) -> type[StructureStrategy]:
    """Return the class of a strategy, the package's or a user's own.

    Raises
    ------
    ConfigError
        If it is a user's own class that cannot be imported.
    """
    if options.is_avalanche:
        return avalanche_strategy(options)
    return load_strategy(options.name) if options.is_custom else STRATEGIES[options.name]


def strategy_section(options: StrategyConfig) -> StrategyConfig:
    """Return a strategy's section as its class methods take it.

    It is the configuration's; that of a user's own class has, in addition, the options of the package's strategies that
    the class derives from (see `inherit_options`).

    Raises
    ------
    ConfigError
        If it is a user's own class that cannot be imported, or an inherited option has a value that it cannot have.
    """
    if not options.is_custom:
        return options
    kind = load_strategy(options.name)
    return inherit_options(options, [name for name, parent in STRATEGIES.items() if issubclass(kind, parent)])


def strategy_file_digest(options: StrategyConfig) -> str | None:
    """Return the SHA-256 of the file that defines a user's own strategy; None for those of the package.

    That of a strategy of Avalanche is of the files of its class and of the function that makes its network.

    Raises
    ------
    ConfigError
        If the file is not there.
    """
    names = [options.name.removeprefix("avalanche:")] if options.is_external else []
    if options.is_avalanche:
        names.append(str(options.options.get("model", "")))
    digests = [sha256_file(file_of(name)) for name in names if ".py:" in name]
    if len(digests) > 1:
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    return digests[0] if digests else None


def code_digest(config: Config, options: StrategyConfig) -> str | None:
    """Return the SHA-256 of all files of a user's own that decide a strategy's figures; None without any."""
    digests = [one for one in (strategy_file_digest(options), plugins_digest(config)) if one is not None]
    if len(digests) > 1:
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    return digests[0] if digests else None


def build_strategy(
    config: Config, options: StrategyConfig, stream: StructureStream, seed: int, **common: Any
) -> StructureStrategy:
    """Build a strategy with a fresh network.

    Parameters
    ----------
    config
        The whole configuration: network, training, patch, inference.
    options
        The strategy's section: its name and options.
    stream
        Stream to learn, in the experiences that its `regroup` returns; those of the first are the base.
    seed
        Seed of the weights.
    **common
        Arguments of `StructureStrategy`.

    Raises
    ------
    ConfigError
        If it is a user's own class that does not take the options of the configuration, or takes them and fails.
    """
    kind = strategy_class(options)
    section = strategy_section(options)
    own_config = config.of_strategy(options)
    common = {
        "evaluator": None,  # the caller measures
        "training": config.training,
        "patch": config.patch.size,
        "inference": config.inference,
        # Rates by group go to the constructor of the strategy that has groups.
        "addition_learning_rate": None
        if isinstance(options.learning_rate, Mapping)
        else options.learning_rate,
        **common,
    }
    try:
        strategy = kind.build(own_config, section, stream, seed, **common)
    except TypeError as error:
        if not options.is_external:
            raise
        raise ConfigError(f"strategies: {options.name} with options {options.options}: {error}") from error
    strategy._base_key = base_key_of(config, options)
    strategy.base_learning_rate = options.base_learning_rate
    strategy.checks_budget = (
        False  # the stream's patches are what `steps_of` says, with the strategy's own options
    )
    return strategy


def base_key_of(config: Config, options: StrategyConfig) -> str | None:
    """Return the key of the trained base that a strategy with these options shares, or None.

    Bases of one key are trained the same to the bit: by strategies with the same network and learning rate.
    """
    if config.plugins:
        return None  # what they record of a base is only with the strategy that trains it
    key = strategy_class(options).declared_base(strategy_section(options))
    rate, default = options.base_learning_rate, config.training.learning_rate
    if key is None:
        return None
    network = config.of_strategy(options).network
    if network != config.network:
        key += f"_network-{hashlib.sha256(network.model_dump_json().encode()).hexdigest()[:8]}"
    # With every digit of the rate: equal rates share a base, and different ones never do.
    return key if rate in (None, default) else f"{key}_rate{rate!r}"


def load_strategy(name: str) -> type[StructureStrategy]:
    """Return the class that ``path/to/file.py:ClassName`` names; the file is run, as an import runs a module.

    Raises
    ------
    ConfigError
        If there is no such file or class, the file cannot be imported, or the class is no `StructureStrategy`.
    """
    module, class_name, file = import_file(name), name.rpartition(":")[2], file_of(name)
    kind = getattr(module, class_name, None)
    if not isinstance(kind, type) or not issubclass(kind, StructureStrategy):
        available = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, StructureStrategy)
            and value.__module__ == module.__name__
        ]
        problem = (
            f"has no {class_name}"
            if kind is None
            else f"has {class_name}, which is no subclass of StructureStrategy"
        )
        raise ConfigError(
            f"strategies: {name}: {file} {problem}; its strategies are {', '.join(available) or 'none'}"
        )
    return kind
