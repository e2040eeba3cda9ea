"""Loading of a configuration: a YAML file and ``key=value`` overrides become a validated `Config`.

A message names the file and line (or the override), the dotted key, what was found, what is allowed and, for
an unknown key, the nearest known one. Reading is strict: ``steps: "50"`` and ``steps: true`` are no numbers.

Relative paths: `data.manifest`, `stream.order_file`, `stream.difficulty`, the file of a user's strategy and those of
`search.study` are relative to the configuration file that names them, so that a folder with all of them can be moved;
`data.cache` and `output`, and every path in an override, are relative to the current directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from repmode_cl.config import strict_yaml
from repmode_cl.config.error_messages import describe_errors
from repmode_cl.config.schema import Config
from repmode_cl.config.strict_yaml import dotted
from repmode_cl.errors import ConfigError, did_you_mean

__all__ = [
    "dump_config",
    "load_config",
    "parse_config",
    "parse_recorded_config",
    "rows_with_learning_gates",
    "shipped_config_names",
    "shipped_config_text",
]

#: Keys that hold a path which is relative to the file that names it.
_RELATIVE_TO_FILE = (("data", "manifest"), ("stream", "order_file"), ("stream", "difficulty"))
#: Keys that hold a path which is relative to the current directory.
_RELATIVE_TO_WORKING_DIRECTORY = (("data", "cache"), ("output",))

# A larger file is no configuration; a file is read whole.
_LARGEST_FILE = 4 << 20


def _shipped() -> dict[str, Traversable]:
    configurations = {
        entry.name.removesuffix(".yaml"): entry
        for entry in resources.files("repmode_cl.configs").iterdir()
        if entry.name.endswith(".yaml")
    }
    return dict(sorted(configurations.items()))


def shipped_config_names() -> tuple[str, ...]:
    """Return the names of the configurations that come with the package, sorted."""
    return tuple(_shipped())


def shipped_config_text(name: str) -> str:
    """Return the text of a configuration that comes with the package, comments included.

    Parameters
    ----------
    name
        One of `shipped_config_names`, with or without ``.yaml``.

    Raises
    ------
    ConfigError
        If none has that name.
    """
    shipped = _shipped()
    stem = name.removesuffix(".yaml")
    if stem not in shipped:
        raise ConfigError(
            f"no shipped configuration is called {name!r}{did_you_mean(stem, shipped)}: there are "
            f"{', '.join(shipped)}"
        )
    return shipped[stem].read_text(encoding="utf-8")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration from a file, or a shipped one by its name.

    Parameters
    ----------
    path
        A YAML file, or a name of `shipped_config_names`; an existing file takes precedence.
    overrides
        ``key=value`` each, such as ``training.steps=50``, ``seeds=[0, 1]`` or ``strategies.0.expert=conv5``;
        values are YAML, and none may be empty. Later ones win.

    Returns
    -------
    Config
        Its `data.manifest`, `stream.order_file` and `stream.difficulty` are absolute.

    Raises
    ------
    ConfigError
        If there is no such file, or anything in it or in an override is wrong.
    """
    file = Path(path)
    if file.is_file():
        return _parse(_read(file), str(file), overrides, folder=file.parent)
    shipped = shipped_config_names()
    name = str(path).removesuffix(".yaml")
    if name in shipped:
        return _parse(shipped_config_text(name), f"shipped configuration {name}", overrides, folder=Path())
    kind = "a folder" if file.is_dir() else "neither a file nor a shipped configuration"
    raise ConfigError(f"{path} is {kind}{did_you_mean(name, shipped)}: shipped are {', '.join(shipped)}")


def parse_config(text: str, source: str = "configuration", overrides: Sequence[str] = ()) -> Config:
    """Parse a YAML text as `load_config` does, with all paths relative to the current directory.

    Parameters
    ----------
    text
        The YAML document.
    source
        Origin of the text, for messages.
    overrides
        As for `load_config`.

    Raises
    ------
    ConfigError
        If anything in the text or in an override is wrong.
    """
    return _parse(text, source, overrides, folder=Path())


def parse_recorded_config(text: str, source: str) -> Config:
    """Parse what `dump_config` wrote, of this version or an earlier one: a setting stands for what it did then.

    Raises
    ------
    ConfigError
        As `parse_config`.
    """
    recorded = strict_yaml.read_yaml(text, source).value
    rows = rows_with_learning_gates(recorded)
    if not rows:
        return parse_config(text, source)
    titles = [one.title for one in parse_config(text, source).strategies]
    for row in rows:
        # Under the title that it had: by the present one it is another strategy.
        row |= {"gate_steps": 1.0, "label": titles[recorded["strategies"].index(row)]}
    return parse_config(strict_yaml.write_yaml(recorded), source)


def rows_with_learning_gates(recorded: Any) -> list[dict[str, Any]]:
    """Return the recorded strategies whose setting is of the time when its gates learned in all steps.

    Since then what a setting stands for is recorded beside its name.
    """
    rows = recorded.get("strategies") if isinstance(recorded, Mapping) else None
    return [
        row
        for row in rows or ()
        if isinstance(row, dict)
        and row.get("setting")
        and "gate_steps" not in row
        and row.get("expert") != "none"
    ]


def dump_config(config: Config) -> str:
    """Return a configuration as a YAML text with all defaults, which `parse_config` turns into an equal one."""
    data = config.model_dump(mode="json")
    # An option of another strategy is refused even at its default value, so only what was given is written, and what a
    # named setting says today: a later version may mean something else by its name.
    data["strategies"] = [
        one.model_dump(mode="json", exclude_unset=True)
        | one.model_dump(mode="json", include=set(one.of_setting()))
        for one in config.strategies
    ]
    # What is given for one sampler is refused for the other, also at its default.
    if config.search is None:
        del data["search"]
    else:
        data["search"] = config.search.model_dump(mode="json", exclude_unset=True)
    return strict_yaml.write_yaml(data)


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"{file}: {file.stat().st_size:,} bytes: this is no configuration")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: not UTF-8 text at byte {error.start}: a configuration is a YAML file, saved as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error


def _parse(text: str, source: str, overrides: Sequence[str], *, folder: Path) -> Config:
    document = strict_yaml.read_yaml(text, source)
    data = document.value
    if data is None:
        raise ConfigError(f"{source}: the file is empty: at least 'name' and 'training' are needed")
    if not isinstance(data, dict):
        hint = ""
        if source.lower().endswith(".csv"):
            hint = "; a manifest is named in a configuration, as data.manifest"
        raise ConfigError(
            f"{source}: found a {_type_name(data)} where a mapping of keys to values is expected{hint}"
        )
    # Through JSON: aliases become copies, so that an override of one place does not change the others.
    data = json.loads(json.dumps(data))
    _resolve_paths(data, _RELATIVE_TO_FILE, folder)
    _resolve_paths(data, _RELATIVE_TO_WORKING_DIRECTORY, None)
    _resolve_strategy_files(data, folder)
    _resolve_studies(data, folder)

    overridden: dict[strict_yaml.Path, str] = {}
    for override in overrides:
        path, value = _parse_override(override)
        _set(data, path, value, override)
        overridden[path] = override
        if path in _RELATIVE_TO_FILE:
            _resolve_paths(data, [path], Path())
        elif path in _RELATIVE_TO_WORKING_DIRECTORY:
            _resolve_paths(data, [path], None)
        elif path[:1] == ("search",):
            _resolve_studies(data, Path())
    _resolve_strategy_files(data, Path())
    try:
        return Config.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ConfigError(describe_errors(error, data, source, document.lines, overridden)) from error


def _resolve_paths(data: dict[str, Any], keys: Iterable[strict_yaml.Path], folder: Path | None) -> None:
    """Expand ``~`` in the paths under `keys`; where `folder` is given, make them absolute from there."""
    for key in keys:
        holder: Any = data
        for part in key[:-1]:
            holder = holder.get(part) if isinstance(holder, Mapping) else None
        if not isinstance(holder, dict) or not isinstance(holder.get(str(key[-1])), str):
            continue
        path = _expanded(holder[str(key[-1])], dotted(key))
        holder[str(key[-1])] = str(path if folder is None else (folder / path).resolve())


def _expanded(text: str, key: str) -> Path:
    """Return the path `text` of `key` with ``~`` expanded.

    Raises
    ------
    ConfigError
        If it names the home of a user that there is none of.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{key}: {text!r} begins with the home of a user that this machine does not know: give the whole path"
        ) from error


def _resolve_strategy_files(data: dict[str, Any], folder: Path) -> None:
    """Make the files of users' strategies, networks, plugins and loggers absolute from `folder`."""
    for section in ("plugins", "loggers"):
        named = data.get(section)
        if isinstance(named, list):
            # A name alone is short for a group of keys.
            data[section] = [{"name": one} if isinstance(one, str) else one for one in named]
    lists = {
        key: data[key] for key in ("strategies", "plugins", "loggers") if isinstance(data.get(key), list)
    }
    for section, one in ((key, one) for key, listed in lists.items() for one in listed):
        if not isinstance(one, dict):
            continue
        options = one.get("options")
        for holder, key, called in ((one, "name", "name"), (options, "model", "options.model")):
            if isinstance(holder, dict) and isinstance(name := holder.get(key), str) and ".py:" in name:
                avalanche = "avalanche:" if name.startswith("avalanche:") else ""
                path, _, wanted = name.removeprefix("avalanche:").rpartition(":")
                file = _expanded(path, f"{section}.{called}")
                holder[key] = f"{avalanche}{(folder / file).resolve()}:{wanted}"


def _resolve_studies(data: dict[str, Any], folder: Path) -> None:
    """Make the files of the studies that a search chooses for absolute from `folder`; shipped ones keep their names."""
    search = data.get("search")
    if not isinstance(search, dict) or (study := search.get("study")) is None:
        return
    shipped = shipped_config_names()

    def resolved(one: Any) -> Any:
        if not isinstance(one, str) or one in shipped:
            return one
        return str((folder / _expanded(one, "search.study")).resolve())

    search["study"] = [resolved(one) for one in study] if isinstance(study, list) else resolved(study)


def _parse_override(override: str) -> tuple[strict_yaml.Path, Any]:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"override {override!r}: write key=value with a dotted key, such as training.steps=50 "
            "or seeds=[0,1]"
        )
    document = strict_yaml.read_yaml(value, f"override {override!r}")
    # An empty document is null too, and so would be a variable of the shell that is not set.
    if document.value is None and value.strip().lower() not in ("null", "~"):
        raise ConfigError(f"override {override!r}: has no value: give one, or null for none")
    return tuple(int(part) if part.isdecimal() else part for part in parts), document.value


def _set(data: dict[str, Any], path: strict_yaml.Path, value: Any, override: str) -> None:
    """Put `value` at `path`; missing mappings are made, missing list items are not."""
    holder: Any = data
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        so_far = dotted(path[:depth]) or "the configuration"
        if isinstance(holder, list):
            if not isinstance(part, int) or part >= len(holder):
                raise ConfigError(
                    f"override {override!r}: {so_far} is a list of {len(holder)}: continue with a number "
                    f"from 0, or give the whole list as {so_far}=[...]"
                )
        elif isinstance(holder, dict):
            part = str(part)
            if not last and holder.get(part) is None:
                if isinstance(path[depth + 1], int):
                    missing = dotted(path[: depth + 1])
                    raise ConfigError(
                        f"override {override!r}: the configuration has no {missing} to change an item of: "
                        f"give the whole list as {missing}=[...]"
                    )
                holder[part] = {}
        else:
            raise ConfigError(f"override {override!r}: {so_far} is {holder!r} and has no keys below it")
        if last:
            holder[part] = value
        else:
            holder = holder[part]


def _type_name(value: object) -> str:
    return {list: "list", str: "text", bool: "truth value"}.get(type(value), "number")
