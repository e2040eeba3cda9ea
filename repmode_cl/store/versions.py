"""Taking back: a structure removed, an earlier state of the model restored, and what nobody needs deleted.

Removing and rolling back change the registry alone. Files go in `gc` only, after the registry has let go of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from repmode_cl.errors import ModelError
from repmode_cl.store import record_files as records
from repmode_cl.store.history import Change
from repmode_cl.store.preconditions import check_free
from repmode_cl.store.record_files import file_matches
from repmode_cl.store.registry import Entry, Registry
from repmode_cl.store.transaction import changing, replace_registry

__all__ = ["GarbageReport", "collect", "remove", "roll_back"]


@dataclass(frozen=True)
class GarbageReport:
    """What `gc` deleted, or would delete.

    Parameters
    ----------
    versions
        Earlier versions that the model kept.
    files
        Their files, and those that no version has: name relative to the model, and bytes.
    """

    versions: tuple[Entry, ...]
    files: tuple[tuple[str, int], ...]

    @property
    def bytes(self) -> int:
        """Size of all the files."""
        return sum(size for _, size in self.files)


def remove(path: Path, name: str) -> Registry:
    """Take a structure out of a model; its version is kept until `collect`.

    Raises
    ------
    UnknownStructureError
        If the model does not have it.
    ModelError
        If it is part of the base, or another structure needs its experts.
    """
    with changing(path) as (registry, _):
        check_free(path, registry, name, "removed")
        entry = registry.entry(name)
        others = [other for other in registry.entries if other.name != name]
        after = registry.changed(
            "remove", others, [*registry.kept, entry], structure=name, earlier=entry.digest
        )
        replace_registry(path, registry, after)
    return after


def roll_back(path: Path, number: int) -> tuple[Registry, Change | None]:
    """Make active what was active after change `number`; None, and nothing happens, where it still is.

    Raises
    ------
    ModelError
        If there is no such change, or a version of then was deleted, or its file is missing or damaged.
    """
    with changing(path) as (registry, _):
        state = registry.state_after(number)
        if state == tuple((entry.name, entry.digest) for entry in registry.entries):
            return registry, None
        found = {(name, digest): registry.version(name, digest) for name, digest in state}
        gone = [f"{name} ({digest[:8]})" for (name, digest), entry in found.items() if entry is None]
        if gone:
            raise ModelError(
                f"{path} cannot go back to change {number}: {', '.join(gone)} "
                f"{'was' if len(gone) == 1 else 'were'} deleted by gc; import a pack of each first, or use a copy "
                "of the model from before"
            )
        entries = [entry for entry in found.values() if entry is not None]
        # Of those that stay nothing is asked: a damaged one must not keep the others from coming back.
        active = {(entry.name, entry.digest) for entry in registry.entries}
        for entry in entries:
            if (entry.name, entry.digest) in active:
                continue
            records.check_size(path, entry)
            if not file_matches(path, entry):
                raise ModelError(
                    f"{path} cannot go back to change {number}: {path / entry.file} ({entry.name}) is damaged (its "
                    "SHA-256 is not the one recorded); put it back from a copy of the model"
                )
        kept = [entry for entry in registry.versions if (entry.name, entry.digest) not in found]
        after = registry.changed("rollback", entries, kept, to=number)
        replace_registry(path, registry, after)
    return after, after.history[-1]


def collect(path: Path, *, dry_run: bool = False) -> tuple[Registry, GarbageReport]:
    """Delete the versions that are kept, and files in ``structures/`` that no version has.

    Parameters
    ----------
    path
        The model directory.
    dry_run
        Only tell what would go.
    """
    if dry_run:
        registry = Registry.read(path)
        return registry, _collectable(path, registry)
    with changing(path) as (registry, _):
        found = _collectable(path, registry)
        # What no version has first: on a full disk this makes room for the new registry.
        named = {entry.file for entry in registry.versions}
        _delete(path, [file for file, _ in found.files if file not in named])
        after = registry
        if registry.kept:
            removed = [
                {"structure": entry.name, "digest": entry.digest, "bytes": entry.bytes}
                for entry in registry.kept
            ]
            after = registry.changed("gc", registry.entries, (), provenance={"removed": removed})
            replace_registry(path, registry, after)
        # Only now: a process that dies before leaves a model that still has all that it names.
        active = {entry.file for entry in after.versions}
        _delete(path, [file for file, _ in found.files if file not in active])
    return after, found


def _collectable(path: Path, registry: Registry) -> GarbageReport:
    needed = {entry.file for entry in registry.entries}
    found = []
    for file in sorted((path / records.STRUCTURES).glob("*.safetensors")):
        name = f"{records.STRUCTURES}/{file.name}"
        # What someone else put there is not ours to delete, nor what a writer is at this moment writing.
        if name not in needed and records.STRUCTURE_FILE.fullmatch(file.name):
            found.append((name, file.stat().st_size))
    return GarbageReport(registry.kept, tuple(found))


def _delete(path: Path, files: list[str]) -> None:
    for file in files:
        (path / file).unlink(missing_ok=True)
