"""The records of a model directory: what a base or a structure file must hold, and reading it back checked.

A record is tensors and the facts that they mean nothing without; its digest covers both, so that a structure
cannot pass for another's, or for that of another base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.files import canonical_json, sha256_file
from repmode_cl.nn import AdditionSpec
from repmode_cl.store.digests import tensor_digest
from repmode_cl.store.proof import Proof
from repmode_cl.store.registry import VERSION, Entry, Registry, read_document
from repmode_cl.store.tensors import read_tensors, write_tensors

__all__ = [
    "base_facts",
    "check_size",
    "read_base",
    "read_model",
    "read_references",
    "read_structure",
    "structure_facts",
    "write_record",
]

MODEL = "model.json"
MODEL_FORMAT = "repmode-cl model"
BASE = "base.safetensors"
STRUCTURES = "structures"
RECORD_FORMAT = "repmode-cl record"
PROOF = "proof."


def base_facts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what belongs to a base besides its tensors: another normalisation makes another base."""
    keys = ("architecture", "base_structures", "voxel_size", "preprocessing")
    return {"kind": "base"} | {key: document[key] for key in keys}


def structure_facts(
    name: str, spec: AdditionSpec, base: str, needs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return what belongs to an addition besides its tensors; `base` and `needs` go by digest."""
    return {
        "kind": "addition",
        "structure": name,
        "spec": spec.to_json(),
        "base": base,
        "needs": [[need, digest] for need, digest in needs],
    }


def read_model(path: Path, registry: Registry) -> dict[str, Any]:
    """Read ``model.json`` and check that it is the one that the registry belongs to."""
    document = read_document(path / MODEL, MODEL_FORMAT)
    if sha256_file(path / MODEL) != registry.model_sha256:
        raise ModelError(f"{path / MODEL} is damaged or was edited: put it back from a copy of the model")
    return document


def check_size(path: Path, entry: Entry) -> None:
    """Refuse a file that is missing or has another size than recorded: quick, and finds cut-off copies."""
    file = path / entry.file
    if not file.is_file():
        raise ModelError(f"{file} is missing ({entry.name}): put it back from a copy of the model")
    if file.stat().st_size != entry.bytes:
        raise ModelError(
            f"{file} ({entry.name}) has {file.stat().st_size} bytes instead of {entry.bytes}: "
            "put it back from a copy of the model"
        )


def write_record(
    path: Path, file: str, state: Mapping[str, Tensor], record: Mapping[str, Any], proofs: Mapping[str, Proof]
) -> dict[str, Any]:
    """Write a record and its proofs' references; return what an entry says of it: file, bytes, sha256."""
    kept = {
        f"{PROOF}{name}.{key}": value
        for name, proof in proofs.items()
        for key, value in proof.references.items()
    }
    metadata = {"format": RECORD_FORMAT, "version": str(VERSION), "record": canonical_json(record)}
    write_tensors(path / file, {**state, **kept}, metadata)
    return {"file": file, "bytes": (path / file).stat().st_size, "sha256": sha256_file(path / file)}


def read_base(path: Path, document: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the base's tensors, after their digest was found to be the recorded one."""
    file = path / BASE
    state, _ = read_tensors(file, _is_record)
    if tensor_digest(state, base_facts(document)) != document["base"]["digest"]:
        raise ModelError(f"{file} is damaged (its tensors are not those recorded): put it back from a copy")
    return state


def read_structure(path: Path, entry: Entry, base: str) -> dict[str, Tensor]:
    """Return an addition's tensors, after their digest, with that of the `base`, was found as recorded."""
    file = path / entry.file
    state, _ = read_tensors(file, _is_record)
    if entry.spec is None:
        raise ModelError(f"{entry.name} is part of the base and has no file of its own")
    if tensor_digest(state, structure_facts(entry.name, entry.spec, base, entry.needs)) != entry.digest:
        raise ModelError(
            f"{file} ({entry.name}) is damaged (its tensors are not those recorded): put it back from a copy"
        )
    return state


def read_references(path: Path, entry: Entry) -> dict[str, Tensor]:
    """Return the float64 references of a structure's proof, after their digest was found as recorded."""
    prefix = f"{PROOF}{entry.name}."
    found, _ = read_tensors(path / entry.file, lambda name: name.startswith(prefix))
    references = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    if tensor_digest(references) != entry.proof.reference_digest:
        raise ModelError(
            f"{path / entry.file} ({entry.name}) is damaged: its references are not those recorded"
        )
    return references


def _is_record(name: str) -> bool:
    return not name.startswith(PROOF)
