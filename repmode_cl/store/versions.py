"""Versions of structures: removal, rollback to an earlier state, and garbage collection.

Removal and rollback change only the registry. Only `gc` deletes files, after the registry no longer names them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.errors import ModelError
from repmode_cl.store import record_files as records
from repmode_cl.store.history import Change
from repmode_cl.store.preconditions import check_removable
from repmode_cl.store.registry import Entry, Registry
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.store.staging import list_staged
from repmode_cl.store.transaction import replace_registry, transaction

__all__ = ["GarbageReport", "collect_garbage", "remove", "roll_back"]


@dataclass(frozen=True)
class GarbageReport:
    """Versions and files that `gc` deleted, or would delete.

    Parameters
    ----------
    versions
        Earlier versions that the model kept.
    files
        Their files, and those of no version: name relative to the model, and bytes.
    needed
        Earlier versions that stay, because staged structures were trained with them.
    """

    versions: tuple[Entry, ...]
    files: tuple[tuple[str, int], ...]
    needed: tuple[Entry, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all the files."""
        return sum(size for _, size in self.files)


def remove(path: Path, name: str) -> Registry:
    """Take a structure out of a model; its version is kept until `collect_garbage`.

    Raises
    ------
    UnknownStructureError
        If the model does not have it.
    ModelError
        If it is part of the base, or another structure needs its experts.
    """
    with transaction(path) as (registry, _):
        check_removable(path, registry, name, "removed")
        entry = registry.entry(name)
        others = [other for other in registry.entries if other.name != name]
        after = registry.with_change(
            "remove", others, [*registry.kept, entry], structure=name, earlier=entry.digest
        )
        replace_registry(path, registry, after)
    return after


def roll_back(path: Path, number: int) -> tuple[Registry, Change | None]:
    """Make the structures active that were active after change `number`; the change is None if they still are.

    Raises
    ------
    ModelError
        If there is no such change, or a version of that state was deleted, or its file is missing or damaged.
    """
    with transaction(path) as (registry, _):
        state = registry.state_after(number)
        if state == tuple((entry.name, entry.digest) for entry in registry.entries):
            return registry, None
        versions = {(name, digest): registry.version(name, digest) for name, digest in state}
        deleted = [f"{name} ({digest[:8]})" for (name, digest), entry in versions.items() if entry is None]
        if deleted:
            raise ModelError(
                f"{path} cannot go back to change {number}: {', '.join(deleted)} "
                f"{'was' if len(deleted) == 1 else 'were'} deleted by gc; import a pack of each first, or use a copy "
                "of the model from before"
            )
        entries = [entry for entry in versions.values() if entry is not None]
        # Structures that stay active are not checked: a damaged one must not keep the others from coming back.
        active = {(entry.name, entry.digest) for entry in registry.entries}
        for entry in entries:
            if (entry.name, entry.digest) in active:
                continue
            records.check_size(path, entry)
            if not records.file_matches(path, entry):
                raise ModelError(
                    f"{path} cannot go back to change {number}: {path / entry.file} ({entry.name}) is damaged (its "
                    "SHA-256 is not the one recorded); put it back from a copy of the model"
                )
        kept = [entry for entry in registry.versions if (entry.name, entry.digest) not in versions]
        after = registry.with_change("rollback", entries, kept, to=number)
        replace_registry(path, registry, after)
    return after, after.history[-1]


def collect_garbage(path: Path, *, dry_run: bool = False) -> tuple[Registry, GarbageReport]:
    """Delete kept versions, and files in ``structures/`` that belong to no version.

    A version that a staged structure needs stays: without it that could never be accepted.

    Parameters
    ----------
    path
        The model directory.
    dry_run
        Delete nothing; only report what would be deleted.
    """
    staged = [one.entry for one in list_staged(ModelSnapshot.open(path)) if one.entry is not None]
    needs = {need for entry in staged for need in entry.needs}
    if dry_run:
        registry = Registry.read(path)
        return registry, _find_garbage(path, registry, needs)
    with transaction(path) as (registry, _):
        garbage = _find_garbage(path, registry, needs)
        # Files of no version first: on a full disk this makes room for the new registry.
        named = {entry.file for entry in registry.versions}
        _delete(path, [file for file, _ in garbage.files if file not in named])
        after = registry
        if garbage.versions:
            removed = [
                {"structure": entry.name, "digest": entry.digest, "bytes": entry.bytes}
                for entry in garbage.versions
            ]
            provenance = {"removed": removed}
            after = registry.with_change("gc", registry.entries, garbage.needed, provenance=provenance)
            replace_registry(path, registry, after)
        # Only now: if the process dies before, the model still has every file that it names.
        active = {entry.file for entry in after.versions}
        _delete(path, [file for file, _ in garbage.files if file not in active])
    return after, garbage


def _find_garbage(path: Path, registry: Registry, needs: Collection[tuple[str, str]]) -> GarbageReport:
    needed = tuple(entry for entry in registry.kept if (entry.name, entry.digest) in needs)
    active = {entry.file for entry in (*registry.entries, *needed)}
    files = []
    for file in sorted((path / records.STRUCTURES).glob("*.safetensors")):
        name = f"{records.STRUCTURES}/{file.name}"
        # Other files are not deleted: someone else put them there, or a writer is writing them right now.
        if name not in active and records.STRUCTURE_FILE.fullmatch(file.name):
            files.append((name, file.stat().st_size))
    versions = tuple(entry for entry in registry.kept if entry not in needed)
    return GarbageReport(versions, tuple(files), needed)


def _delete(path: Path, files: list[str]) -> None:
    for file in files:
        (path / file).unlink(missing_ok=True)
