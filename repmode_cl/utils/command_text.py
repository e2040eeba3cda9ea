"""repmode_cl.utils.command_text."""

from __future__ import annotations

import shlex
from pathlib import Path

__all__ = ["command"]


def command(name: str, *arguments: str | Path) -> str:
    """Return a command to suggest, as it can be typed: paths with blanks are quoted."""
    return f"`{shlex.join(['repmode-cl', name, *map(str, arguments)])}`"
