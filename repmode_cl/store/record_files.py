"""The files of a base and of structures, as records: written, and read back with their digests checked.

A record is tensors and the facts that they mean nothing without; its digest covers both, so that a structure
cannot pass for another's, or for that of another base. From version 2 on a structure's file also holds its entry of
the registry: it can leave the model by itself, and be added elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.nn import AdditionSpec, Architecture
from repmode_cl.store.entry_checks import BASE, STRUCTURE_FILE, STRUCTURES
from repmode_cl.store.model_document import check_model_document
from repmode_cl.store.proof import Proof
from repmode_cl.store.registry import Entry, Registry, read_json_document
from repmode_cl.utils.atomic_files import canonical_json, sha256_file
from repmode_cl.utils.safetensors_io import read_tensors, write_tensors
from repmode_cl.utils.tensor_digests import json_digest, tensor_digest

__all__ = [
    "BASE",
    "STRUCTURES",
    "STRUCTURE_FILE",
    "base_facts",
    "check_size",
    "check_version",
    "file_matches",
    "parameter_count",
    "read_model_document",
    "read_references",
    "read_structure",
    "structure_facts",
    "structure_metadata",
    "structure_versions",
    "write_base",
    "write_structure",
]

MODEL = "model.json"
MODEL_FORMAT = "repmode-cl model"
#: Version 2 states how images are prepared where version 1 cannot, and would ignore it; version 3 does so with blocks
#: and gates of the network (`Architecture.extended`), with preparation and with windows; version 4 with intensities
#: of a data set (`PreprocessingRecipe.data_set`).
MODEL_VERSIONS = (1, 2, 3, 4)
RECORD_FORMAT = "repmode-cl record"
#: Of a base's file, and of a structure's file without and with its entry.
BASE_VERSION, BARE_VERSION, PACK_VERSION = "1", "1", "2"
#: Of a structure's file with its entry, whose specification older programs cannot read (`AdditionSpec.extended`).
EXTENDED_VERSION = "3"
#: Of a structure's file whose entry has a `Reliability`, whatever its specification.
RELIABILITY_VERSION = "4"
PROOF = "proof."


def base_facts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a base that its digest covers: another normalisation makes another base."""
    keys = ("architecture", "base_structures", "voxel_size", "preprocessing")
    return {"kind": "base"} | {key: document[key] for key in keys}


def structure_facts(
    name: str, spec: AdditionSpec, base: str, needs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return the facts of an addition that its digest covers; `base` and `needs` are digests."""
    return {
        "kind": "addition",
        "structure": name,
        "spec": spec.to_json(),
        "base": base,
        "needs": [[need, digest] for need, digest in needs],
    }


def structure_versions(spec: AdditionSpec, *, reliability: bool) -> tuple[str, ...]:
    """Return the versions that the file of a structure added in this way can have; the last is the one written.

    Parameters
    ----------
    spec
        How it was added.
    reliability
        Whether its entry has a `Reliability`.
    """
    if reliability:
        return (RELIABILITY_VERSION,)
    return (EXTENDED_VERSION,) if spec.extended else (BARE_VERSION, PACK_VERSION)


def model_version(document: Mapping[str, Any]) -> int:
    """Return the oldest version of ``model.json`` whose programs know all that `document` states."""
    preprocessing = document["preprocessing"]
    if "data_set" in preprocessing:
        return 4
    extended = Architecture.from_json(document["architecture"]).extended
    if extended or "before_resampling" in preprocessing or "weights" in document["inference"]:
        return 3
    plain = preprocessing.get("normalisation", "z-score per image") == "z-score per image"
    return 1 if plain and set(preprocessing) <= {"normalisation", "order"} else 2


def read_model_document(path: Path, registry: Registry) -> dict[str, Any]:
    """Read ``model.json``, and check that it is the one that the registry belongs to, and its values."""
    _, document = read_json_document(path / MODEL, MODEL_FORMAT, MODEL_VERSIONS)
    if sha256_file(path / MODEL) != registry.model_sha256:
        raise ModelError(f"{path / MODEL} is damaged or was edited: put it back from a copy of the model")
    check_model_document(path / MODEL, document, registry)
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


def structure_metadata(
    name: str, spec: AdditionSpec, base: str, needs: Sequence[tuple[str, str]], entry: Mapping[str, Any]
) -> dict[str, str]:
    """Return the metadata of a structure's file; `entry` are the values of `Entry.portable_json`."""
    record = {"facts": structure_facts(name, spec, base, needs), "digest": entry["digest"]}
    texts = {
        "version": structure_versions(spec, reliability="reliability" in entry)[-1],
        "record": canonical_json(record),
        "entry": canonical_json(entry),
    }
    return {"format": RECORD_FORMAT, **texts, "checksum": json_digest(texts)}


def write_base(
    path: Path,
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    digest: str,
    proofs: Mapping[str, Proof],
) -> dict[str, Any]:
    """Write the base of a model and its proofs' references; return ``file``, ``bytes`` and ``sha256`` of it."""
    record = canonical_json({"facts": facts, "digest": digest})
    metadata = {"format": RECORD_FORMAT, "version": BASE_VERSION, "record": record}
    write_tensors(path / BASE, {**state, **_reference_tensors(proofs)}, metadata)
    return {"file": BASE, "bytes": (path / BASE).stat().st_size, "sha256": sha256_file(path / BASE)}


def write_structure(file: Path, state: Mapping[str, Tensor], entry: Entry, base: str) -> Entry:
    """Write an addition, its proof's references and its entry; return the entry with size and SHA-256."""
    if entry.spec is None:
        raise ModelError(f"{entry.name} is part of the base and has no separate file")
    metadata = structure_metadata(entry.name, entry.spec, base, entry.needs, entry.portable_json())
    write_tensors(file, {**state, **_reference_tensors({entry.name: entry.proof})}, metadata)
    # The references are in the file now, and no longer needed in memory.
    proof = replace(entry.proof, references={})
    return replace(entry, bytes=file.stat().st_size, sha256=sha256_file(file), proof=proof)


def _reference_tensors(proofs: Mapping[str, Proof]) -> dict[str, Tensor]:
    return {
        f"{PROOF}{name}.{key}": value
        for name, proof in proofs.items()
        for key, value in proof.references.items()
    }


def read_structure(path: Path, entry: Entry, base: str) -> dict[str, Tensor]:
    """Return an addition's tensors, checked against the recorded digest, which covers that of the `base`."""
    file = path / entry.file
    state, metadata = read_tensors(file, _is_state)
    if entry.spec is None:
        raise ModelError(f"{entry.name} is part of the base and has no separate file")
    check_version(file, metadata, structure_versions(entry.spec, reliability=entry.reliability is not None))
    if tensor_digest(state, structure_facts(entry.name, entry.spec, base, entry.needs)) != entry.digest:
        raise ModelError(
            f"{file} ({entry.name}) is damaged (its tensors are not those recorded): put it back from a copy"
        )
    return state


def check_version(file: Path, metadata: Mapping[str, str], versions: Sequence[str]) -> None:
    """Refuse a file of a format or version that this program does not know."""
    if metadata.get("format") != RECORD_FORMAT or metadata.get("version") not in versions:
        raise ModelError(
            f"{file} is a {metadata.get('format')!r} of version {metadata.get('version')!r}; this repmode-cl reads "
            f"{RECORD_FORMAT!r} of version {' and '.join(dict.fromkeys(versions))}: put it back from a copy of the "
            "model, or use a newer repmode-cl"
        )


def read_references(path: Path, entry: Entry) -> dict[str, Tensor]:
    """Return the float64 references of a structure's proof, checked against their recorded digest."""
    prefix = f"{PROOF}{entry.name}."
    tensors, _ = read_tensors(path / entry.file, lambda name: name.startswith(prefix))
    references = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if tensor_digest(references) != entry.proof.reference_digest:
        raise ModelError(
            f"{path / entry.file} ({entry.name}) is damaged: its references are not those recorded"
        )
    return references


def _is_state(name: str) -> bool:
    return not name.startswith(PROOF)


def file_matches(path: Path, entry: Entry) -> bool:
    """Return whether the file of a version is there, byte for byte."""
    file = path / entry.file
    return bool(entry.sha256) and file.is_file() and sha256_file(file) == entry.sha256


def parameter_count(state: Mapping[str, Tensor]) -> int:
    """Return the number of parameters in a state, norm statistics included and batch counters excluded."""
    return sum(tensor.numel() for tensor in state.values() if torch.is_floating_point(tensor))
