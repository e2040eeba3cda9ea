"""From a strategy's section of a configuration to the strategy itself: the registry of strategies."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.errors import ConfigError
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.agem import AGEM
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.cumulative import Cumulative
from repmode_cl.strategies.ewc import EWC
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.fine_tuning import FineTuning, FrozenEncoder
from repmode_cl.strategies.joint import Joint
from repmode_cl.strategies.lwf import LwF
from repmode_cl.strategies.mas import MAS
from repmode_cl.strategies.multi_head import MultiHead
from repmode_cl.strategies.multi_net import MultiNet
from repmode_cl.strategies.replay import Replay
from repmode_cl.strategies.synaptic_intelligence import SynapticIntelligence
from repmode_cl.utils.atomic_files import sha256_file

__all__ = [
    "STRATEGIES",
    "base_key_of",
    "build_strategy",
    "file_digest",
    "load_strategy",
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
    "a_gem": AGEM,
    "ewc": EWC,
    "synaptic_intelligence": SynapticIntelligence,
    "mas": MAS,
    "lwf": LwF,
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


def load_strategy(name: str) -> type[StructureStrategy]:
    """Return the class that ``path/to/file.py:ClassName`` names; the file is run, as an import runs a module.

    Raises
    ------
    ConfigError
        If there is no such file or class, the file cannot be imported, or the class is no `StructureStrategy`.
    """
    file, wanted = _file_of(name), name.rpartition(":")[2]
    content = file.read_bytes()
    # Named by its content, so that two files of one name, or two states of one file, are two modules.
    module_name = f"repmode_cl_own_{file.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise ConfigError(f"strategies: {name}: {file} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise ConfigError(
                f"strategies: {name}: importing {file} failed: {type(error).__name__}: {error}"
            ) from error
    found = getattr(module, wanted, None)
    if not isinstance(found, type) or not issubclass(found, StructureStrategy):
        own = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, StructureStrategy)
            and value.__module__ == module_name
        ]
        what = (
            f"has no {wanted}"
            if found is None
            else f"has {wanted}, which is no subclass of StructureStrategy"
        )
        raise ConfigError(f"strategies: {name}: {file} {what}; its strategies are {', '.join(own) or 'none'}")
    return found


def file_digest(name: str) -> str:
    """Return the SHA-256 of the file of a user's own strategy.

    Raises
    ------
    ConfigError
        If the file is not there.
    """
    return sha256_file(_file_of(name))


def _file_of(name: str) -> Path:
    file = Path(name.rpartition(":")[0])
    if not file.is_file():
        raise ConfigError(f"strategies: {name}: there is no file {file}")
    return file
