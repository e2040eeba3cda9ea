"""Text and figures of a model made safe to print: some were written by strangers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["figure", "printable", "training_texts"]

#: Figures from here on are no R2 that can be read in a column: they are written with an exponent.
_LARGE = 1e6

#: Groups of an addition's parameters that may have their own rates; a model of strangers may name anything.
_GROUPS = ("expert", "gate", "norm", "resampling")


def figure(value: object) -> str:
    """Return a figure with three digits; empty if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    try:
        number = float(value)
    except OverflowError:  # an integer that no float can hold
        return ""
    if not math.isfinite(number):
        return ""
    return f"{number:.3f}" if abs(number) < _LARGE else f"{number:.3g}"


def printable(text: object) -> str:
    """Return text without what would move a terminal's cursor, colour it, or break its lines."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def training_texts(provenance: Mapping[str, Any], structures: int, *, added: bool) -> list[str]:
    """Return how a structure, or a base, was trained: ``["300 steps", "rate 0.002", "seed 0"]``.

    Parameters
    ----------
    provenance
        As the model records it. Where an earlier version of this program did not record what was done, it is computed
        from the settings.
    structures
        Number of structures that were trained together.
    added
        Whether it is an addition, for which a configuration may name another rate.
    """
    training = provenance.get("training")
    settings = dict(training) if isinstance(training, Mapping) else {}
    addition = provenance.get("addition")
    if added and isinstance(addition, Mapping) and addition.get("learning_rate") is not None:
        settings["learning_rate"] = addition["learning_rate"]
    if structures > 1:
        each = settings.get("steps")
        joint = each * structures if isinstance(each, int) else None
        settings["steps"] = settings.get("base_steps") or joint
    texts = []
    for key, text in (("steps", "{} steps"), ("learning_rate", "rate {}"), ("seed", "seed {}")):
        if number := _number_text(provenance.get(key, settings.get(key))):
            texts.append(text.format(number))
    rates = settings.get("learning_rate")
    if isinstance(rates, Mapping):
        listed = [f"{group} {number}" for group in _GROUPS if (number := _number_text(rates.get(group)))]
        if listed:
            texts.insert(1 if texts and texts[0].endswith("steps") else 0, f"rates {', '.join(listed)}")
    return texts


def _number_text(value: object) -> str:
    """Return a setting as text; empty if it is no number that one could have trained with."""
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return ""
