"""Format of packs: one added structure in one file, for models with the same base.

A structure's file in a model is a pack already: besides the record it holds its registry entry. An imported pack is a
stranger's file, so nothing of it is trusted: layout, metadata, digests, values and proof are checked, in this order,
before the model is changed. The file is read where it lies: the hashed bytes are the ones that are used, and if it was
exchanged by the time that it is copied, its SHA-256 shows it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as short
from typing import Any, NoReturn

import torch
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import record_files as records
from repmode_cl.store.entry_checks import find_entry_problem, find_name_problem, is_digest
from repmode_cl.store.registry import Entry
from repmode_cl.store.untrusted_json import (
    MAX_DEPTH,
    MAX_ENTRY,
    find_metadata_problem,
    find_unsafe_value,
    is_too_deep,
)
from repmode_cl.utils.atomic_files import canonical_json
from repmode_cl.utils.safetensors_header import Header, read_header, strict_json
from repmode_cl.utils.tensor_digests import from_raw_bytes, json_digest, tensor_digest

__all__ = ["Pack", "PackContents", "read_pack", "refuse_pack"]

#: Metadata of a pack, and nothing else.
_KEYS = {"format", "version", "record", "entry", "checksum"}
_TIME = re.compile(r"[0-9T:+.-]{10,40}")


@dataclass(frozen=True)
class Pack:
    """The metadata of a pack; `load` reads and checks its tensors.

    Parameters
    ----------
    path
        The file.
    entry
        Its registry entry, except that ``file`` is the name of the pack, and ``sha256`` is empty.
    base
        Digest of the base that it was made for.
    header
        Its tensors and their places in the file.
    """

    path: Path
    entry: Entry
    base: str
    header: Header

    @property
    def spec(self) -> AdditionSpec:
        """Choices by which the structure was added."""
        if self.entry.spec is None:
            raise ModelError(f"{self.path} holds no addition")
        return self.entry.spec

    def load(self) -> PackContents:
        """Read the tensors, and check every digest of them.

        Raises
        ------
        ModelError
            If a digest is not the one that the pack states, or a value is not finite.
        """
        prefix = f"{records.PROOF}{self.entry.name}."
        state: dict[str, Tensor] = {}
        references: dict[str, Tensor] = {}
        with self.path.open("rb") as file:
            # One pass over all bytes: the hashed bytes are those that are used, even if the file is replaced meanwhile.
            digest = hashlib.sha256(file.read(self.header.start))
            if digest.hexdigest() != self.header.sha256:
                refuse_pack(self.path, "it changed while it was read")
            for name, slot in self.header.tensors.items():
                data = bytearray(file.read(slot.end - slot.begin))
                if len(data) != slot.end - slot.begin:
                    refuse_pack(self.path, "it became shorter while it was read")
                digest.update(data)
                tensor = from_raw_bytes(data, slot.dtype, slot.shape)
                if not bool(torch.isfinite(tensor).all()):
                    refuse_pack(self.path, f"tensor {short(name)} holds numbers that are not finite")
                if name.startswith(prefix):
                    references[name.removeprefix(prefix)] = tensor
                else:
                    state[name] = tensor
        entry = self.entry
        facts = records.structure_facts(entry.name, self.spec, self.base, entry.needs)
        if tensor_digest(state, facts) != entry.digest:
            refuse_pack(
                self.path, f"the tensors of {entry.name!r} are not those that its digest was computed from"
            )
        if tensor_digest(references) != entry.proof.reference_digest:
            refuse_pack(
                self.path,
                f"the references of {entry.name!r} are not those that their digest was computed from",
            )
        if sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point()) != entry.parameters:
            refuse_pack(self.path, f"it does not hold the {entry.parameters} parameters that it states")
        return PackContents(state, references, replace(entry, sha256=digest.hexdigest()))


@dataclass(frozen=True)
class PackContents:
    """The tensors of a pack, with its complete entry.

    Parameters
    ----------
    state
        Tensors of the structure: float32, and int64 counters, on the CPU.
    references
        float64 references of its proof.
    entry
        The pack's, with the SHA-256 of what was read.
    """

    state: dict[str, Tensor]
    references: dict[str, Tensor]
    entry: Entry


def read_pack(path: str | Path) -> Pack:
    """Read and check the metadata of a pack, without its tensors; the file is not trusted.

    Parameters
    ----------
    path
        A file that `export_pack` wrote, or the file of a structure within a model.

    Raises
    ------
    ModelError
        If it is no pack, is of an unknown version, cut short, or contradicts itself.
    OSError
        If the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder: a pack is one file, made by `repmode-cl pack export`")
    header = read_header(path)
    metadata = header.metadata
    if metadata.get("format") != records.RECORD_FORMAT:
        refuse_pack(path, f"it is no pack (its format is {short(metadata.get('format'))})")
    version = metadata.get("version")
    if version == records.BARE_VERSION:
        refuse_pack(
            path,
            "it is a structure's file of an earlier version: make a pack of it by `repmode-cl pack export`",
        )
    packs = (records.PACK_VERSION, records.EXTENDED_VERSION, records.RELIABILITY_VERSION)
    *others, last = packs
    if version not in packs:
        refuse_pack(
            path,
            f"it has format version {short(version)}, this repmode-cl reads versions {', '.join(others)} and {last}: "
            "use a newer one",
        )
    if set(metadata) != _KEYS:
        refuse_pack(path, f"its metadata are not {', '.join(sorted(_KEYS))}")
    for part in ("record", "entry"):
        if (size := len(metadata[part])) > MAX_ENTRY:
            refuse_pack(path, f"its {part} has {size:,} characters, allowed are {MAX_ENTRY:,}")
    record = _read_canonical_json(path, metadata["record"], "record")
    values = _read_canonical_json(path, metadata["entry"], "entry")
    body = {key: metadata[key] for key in ("version", "record", "entry")}
    if metadata["checksum"] != json_digest(body):
        refuse_pack(path, "its metadata are damaged (their checksum does not fit)")
    entry = _read_entry(path, values, header.size)
    facts = record.get("facts")
    base = facts.get("base") if isinstance(facts, dict) else None
    if not isinstance(base, str) or not is_digest(base):
        refuse_pack(path, "it does not state the base that it is for")
    pack = Pack(path, entry, base, header)
    expected = records.structure_versions(pack.spec, reliability=entry.reliability is not None)[-1]
    if version != expected:
        refuse_pack(
            path, f"it has format version {short(version)}, and what it holds is of version {expected}"
        )
    if (
        records.structure_metadata(entry.name, pack.spec, base, entry.needs, entry.portable_json())
        != metadata
    ):
        refuse_pack(path, "its record and its entry contradict each other")
    own = f"{records.PROOF}{entry.name}."
    for name in header.tensors:
        if name.startswith(records.PROOF) and not name.startswith(own):
            refuse_pack(path, f"tensor {short(name)} does not belong to {entry.name!r}")
    return pack


def refuse_pack(path: Path, why: str) -> NoReturn:
    """Raise the error of a refused pack."""
    raise ModelError(f"{path} is refused: {why}")


def _read_canonical_json(path: Path, text: str, what: str) -> dict[str, Any]:
    value = strict_json(text, f"{path}: its {what}")
    if is_too_deep(value):
        refuse_pack(path, f"lists and objects are nested more than {MAX_DEPTH} deep in its {what}")
    if not isinstance(value, dict) or canonical_json(value) != text:
        refuse_pack(path, f"its {what} is not in canonical form")
    return value


def _read_entry(path: Path, values: dict[str, Any], size: int) -> Entry:
    """Return the entry in a pack's metadata, if it is exactly what `Entry.to_json` writes, with sane values."""
    name, spec, needs = values.get("name"), values.get("spec"), values.get("needs")
    if why := find_name_problem(name):
        refuse_pack(path, why)
    if values.get("kind") != "addition" or not isinstance(spec, dict) or not isinstance(needs, list):
        refuse_pack(path, f"{name!r} is no addition")
    local = {"file": path.name, "bytes": size, "sha256": ""}
    try:
        entry = Entry.from_json(values | local)
        same = canonical_json(entry.to_json()) == canonical_json(values | local)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(
            f"{path} is refused: its entry lacks what an entry has ({str(error)[:200]})"
        ) from error
    if not same or local.keys() & values.keys():
        refuse_pack(path, "its entry is not what an entry of this version holds")
    if why := find_entry_problem(entry):
        refuse_pack(path, why)
    if not _TIME.fullmatch(entry.created):
        refuse_pack(path, f"its time is {short(entry.created)}")
    _check_environment(path, entry.proof.environment)
    if why := find_metadata_problem(entry.provenance, entry.metrics) or find_unsafe_value(values):
        refuse_pack(path, why)
    return entry


def _check_environment(path: Path, environment: Mapping[str, Any]) -> None:
    """Refuse an environment whose texts, which are shown, could do harm."""
    if len(environment) > 64:
        refuse_pack(path, f"its proof's environment has {len(environment)} parts, allowed are 64")
    for key, value in environment.items():
        numbers = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
        text = isinstance(value, str) and value.isprintable() and len(value) <= 300
        if not key.isidentifier() or not (numbers or text or isinstance(value, int | float)):
            refuse_pack(path, f"its proof's environment says {short(value)} of {short(key)}")
