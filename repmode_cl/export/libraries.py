"""Import of the libraries that only an export needs, with an error that says what to install."""

from __future__ import annotations

from types import ModuleType

from repmode_cl.utils.extras import require_library

__all__ = ["export_library"]


def export_library(name: str, purpose: str) -> ModuleType:
    """Return a library of the extra ``export``; parameters and errors of `require_library`."""
    return require_library(name, "export", purpose)
