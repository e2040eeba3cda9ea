"""One more structure for a model: made ready without its lock, and committed under it.

All that takes time (comparing with what is stored, the proof, the digest, writing the file) happens first, while
others may read and change the model. The commit then looks at the model as it is by now, copies one file and
replaces the registry: a process that dies at any instant leaves the old model or the new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.files import replacing, sha256_file
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.store import records
from repmode_cl.store.digests import tensor_digest
from repmode_cl.store.history import Action
from repmode_cl.store.proof import on_cpu, prove
from repmode_cl.store.registry import Entry, Registry, now, plain_json
from repmode_cl.store.tensors import read_metadata
from repmode_cl.store.writing import changing, replace_registry

if TYPE_CHECKING:
    from repmode_cl.store.model import Model

__all__ = ["Candidate", "check_free", "check_place", "commit", "count", "make_candidate", "store_network"]


@dataclass(frozen=True)
class Candidate:
    """A structure that is ready to become part of a model.

    Parameters
    ----------
    path
        Its finished file, a pack.
    entry
        What the registry will say of it; ``file`` may become longer where another version has that name.
    """

    path: Path
    entry: Entry


@dataclass(frozen=True)
class _Prepared:
    """What a candidate's file will hold."""

    entry: Entry
    state: Mapping[str, Tensor]
    base: str


def make_candidate(
    model: Model,
    name: str,
    network: RepModeUNet,
    folder: Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Candidate:
    """Prove a trained addition and write its file into `folder`; the model is read, and neither locked nor changed.

    Parameters
    ----------
    model
        The one that the network was loaded from.
    name
        An addition of `network`; whether the model can take it is found by `commit`.
    network
        All that it shares with the model, as it is on disk now or was in a version that is kept, must be the same
        bits, but for `name` itself.
    folder
        Gets ``<name>-<first 8 digits of the digest>.safetensors``, whole or not at all.
    provenance, metrics
        JSON: where it comes from, and how well it predicts on held-out images.

    Raises
    ------
    UnknownStructureError
        If `name` is no addition of the network.
    ModelError
        If the network differs from the model in one bit, predicts non-finite numbers, or needs what is not there.
    """
    prepared = _prepare(model.path, name, network, provenance, metrics)
    path = Path(folder) / Path(prepared.entry.file).name
    return Candidate(path, records.write_structure(path, prepared.state, prepared.entry, prepared.base))


def store_network(
    model: Model,
    name: str,
    network: RepModeUNet,
    *,
    replace: bool = False,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Registry:
    """Make a candidate and commit it at once; parameters and errors of `make_candidate` and `commit`."""
    # Looked at once more under the lock; here so that a mistake is told before the proof is computed.
    _check_name(model.path, Registry.read(model.path), name, replace=replace)
    prepared = _prepare(model.path, name, network, provenance, metrics)

    def write(target: Path) -> Entry:
        # Under the lock: beside the model's files another writer would take an unfinished one for a dead process's.
        return records.write_structure(target, prepared.state, prepared.entry, prepared.base)

    with changing(model.path) as (registry, document):
        if document["base"]["digest"] != prepared.base:
            raise ModelError(f"{model.path} became another model meanwhile: nothing was stored")
        action: Action = "replace" if replace else "add"
        return _commit(model.path, registry, prepared.entry, write, action, replace=replace)


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

        def copy(target: Path) -> Entry:
            _copy(candidate.path, target, candidate.entry.sha256)
            return candidate.entry

        return _commit(model_path, registry, candidate.entry, copy, action, replace=replace)


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
    _check_name(path, registry, name, replace=replace)
    for need, digest in needs:
        if need not in registry.names:
            raise ModelError(f"{name!r} needs {need!r}, which {path} lacks: add that first")
        active = registry.entry(need).digest
        if active != digest:
            raise ModelError(
                f"{name!r} was made with version {digest[:8]} of {need!r}, and {path} now has version {active[:8]}: "
                f"roll the model back to that version, or train {name!r} again"
            )


def _check_name(path: Path, registry: Registry, name: str, *, replace: bool) -> None:
    if replace:
        check_free(path, registry, name, "replaced")
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


def _commit(
    path: Path,
    registry: Registry,
    entry: Entry,
    place: Callable[[Path], Entry],
    action: Action,
    *,
    replace: bool,
) -> Registry:
    """Have `place` put the file where it is told to, then replace the registry; the lock is held."""
    check_place(path, registry, entry.name, entry.needs, replace=replace)
    if replace and registry.entry(entry.name).digest == entry.digest:
        raise ModelError(f"{path} holds exactly this version of {entry.name!r} ({entry.digest[:8]}) already")
    twin = registry.version(entry.name, entry.digest)
    if twin is not None and _holds(path / twin.file, entry.sha256):
        entry = dataclasses.replace(entry, file=twin.file)
    else:
        file = _vacant_file(registry, entry)
        entry = dataclasses.replace(place(path / file), file=file)
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


def _holds(file: Path, sha256: str) -> bool:
    """Say whether a version that comes back, such as from its pack, has its very file here still."""
    return bool(sha256) and file.is_file() and sha256_file(file) == sha256


def _copy(source: Path, target: Path, sha256: str) -> None:
    """Copy a file, whole or not at all, and only if its SHA-256 is as expected."""
    digest = hashlib.sha256()
    with replacing(target) as beside, source.open("rb") as reader, beside.open("wb") as writer:
        while piece := reader.read(1 << 22):
            digest.update(piece)
            writer.write(piece)
        if digest.hexdigest() != sha256:
            raise ModelError(f"{source} is damaged: its SHA-256 is not the one recorded; nothing was changed")


def _prepare(
    path: Path,
    name: str,
    network: RepModeUNet,
    provenance: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
) -> _Prepared:
    if name not in network.additions:
        raise UnknownStructureError(name, network.additions, "the additions of the network to store")
    origin = plain_json(provenance or {}, "provenance")
    figures = plain_json(metrics or {}, f"metrics of {name!r}")
    network = on_cpu(network)
    spec = network.additions[name]
    registry = Registry.read(path)
    document = records.read_model(path, registry)
    base = str(document["base"]["digest"])
    digests = _unchanged(path, name, network, registry, document)
    needs = tuple((need, digests[need]) for need in spec.needs)
    state = network.structure_state(name)
    for tensor_name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{name!r} has numbers that are not finite ({tensor_name}): its training diverged; train it again "
                "with a lower learning rate"
            )
    entry = Entry(
        name=name,
        kind="addition",
        file=f"{records.STRUCTURES}/{name}-{digests[name][:8]}.safetensors",
        bytes=0,
        sha256="",
        digest=digests[name],
        spec=spec,
        needs=needs,
        parameters=count(state),
        proof=prove(network, name),
        provenance=origin,
        metrics=figures,
        created=now(),
    )
    return _Prepared(entry, state, base)


def _unchanged(
    path: Path, name: str, network: RepModeUNet, registry: Registry, document: Mapping[str, Any]
) -> dict[str, str]:
    """Return the digest of each addition of the network; refuse one that differs from the model in one bit."""
    what = f"the network differs from the model {path}"
    todo = "nothing was stored; train on a network loaded from this model, with all else frozen"
    architecture = Architecture.from_json(document["architecture"])
    base_structures = tuple(document["base_structures"])
    if network.architecture != architecture or network.base_structures != base_structures:
        raise ModelError(f"{what} in its architecture or its base structures: {todo}")
    base = str(document["base"]["digest"])
    if tensor_digest(network.base_state(), records.base_facts(document)) != base:
        raise ModelError(f"{what} in the base (weights, gate rows or norm statistics): {todo}")
    known = {version.name for version in registry.versions}
    digests: dict[str, str] = {}
    for other, spec in network.additions.items():
        needs = [(need, digests[need]) for need in spec.needs]
        facts = records.structure_facts(other, spec, base, needs)
        digests[other] = tensor_digest(network.structure_state(other), facts)
        # What the model does not know (yet) is none of its business unless it is needed: the commit sees to that.
        if other != name and other in known and registry.version(other, digests[other]) is None:
            raise ModelError(f"{what} in the structure {other!r}: {todo}")
    return digests


def count(state: Mapping[str, Tensor]) -> int:
    """Return how many numbers a structure owns, counters of batches excluded."""
    return sum(tensor.numel() for tensor in state.values() if torch.is_floating_point(tensor))
