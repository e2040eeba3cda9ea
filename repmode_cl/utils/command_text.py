"""Commands of this program in messages, as they can be typed."""

from __future__ import annotations

import shlex
from pathlib import Path

__all__ = ["command", "command_line"]


def command_line(*words: str | Path | int) -> str:
    """Return a command of this program as it can be typed: words with blanks are quoted."""
    return shlex.join(["repmode-cl", *map(str, words)])


def command(*words: str | Path | int) -> str:
    """Return a command of this program as it can be typed, in backquotes."""
    return f"`{command_line(*words)}`"
