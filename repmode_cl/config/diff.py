"""Whether two configurations describe the same experiment, and the first key by which they do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from repmode_cl.config.schema import Config

__all__ = ["EXTENSION_KEYS", "RESULT_NEUTRAL_KEYS", "first_difference"]

#: Keys that change no figure of a run: where it lies, what it is called, how fast its patches are cut.
RESULT_NEUTRAL_KEYS = frozenset({"name", "output", "training.loader_workers"})

#: Keys by which runs are added to a benchmark, those that there are staying what they are.
EXTENSION_KEYS = frozenset({"seeds", "stream.order_seeds", "stream.images"})


def first_difference(before: Config, now: Config, free: Collection[str] = RESULT_NEUTRAL_KEYS) -> str | None:
    """Name the first key, in alphabetical order, by which two configurations differ.

    Parameters
    ----------
    before, now
        Strategies are compared by their titles, and those that only one of the two has are left out.
    free
        Dotted keys that may differ, with all that is below them.

    Returns
    -------
    str or None
        Such as ``training.steps was 4 and is 5 now``; None where they differ in nothing that counts.
    """
    common = {one.title for one in before.strategies} & {one.title for one in now.strategies}
    old, new = _flat(_values(before, common)), _flat(_values(now, common))
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key) and not any(key == one or key.startswith(f"{one}.") for one in free):
            return f"{key} was {old.get(key)!r} and is {new.get(key)!r} now"
    return None


def _values(config: Config, titles: Collection[str]) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    # Whole, so that a default that was written out is no difference.
    values["strategies"] = {
        one.title: one.model_dump(mode="json") for one in config.strategies if one.title in titles
    }
    return values


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted keys and values; a list of plain values, or an empty one, is a value itself."""
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [(str(place), item) for place, item in enumerate(value)]
    else:
        return {prefix.removesuffix("."): value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flat(item, f"{prefix}{key}.")
    return flat
