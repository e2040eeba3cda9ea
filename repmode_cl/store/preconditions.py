"""Whether there is a place in a model for a structure: its name, and what it needs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.store.registry import Registry

__all__ = ["check_free", "check_name", "check_needs", "check_place"]


def check_place(
    path: Path, registry: Registry, name: str, needs: Sequence[tuple[str, str]], *, replace: bool
) -> None:
    """Refuse a structure that a model cannot take, by its name or by what it needs.

    Raises
    ------
    ModelError
        See `commit`.
    UnknownStructureError
        If it is to replace what is not there.
    """
    check_name(path, registry, name, replace=replace)
    check_needs(path, registry, name, needs)


def check_needs(path: Path, registry: Registry, name: str, needs: Sequence[tuple[str, str]]) -> None:
    """Refuse a structure that needs a version that is not active; where that is kept, say how it comes back."""
    for need, digest in needs:
        back = _way_back(path, registry, need, digest)
        if need not in registry.names:
            raise ModelError(f"{name!r} needs {need!r}, which {path} lacks: {back or 'add that first'}")
        active = registry.entry(need).digest
        if active != digest:
            raise ModelError(
                f"{name!r} was made with version {digest[:8]} of {need!r}, and {path} now has version {active[:8]}: "
                f"{back or 'roll the model back to that version'}, or train {name!r} again"
            )


def _way_back(path: Path, registry: Registry, name: str, digest: str) -> str:
    """Return what brings a version back that is kept; empty where none is."""
    if registry.version(name, digest) is None:
        return ""
    numbers = range(len(registry.history), 0, -1)
    number = next((number for number in numbers if (name, digest) in registry.state_after(number)), None)
    if number is None:
        return ""
    command = shlex.join(["repmode-cl", "rollback", str(path), str(number)])
    return f"roll the model back to where it had that version (`{command}`)"


def check_name(path: Path, registry: Registry, name: str, *, replace: bool) -> None:
    """Refuse a name that is taken or, where it is to be replaced, that of nothing which can be."""
    if replace:
        check_free(path, registry, name, "replaced")
    elif name in registry.names and registry.entry(name).kind == "base":
        raise ModelError(
            f"the model {path} has {name!r} already, as part of its base: it is predicted as it is, and additions "
            "cannot take its name; add yours under another one"
        )
    elif name in registry.names:
        raise ModelError(
            f"the model {path} has {name!r} already: add it under another name, or replace it (an addition that no "
            "other needs can be replaced; its version so far is kept)"
        )


def check_free(path: Path, registry: Registry, name: str, done: str) -> None:
    """Refuse to have a structure removed or replaced that is not there, is of the base, or is needed by others."""
    if name not in registry.names:
        raise UnknownStructureError(name, registry.names, f"the model {path}")
    if registry.entry(name).kind == "base":
        raise ModelError(
            f"{name!r} is part of the base of {path} and cannot be {done}: all additions stand on the base; train "
            "another model for another base"
        )
    if others := registry.needed_by(name):
        raise ModelError(
            f"{name!r} cannot be {done}: {', '.join(others)} of {path} need{'s' * (len(others) == 1)} its experts; "
            f"remove {'it' if len(others) == 1 else 'them'} first"
        )
