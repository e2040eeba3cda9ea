"""Comparison of two configurations: the first key by which they describe different experiments."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

from repmode_cl.config.schema import Config

__all__ = ["first_difference", "EXTENSION_KEYS", "RESULT_NEUTRAL_KEYS"]

#: Keys that change no figure of a run: its folder, its name, the speed of cutting patches, what writes it down, and
#: where prepared images lie. Where other files lie is left out by `first_difference`.
RESULT_NEUTRAL_KEYS = frozenset({"name", "output", "loggers", "training.loader_workers", "data.cache"})

#: Keys that add runs to a benchmark without changing the existing ones.
EXTENSION_KEYS = frozenset({"seeds", "stream.order_seeds", "stream.images"})


def first_difference(old: Config, new: Config, ignored: Collection[str] = RESULT_NEUTRAL_KEYS) -> str | None:
    """Name the first key, in alphabetical order, by which two configurations differ.

    Where a manifest, the files of a stream, and those of strategies and plugins lie makes no difference: a project may
    be moved, and what they hold is compared by whoever asks.

    Parameters
    ----------
    old, new
        The configurations. Strategies are compared by their titles, and those that only one of the two has are skipped.
    ignored
        Dotted keys that may differ, with all that is below them.

    Returns
    -------
    str or None
        Such as ``training.steps was 4 and is 5 now``; None where no other key differs.
    """
    shared_titles = {one.title for one in old.strategies} & {one.title for one in new.strategies}
    old_values, new_values = _flatten(_values(old, shared_titles)), _flatten(_values(new, shared_titles))
    for key in sorted({*old_values, *new_values}):
        if any(key == one or key.startswith(f"{one}.") for one in ignored):
            continue
        if old_values.get(key) != new_values.get(key):
            return f"{key} was {old_values.get(key)!r} and is {new_values.get(key)!r} now"
    return None


def _values(config: Config, titles: Collection[str]) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    values["data"]["manifest"] = None if config.data.manifest is None else "a manifest"
    for key in ("order_file", "difficulty"):
        values["stream"][key] = None if values["stream"][key] is None else "a file"
    # With all defaults, so that writing out a default makes no difference.
    values["strategies"] = {one.title: dict(one) for one in config.strategies if one.title in titles}
    for named in (*values["strategies"].values(), *values["plugins"]):
        named["name"] = _without_folder(named["name"])
    return values


def _without_folder(name: str) -> str:
    """Return ``folder/file.py:Class`` without its folder; other names as they are."""
    file, _, kind = name.rpartition(":")
    return f"{PurePath(file).name}:{kind}" if file.endswith(".py") else name


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return values by dotted key; a list of plain values, or an empty one, is a value itself."""
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [(str(place), item) for place, item in enumerate(value)]
    else:
        return {prefix.removesuffix("."): value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flatten(item, f"{prefix}{key}.")
    return flat
