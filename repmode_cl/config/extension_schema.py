"""Keys of plugins and loggers in a configuration: Avalanche's own, or a user's in its terms."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, JsonValue, field_validator, model_validator

from repmode_cl.config.field_types import FrozenModel
from repmode_cl.errors import did_you_mean

__all__ = ["LOGGER_NAMES", "LoggerConfig", "PluginConfig"]

#: Loggers by their short names; any other is ``path/to/file.py:ClassName``.
LOGGER_NAMES = ("csv", "tensorboard", "wandb")

_FILE_CLASS = re.compile(r".*\.py:[A-Za-z_]\w*")
_AVALANCHE_CLASS = re.compile(r"avalanche:[A-Za-z_]\w*")


class _Extension(FrozenModel):
    """A name, or a name and options."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class PluginConfig(_Extension):
    """A plugin of all strategies."""

    name: str
    """A class of yours, as path/to/file.py:ClassName, or one of avalanche.training.plugins, as avalanche:ClassName."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of its constructor."""

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if not _FILE_CLASS.fullmatch(name) and not _AVALANCHE_CLASS.fullmatch(name):
            raise ValueError(
                f"found {name!r}: name a class of yours as path/to/file.py:ClassName, or one of Avalanche as "
                "avalanche:ClassName"
            )
        return name


class LoggerConfig(_Extension):
    """A logger of all strategies."""

    name: str
    """csv, tensorboard or wandb (offline), or a class of yours as path/to/file.py:ClassName."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of its constructor, in addition to the folder, which is that of the trial."""

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if name not in LOGGER_NAMES and not _FILE_CLASS.fullmatch(name):
            raise ValueError(
                f"found {name!r}{did_you_mean(name, LOGGER_NAMES)}: choose {', '.join(LOGGER_NAMES)}, or a class of "
                "yours as path/to/file.py:ClassName"
            )
        return name
