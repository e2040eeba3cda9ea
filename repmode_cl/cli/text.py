"""Text and figures of a model made safe to print: some were written by strangers."""

from __future__ import annotations

import math

__all__ = ["figure", "printable"]

#: Figures from here on are no R2 that can be read in a column: they are written with an exponent.
_LARGE = 1e6


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
