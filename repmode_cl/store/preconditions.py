"""Preconditions of adding, replacing and removing a structure: its name, and the additions that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.store.registry import Registry
from repmode_cl.utils.command_text import command

__all__ = ["check_addition", "check_name", "check_needs", "check_removable"]


def check_addition(
    path: Path, registry: Registry, name: str, needs: Sequence[tuple[str, str]], *, replace: bool
) -> None:
    """Refuse a structure that cannot be added to a model, because of its name or of what it needs.

    Raises
    ------
    ModelError
        See `commit`.
    UnknownStructureError
        If there is no structure to replace.
    """
    check_name(path, registry, name, replace=replace)
    check_needs(path, registry, name, needs)


def check_needs(path: Path, registry: Registry, name: str, needs: Sequence[tuple[str, str]]) -> None:
    """Refuse a structure that needs a version that is not active; the error says how a kept one comes back."""
    for need, digest in needs:
        hint = _rollback_hint(path, registry, need, digest)
        if need not in registry.names:
            raise ModelError(f"{name!r} needs {need!r}, which {path} lacks: {hint or 'add that first'}")
        active = registry.entry(need).digest
        if active != digest:
            raise ModelError(
                f"{name!r} was made with version {digest[:8]} of {need!r}, and {path} now has version {active[:8]}: "
                f"{hint or 'that one is kept no more: replace it by a pack of it'}, or train {name!r} again"
            )


def _rollback_hint(path: Path, registry: Registry, name: str, digest: str) -> str:
    """Return the command that brings a kept version back; empty where there is none."""
    if registry.version(name, digest) is None:
        return ""
    numbers = range(len(registry.history), 0, -1)
    number = next((number for number in numbers if (name, digest) in registry.state_after(number)), None)
    if number is None:
        return ""
    return f"roll the model back to where it had that version ({command('rollback', path, number)})"


def check_name(path: Path, registry: Registry, name: str, *, replace: bool) -> None:
    """Refuse a name that is in use or, with `replace`, one that cannot be replaced."""
    if replace:
        check_removable(path, registry, name, "replaced")
    elif name in registry.names and registry.entry(name).kind == "base":
        raise ModelError(
            f"the model {path} has {name!r} already, as part of its base: it is predicted as it is, and additions "
            "cannot take its name; add yours under another one"
        )
    elif name in registry.names:
        raise ModelError(
            f"the model {path} has {name!r} already: add it under another name, or replace it (an addition that no "
            "other needs can be replaced; its present version is kept)"
        )


def check_removable(path: Path, registry: Registry, name: str, action: str) -> None:
    """Refuse to remove or replace a structure that is missing, part of the base, or needed by others."""
    if name not in registry.names:
        raise UnknownStructureError(name, registry.names, f"the model {path}")
    if registry.entry(name).kind == "base":
        raise ModelError(
            f"{name!r} is part of the base of {path} and cannot be {action}: all additions stand on the base; train "
            "another model for another base"
        )
    if others := registry.needed_by(name):
        raise ModelError(
            f"{name!r} cannot be {action}: {', '.join(others)} of {path} need{'s' * (len(others) == 1)} its experts; "
            f"remove {'it' if len(others) == 1 else 'them'} first"
        )
