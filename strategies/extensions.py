"""Plugins and loggers that a configuration names: each an object of Avalanche, made for one trial."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import avalanche.training.plugins
from avalanche.core import BasePlugin
from avalanche.evaluation.metrics import loss_metrics, timing_metrics
from avalanche.logging import BaseLogger, CSVLogger, TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin

from repmode_cl.config import Config
from repmode_cl.config.extension_schema import LoggerConfig, PluginConfig
from repmode_cl.errors import ConfigError, did_you_mean
from repmode_cl.strategies.metrics import r2_metrics
from repmode_cl.strategies.own_files import file_of, load_from_file
from repmode_cl.strategies.plugins.wandb_logger import OfflineWandB
from repmode_cl.utils.atomic_files import sha256_file

__all__ = ["check_extensions", "close_loggers", "make_extensions", "plugins_digest"]


def check_extensions(config: Config) -> None:
    """Refuse plugins and loggers that cannot be loaded or do not take their options; none is made.

    Raises
    ------
    ConfigError
        Naming the plugin or logger.
    """
    for plugin in config.plugins:
        _check_options("plugins", plugin, _plugin_class(plugin))
    for logger in config.loggers:
        _check_options("loggers", logger, _logger_class(logger))
        if logger.name == "wandb":
            _require_wandb()


def make_extensions(config: Config, folder: Path, trial: str) -> dict[str, Any]:
    """Return the plugins and the evaluator of a configuration as arguments of a strategy; none without any.

    Parameters
    ----------
    config
        The configuration.
    folder
        Folder of what loggers write.
    trial
        Name of the trial, for loggers that show several.

    Raises
    ------
    ConfigError
        If one cannot be made with its options.
    """
    made: dict[str, Any] = {}
    if config.plugins:
        made["plugins"] = [_made("plugins", one, _plugin_class(one), {}) for one in config.plugins]
    if config.loggers:
        made["evaluator"] = _evaluator(config, folder, trial)
    return made


def _evaluator(config: Config, folder: Path, trial: str) -> EvaluationPlugin:
    loggers = [
        _made("loggers", one, _logger_class(one), _given(one, config, folder, trial))
        for one in config.loggers
    ]
    metrics = (
        loss_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        r2_metrics(experience=True),
        timing_metrics(epoch=True),
    )
    return EvaluationPlugin(*metrics, loggers=loggers)


def close_loggers(loggers: Iterable[Any]) -> None:
    """Close the files of loggers, and end the runs of those that have some."""
    for logger in loggers:
        if isinstance(logger, TensorboardLogger):
            logger.writer.close()
        elif callable(close := getattr(logger, "close", None)):
            close()


def plugins_digest(config: Config) -> str | None:
    """Return a digest of the files of a configuration's plugins; None where it names no file.

    Raises
    ------
    ConfigError
        If a file is not there.
    """
    digests = [sha256_file(file_of(one.name, "plugins")) for one in config.plugins if ".py:" in one.name]
    return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else None


def _plugin_class(one: PluginConfig) -> Callable[..., Any]:
    if ".py:" in one.name:
        kind: Callable[..., Any] = load_from_file(one.name, BasePlugin, "a plugin of Avalanche", "plugins")
        return kind
    wanted = one.name.removeprefix("avalanche:")
    known = {
        name: value
        for name, value in vars(avalanche.training.plugins).items()
        if isinstance(value, type) and issubclass(value, BasePlugin)
    }
    if wanted not in known:
        raise ConfigError(
            f"plugins: {one.name}: avalanche.training.plugins has no {wanted}{did_you_mean(wanted, known)}: it has "
            f"{', '.join(sorted(known))}"
        )
    return known[wanted]


def _logger_class(one: LoggerConfig) -> Callable[..., Any]:
    named = {"csv": CSVLogger, "tensorboard": TensorboardLogger, "wandb": OfflineWandB}
    if one.name in named:
        return named[one.name]
    kind: Callable[..., Any] = load_from_file(one.name, BaseLogger, "a logger of Avalanche", "loggers")
    return kind


def _given(one: LoggerConfig, config: Config, folder: Path, trial: str) -> dict[str, Any]:
    """Return the arguments of a logger that the trial decides."""
    if one.name not in ("csv", "tensorboard", "wandb"):
        return {}
    place = folder / one.name
    place.mkdir(parents=True, exist_ok=True)
    if one.name == "csv":
        return {"log_folder": str(place)}
    if one.name == "tensorboard":
        return {"tb_log_dir": str(place)}
    _require_wandb()
    return {"project_name": config.name, "run_name": trial, "folder": str(place)}


def _require_wandb() -> None:
    try:
        import wandb  # noqa: F401 - imported when a logger is made
    except ImportError as error:
        raise ConfigError(
            f"loggers: wandb: the package wandb cannot be imported ({error}): run pip install "
            "wandb, or leave the logger out"
        ) from error


def _check_options(section: str, one: PluginConfig | LoggerConfig, kind: Callable[..., Any]) -> None:
    parameters = inspect.signature(kind).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for key in one.options:
        if key not in known:
            raise ConfigError(
                f"{section}: {one.name}: unexpected keyword argument: {key}{did_you_mean(key, known)}: its options are "
                f"{', '.join(known) or 'none'}"
            )


def _made(
    section: str, one: PluginConfig | LoggerConfig, kind: Callable[..., Any], given: dict[str, Any]
) -> Any:
    _check_options(section, one, kind)
    try:
        return kind(**{**given, **one.options})
    except Exception as error:
        raise ConfigError(
            f"{section}: {one.name} with options {one.options}: {type(error).__name__}: {error}"
        ) from error
