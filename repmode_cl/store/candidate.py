"""Candidates: added structures that are checked, proved and written to a file, without the model's lock.

Everything slow happens here; only `repmode_cl.store.commit` needs the lock.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.store import record_files as records
from repmode_cl.store.pack_format import read_pack
from repmode_cl.store.preconditions import check_needs
from repmode_cl.store.proof import Proof, on_cpu, prove
from repmode_cl.store.registry import Entry, Registry, plain_json, utc_now
from repmode_cl.store.reliability import Reliability
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.store.untrusted_json import find_metadata_problem, without_control_characters
from repmode_cl.utils.atomic_files import replacing
from repmode_cl.utils.tensor_digests import tensor_digest

__all__ = ["Candidate", "PreparedAddition", "make_candidate", "prepare_addition"]


@dataclass(frozen=True)
class Candidate:
    """A structure in a file, ready to be committed to a model.

    Parameters
    ----------
    path
        Its finished file, a pack.
    entry
        Its registry entry; ``file`` may become longer where another version has that name.
    """

    path: Path
    entry: Entry

    def write(self, target: Path) -> Entry:
        """Copy the file, after a check of its SHA-256."""
        _copy_checked(self.path, target, self.entry.sha256)
        return self.entry

    def write_recorded(self, target: Path, recorded: Entry) -> Entry:
        """Write its tensors as the file of a version that the registry knows already."""
        pack = read_pack(self.path)
        contents = pack.load()
        return _write_recorded(
            target, contents.state, contents.references, self.entry.proof, recorded, pack.base
        )


@dataclass(frozen=True)
class PreparedAddition:
    """A structure that is checked and proved, ready to be written.

    Parameters
    ----------
    entry
        Its registry entry without ``bytes`` and ``sha256``; its proof holds its references.
    state
        Its tensors.
    base
        Digest of the base.
    """

    entry: Entry
    state: Mapping[str, Tensor]
    base: str

    def write(self, target: Path) -> Entry:
        """Write its file."""
        return records.write_structure(target, self.state, self.entry, self.base)

    def write_recorded(self, target: Path, recorded: Entry) -> Entry:
        """Write its tensors as the file of a version that the registry knows already."""
        proof = self.entry.proof
        return _write_recorded(target, self.state, proof.references, proof, recorded, self.base)


def make_candidate(
    model: ModelSnapshot,
    name: str,
    network: RepModeUNet,
    folder: Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    reliability: Reliability | None = None,
) -> Candidate:
    """Prove a trained addition and write its file into `folder`; the model is only read, without its lock.

    Parameters
    ----------
    model
        The model that the network was loaded from.
    name
        An addition of `network`; `commit` checks whether it can become part of the model.
    network
        Everything that it shares with the model, as it is on disk now or was in a version that is kept, must be the
        same bits, except for `name` itself.
    folder
        Folder for ``<name>-<first 8 digits of the digest>.safetensors``, which is written whole or not at all.
    provenance, metrics
        JSON: where it comes from, and how well it predicts on held-out images.
    reliability
        What says how far its predictions can be trusted.

    Raises
    ------
    UnknownStructureError
        If `name` is no addition of the network.
    ModelError
        If the network differs from the model in one bit, predicts non-finite numbers, or needs a missing addition.
    """
    prepared = prepare_addition(model, name, network, provenance, metrics, reliability)
    path = Path(folder) / Path(prepared.entry.file).name
    return Candidate(path, prepared.write(path))


def prepare_addition(
    model: ModelSnapshot,
    name: str,
    network: RepModeUNet,
    provenance: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    reliability: Reliability | None = None,
) -> PreparedAddition:
    """Prove a trained addition, after checking everything that it shares with the model; see `make_candidate`."""
    path = model.path
    if name not in network.additions:
        raise UnknownStructureError(name, network.additions, "the additions of the network to store")
    origin = plain_json(provenance or {}, "provenance")
    figures = plain_json(metrics or {}, f"metrics of {name!r}")
    # A pack that every model would refuse must not be made: this is checked before the work.
    if why := find_metadata_problem(origin, figures):
        raise ModelError(f"{name!r} cannot be stored: {why}")
    origin = without_control_characters(origin)
    network = on_cpu(network)
    spec = network.additions[name]
    registry = Registry.read(path)
    document = records.read_model_document(path, registry)
    base = str(document["base"]["digest"])
    digests = _check_shared_tensors(model, name, network, registry, document)
    needs = tuple((need, digests[need]) for need in spec.needs)
    # A kept version can come back until the commit, and an unknown one can be added; a deleted one cannot.
    opened = {(entry.name, entry.digest) for entry in model.entries.values()}
    deleted = [need for need in needs if need in opened and registry.version(*need) is None]
    check_needs(path, registry, name, deleted)
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
        parameters=records.parameter_count(state),
        proof=prove(network, name),
        provenance=origin,
        metrics=figures,
        created=utc_now(),
        reliability=reliability,
    )
    return PreparedAddition(entry, state, base)


def _check_shared_tensors(
    model: ModelSnapshot, name: str, network: RepModeUNet, registry: Registry, document: Mapping[str, Any]
) -> dict[str, str]:
    """Return the digest of each addition of the network; refuse a network that differs from the model in one bit."""
    what = f"the network differs from the model {model.path}"
    remedy = "nothing was stored; train on a network loaded from this model, with everything else frozen"
    architecture = Architecture.from_json(document["architecture"])
    base_structures = tuple(document["base_structures"])
    if network.architecture != architecture or network.base_structures != base_structures:
        raise ModelError(f"{what} in its architecture or its base structures: {remedy}")
    base = str(document["base"]["digest"])
    if tensor_digest(network.base_state(), records.base_facts(document)) != base:
        raise ModelError(f"{what} in the base (weights, gate rows or norm statistics): {remedy}")
    stored = {version.name for version in registry.versions}
    opened = {entry.name: entry.digest for entry in model.entries.values()}
    digests: dict[str, str] = {}
    for other, spec in network.additions.items():
        needs = [(need, digests[need]) for need in spec.needs]
        facts = records.structure_facts(other, spec, base, needs)
        digests[other] = tensor_digest(network.structure_state(other), facts)
        # An addition that the model does not have (yet, or any more) does not matter unless it is needed.
        differs = other in stored and registry.version(other, digests[other]) is None
        if other != name and differs and opened.get(other) != digests[other]:
            raise ModelError(f"{what} in the structure {other!r}: {remedy}")
    return digests


def _write_recorded(
    target: Path,
    state: Mapping[str, Tensor],
    references: Mapping[str, Tensor],
    proof: Proof,
    recorded: Entry,
    base: str,
) -> Entry:
    """Write the tensors of a recorded version; its recorded origin and figures stay as they are.

    Where other references come with the tensors, so does the proof that they belong to.
    """
    if proof.reference_digest == recorded.proof.reference_digest:
        proof = recorded.proof
    entry = dataclasses.replace(recorded, proof=dataclasses.replace(proof, references=references))
    return records.write_structure(target, state, entry, base)


def _copy_checked(source: Path, target: Path, sha256: str) -> None:
    """Copy a file, whole or not at all, and only if its SHA-256 is as expected."""
    digest = hashlib.sha256()
    with replacing(target) as temporary, source.open("rb") as reader, temporary.open("wb") as writer:
        while chunk := reader.read(1 << 22):
            digest.update(chunk)
            writer.write(chunk)
        if digest.hexdigest() != sha256:
            raise ModelError(f"{source} is damaged: its SHA-256 is not the one recorded; nothing was changed")
