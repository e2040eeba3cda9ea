"""One more structure for a model: made ready without its lock, and committed under it.

All that takes time (`repmode_cl.store.candidate`) happens first, while others may read and change the model. The
commit then looks at the model as it is by now, copies one file and replaces the registry: a process that dies at any
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
from repmode_cl.store.candidate import Candidate, prepare
from repmode_cl.store.history import Action
from repmode_cl.store.preconditions import check_name, check_place
from repmode_cl.store.record_files import file_matches
from repmode_cl.store.registry import Entry, Registry
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.store.transaction import changing, replace_registry
from repmode_cl.utils.atomic_files import put_in_place
from repmode_cl.utils.safetensors_io import read_metadata

__all__ = ["commit", "restore", "store_network"]


class _Source(Protocol):
    """A structure's tensors, and how they get into a file."""

    @property
    def entry(self) -> Entry:
        """What the registry would say of it."""

    def write(self, target: Path) -> Entry:
        """Write the file, and return the entry with its size and SHA-256."""

    def write_as(self, target: Path, recorded: Entry) -> Entry:
        """Write the tensors as the file of a version that is recorded already."""


def store_network(
    model: ModelSnapshot,
    name: str,
    network: RepModeUNet,
    *,
    replace: bool = False,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Registry:
    """Make a candidate and commit it at once; parameters and errors of `make_candidate` and `commit`."""
    # Looked at once more under the lock; here so that a mistake is told before the proof is computed.
    check_name(model.path, Registry.read(model.path), name, replace=replace)
    prepared = prepare(model, name, network, provenance, metrics)
    with changing(model.path) as (registry, document):
        if document["base"]["digest"] != prepared.base:
            raise ModelError(f"{model.path} became another model meanwhile: nothing was stored")
        action: Action = "replace" if replace else "add"
        # The file is written under the lock: another writer would take an unfinished one for a dead process's.
        return _commit(model.path, registry, prepared, action, replace=replace)


def commit(model_path: Path, candidate: Candidate, *, action: Action, replace: bool = False) -> Registry:
    """Make a candidate part of a model, under the model's lock.

    Parameters
    ----------
    model_path
        The model directory as it is by now: others may have changed it since the candidate was made.
    candidate
        Its file is copied, and left where it is.
    action
        What the history says: ``add``, ``replace``, ``import`` or ``accept``.
    replace
        The model has an addition of this name, whose version so far is kept; otherwise it must not have one.

    Returns
    -------
    Registry
        The new one.

    Raises
    ------
    ModelError
        If the candidate is for another base, needs a version that is not active, its name is taken (or, to be
        replaced, is not there, of the base, or needed by another), or its file is not what the entry says.
    """
    with changing(model_path) as (registry, document):
        _check_record(model_path, document, candidate)
        return _commit(model_path, registry, candidate, action, replace=replace)


def restore(model_path: Path, candidate: Candidate) -> Registry:
    """Put back the file of an active structure, which is missing or damaged; the history says nothing of it.

    Parameters
    ----------
    model_path
        The model directory.
    candidate
        The same version. Of its entry nothing is taken over.

    Raises
    ------
    ModelError
        If the model has another version by now, or the candidate's file is not what its entry says.
    """
    name, digest = candidate.entry.name, candidate.entry.digest
    with changing(model_path) as (registry, document):
        _check_record(model_path, document, candidate)
        if (name, digest) not in {(entry.name, entry.digest) for entry in registry.entries}:
            raise ModelError(
                f"{model_path} changed meanwhile, and has no {name!r} {digest[:8]}: nothing was restored"
            )
        recorded = registry.entry(name)
        if file_matches(model_path, recorded):
            return registry
        entry = _put_back(model_path, registry, recorded, candidate)
        if entry == recorded:
            return registry
        entries = tuple(entry if one.name == name else one for one in registry.entries)
        after = dataclasses.replace(registry, entries=entries)
        replace_registry(model_path, registry, after)
    return after


def _commit(path: Path, registry: Registry, source: _Source, action: Action, *, replace: bool) -> Registry:
    """Put the file of `source` in place, then replace the registry; the lock is held."""
    entry = source.entry
    check_place(path, registry, entry.name, entry.needs, replace=replace)
    if replace and registry.entry(entry.name).digest == entry.digest:
        raise ModelError(f"{path} holds exactly this version of {entry.name!r} ({entry.digest[:8]}) already")
    twin = registry.version(entry.name, entry.digest)
    if twin is None:
        file = _vacant_file(registry, entry)
        entry = dataclasses.replace(source.write(path / file), file=file)
    else:
        # What was recorded of a version here counts, whatever a stranger's pack with the same tensors says of it.
        entry = twin if file_matches(path, twin) else _put_back(path, registry, twin, source)
    earlier = registry.entry(entry.name) if replace else None
    after = registry.changed(
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


def _check_record(path: Path, document: Mapping[str, Any], candidate: Candidate) -> None:
    """Refuse a file that is not what its entry says, or is for another base."""
    entry, base = candidate.entry, str(document["base"]["digest"])
    if entry.spec is None:
        raise ModelError(f"{candidate.path} holds no addition: the base of a model is never replaced")
    expected = records.structure_metadata(entry.name, entry.spec, base, entry.needs, entry.portable_json())
    found = read_metadata(candidate.path)
    if found == expected:
        return
    if found.get("record") != expected["record"]:
        raise ModelError(
            f"{candidate.path} was made for another base than that of {path}, or is no file of {entry.name!r}: "
            "nothing was changed"
        )
    raise ModelError(
        f"{candidate.path} is damaged (its metadata are not those recorded): nothing was changed"
    )


def _put_back(path: Path, registry: Registry, recorded: Entry, source: _Source) -> Entry:
    """Give a version a file again, in place of one that is missing or damaged; return its entry.

    The recorded file comes back where the same bytes can be had or made. Else the version gets another one, and its
    entry stays what it was but for that.
    """
    if source.entry.sha256 and source.entry.sha256 == recorded.sha256:
        source.write(path / recorded.file)
        return recorded
    file = _vacant_file(registry, recorded)
    written = dataclasses.replace(source.write_as(path / file, recorded), file=file)
    if written.sha256 != recorded.sha256:
        return written
    put_in_place(path / file, path / recorded.file)
    return recorded


def _vacant_file(registry: Registry, entry: Entry) -> str:
    """Return the shortest name that the registry gives to no other version; files of versions are never rewritten."""
    taken = {other.file for other in registry.versions}
    names = (
        f"{records.STRUCTURES}/{entry.name}-{entry.digest[:length]}.safetensors"
        for length in range(8, len(entry.digest) + 1, 8)
    )
    free = next((name for name in names if name not in taken), None)
    if free is None:
        raise ModelError(
            f"no file name is left for {entry.name!r} ({entry.digest}): run `repmode-cl gc` first"
        )
    return free
