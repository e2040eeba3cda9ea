"""Errors that a user can cause, in one small tree.

The commands print the message of a `RepmodeError` and exit with code 2, without a traceback; any other error is a
defect of this program and keeps its traceback. A message says what was found, where, what is allowed and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "RepmodeError",
    "ConfigError",
    "ImageError",
    "ManifestError",
    "ModelError",
    "StructureError",
    "UnknownStructureError",
    "counted",
    "did_you_mean",
]


class RepmodeError(ValueError):
    """Base of all errors that a user's input can cause."""


class ConfigError(RepmodeError):
    """A configuration file or an override is wrong."""


class ImageError(RepmodeError):
    """An image cannot be read, or not as it is needed."""


class ManifestError(RepmodeError):
    """A manifest, or an image that it names, is wrong."""


class ModelError(RepmodeError):
    """A model directory is missing or damaged, or cannot be changed as requested."""


class StructureError(RepmodeError):
    """A structure's name cannot be used."""


class UnknownStructureError(StructureError):
    """A requested structure does not exist.

    Parameters
    ----------
    name
        The requested name.
    known
        The existing names: the message lists them and suggests the nearest one.
    where
        The place that was searched, for the message ("this network", "the model model/").
    hint
        What else to say, after the list.
    """

    def __init__(
        self, name: str, known: Iterable[str], where: str = "this network", *, hint: str = ""
    ) -> None:
        known = list(known)
        listed = ", ".join(known) if known else "none"
        super().__init__(
            f"unknown structure {name!r}: {where} knows {listed}{hint or did_you_mean(name, known)}"
        )
        self.name = name
        self.known = tuple(known)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of `known`, whatever its case, or an empty string."""
    folded = {name.casefold(): name for name in known}
    nearest = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return f" (did you mean {folded[nearest[0]]!r}?)" if nearest else ""


def counted(number: int, what: str) -> str:
    """Return ``1 structure`` or ``2 structures``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
