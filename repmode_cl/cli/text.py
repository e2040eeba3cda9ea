"""What a model says of itself, put so that it can be printed: some of it was written by strangers."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

__all__ = ["command", "figure", "printable"]


#: Figures from here on are no R2 that anybody can read in a column.
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


def command(*words: str | Path) -> str:
    """Return a command of this program as it can be typed, in backquotes."""
    return f"`{shlex.join(['repmode-cl', *map(str, words)])}`"
