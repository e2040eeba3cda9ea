"""Commit a candidate to a model, under the model's lock.

Everything slow (`repmode_cl.store.candidate`) happens before, while others may read and change the model. The
commit then reads the model as it is by now, copies one file and replaces the registry: a process that dies at any
instant leaves the old model or the new one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from repmode_cl.errors import ModelError
from repmode_cl.nn import RepModeUNet
from repmode_cl.store import record_files as records
from repmode_cl.store.candidate import Candidate, prepare_addition
from repmode_cl.store.history import Action
from repmode_cl.store.preconditions import check_addition, check_name
from repmode_cl.store.registry import Entry, Registry
from repmode_cl.store.reliability import Reliability
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.store.transaction import replace_registry, transaction
from repmode_cl.utils.atomic_files import put_in_place
from repmode_cl.utils.safetensors_io import read_metadata

__all__ = ["commit", "restore_structure_file", "store_network"]


class _StructureSource(Protocol):
    """A structure that can be written to a file: a `Candidate` or a `PreparedAddition`."""

    @property
    def entry(self) -> Entry:
        """Its registry entry."""

    def write(self, target: Path) -> Entry:
        """Write the file, and return the entry with its size and SHA-256."""

    def write_recorded(self, target: Path, recorded: Entry) -> Entry:
        """Write the tensors as the file of a version that is recorded already."""


def store_network(
    model: ModelSnapshot,
    name: str,
    network: RepModeUNet,
    *,
    replace: bool = False,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    reliability: Reliability | None = None,
) -> Registry:
    """Make a candidate and commit it at once; parameters and errors of `make_candidate` and `commit`."""
    # Checked again under the lock; here, so that a mistake is reported before the proof is computed.
    check_name(model.path, Registry.read(model.path), name, replace=replace)
    prepared = prepare_addition(model, name, network, provenance, metrics, reliability)
    with transaction(model.path) as (registry, document):
        if document["base"]["digest"] != prepared.base:
            raise ModelError(f"{model.path} became another model meanwhile: nothing was stored")
        action: Action = "replace" if replace else "add"
        # The file is written under the lock: another writer would remove an unfinished one as a dead process's.
        return _commit_locked(model.path, registry, prepared, action, replace=replace)


def commit(model_path: Path, candidate: Candidate, *, action: Action, replace: bool = False) -> Registry:
    """Make a candidate part of a model, under the model's lock.

    Parameters
    ----------
    model_path
        The model directory as it is by now: others may have changed it since the candidate was made.
    candidate
        Its file is copied, not moved.
    action
        Action for the history: ``add``, ``replace``, ``import`` or ``accept``.
    replace
        Replace the addition of this name, whose present version is kept; without it the model must not have one.

    Returns
    -------
    Registry
        The new registry.

    Raises
    ------
    ModelError
        If the candidate is for another base, needs a version that is not active, its name is in use (or, to be
        replaced, is missing, of the base, or needed by another), or its file does not fit its entry.
    """
    with transaction(model_path) as (registry, document):
        _check_candidate_file(model_path, document, candidate)
        return _commit_locked(model_path, registry, candidate, action, replace=replace)


def restore_structure_file(model_path: Path, candidate: Candidate) -> Registry:
    """Restore the file of an active structure, which is missing or damaged; the history does not change.

    Parameters
    ----------
    model_path
        The model directory.
    candidate
        The same version. Nothing of its entry is used.

    Raises
    ------
    ModelError
        If the model has another version by now, or the candidate's file does not fit its entry.
    """
    name, digest = candidate.entry.name, candidate.entry.digest
    with transaction(model_path) as (registry, document):
        _check_candidate_file(model_path, document, candidate)
        if (name, digest) not in {(entry.name, entry.digest) for entry in registry.entries}:
            raise ModelError(
                f"{model_path} changed meanwhile, and has no {name!r} {digest[:8]}: nothing was restored"
            )
        recorded = registry.entry(name)
        if records.file_matches(model_path, recorded):
            return registry
        entry = _restore_file(model_path, registry, recorded, candidate)
        if entry == recorded:
            return registry
        entries = tuple(entry if one.name == name else one for one in registry.entries)
        after = dataclasses.replace(registry, entries=entries)
        replace_registry(model_path, registry, after)
    return after


def _commit_locked(
    path: Path, registry: Registry, source: _StructureSource, action: Action, *, replace: bool
) -> Registry:
    """Put the file of `source` in place, then replace the registry; the lock is held."""
    entry = source.entry
    check_addition(path, registry, entry.name, entry.needs, replace=replace)
    if replace and registry.entry(entry.name).digest == entry.digest:
        raise ModelError(f"{path} holds exactly this version of {entry.name!r} ({entry.digest[:8]}) already")
    recorded = registry.version(entry.name, entry.digest)
    # The recorded entry of a version counts, whatever a stranger's pack with the same tensors says.
    if recorded is None:
        file = _unused_file_name(registry, entry)
        entry = dataclasses.replace(source.write(path / file), file=file)
    elif records.file_matches(path, recorded):
        entry = recorded
    else:
        entry = _restore_file(path, registry, recorded, source)
    earlier = registry.entry(entry.name) if replace else None
    after = registry.with_change(
        action,
        (*(other for other in registry.entries if other.name != entry.name), entry),
        # A version that comes back is not kept a second time.
        [
            other
            for other in (*registry.kept, *([earlier] if earlier else []))
            if (other.name, other.digest) != (entry.name, entry.digest)
        ],
        structure=entry.name,
        digest=entry.digest,
        earlier=earlier.digest if earlier else None,
        spec=entry.spec,
        provenance=entry.provenance,
        metrics=entry.metrics,
    )
    replace_registry(path, registry, after)
    return after


def _check_candidate_file(path: Path, document: Mapping[str, Any], candidate: Candidate) -> None:
    """Refuse a file that does not fit its entry, or is for another base."""
    entry, base = candidate.entry, str(document["base"]["digest"])
    if entry.spec is None:
        raise ModelError(f"{candidate.path} holds no addition: the base of a model is never replaced")
    expected = records.structure_metadata(entry.name, entry.spec, base, entry.needs, entry.portable_json())
    metadata = read_metadata(candidate.path)
    if metadata == expected:
        return
    if metadata.get("record") != expected["record"]:
        raise ModelError(
            f"{candidate.path} was made for another base than that of {path}, or is no file of {entry.name!r}: "
            "nothing was changed"
        )
    raise ModelError(
        f"{candidate.path} is damaged (its metadata are not those recorded): nothing was changed"
    )


def _restore_file(path: Path, registry: Registry, recorded: Entry, source: _StructureSource) -> Entry:
    """Write the file of a version again, in place of one that is missing or damaged; return its entry.

    Where the same bytes can be copied or written, the file is the recorded one. Otherwise the version gets another
    file, and nothing else in its entry changes.
    """
    if source.entry.sha256 and source.entry.sha256 == recorded.sha256:
        source.write(path / recorded.file)
        return recorded
    file = _unused_file_name(registry, recorded)
    written = dataclasses.replace(source.write_recorded(path / file, recorded), file=file)
    if written.sha256 != recorded.sha256:
        return written
    put_in_place(path / file, path / recorded.file)
    return recorded


def _unused_file_name(registry: Registry, entry: Entry) -> str:
    """Return the shortest file name that no other version has; files of versions are never rewritten."""
    used = {other.file for other in registry.versions}
    names = (
        f"{records.STRUCTURES}/{entry.name}-{entry.digest[:length]}.safetensors"
        for length in range(8, len(entry.digest) + 1, 8)
    )
    free = next((name for name in names if name not in used), None)
    if free is None:
        raise ModelError(
            f"no file name is left for {entry.name!r} ({entry.digest}): run `repmode-cl gc` first"
        )
    return free
