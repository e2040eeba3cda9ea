"""What entries and histories may say: strangers write the registries and packs that are opened here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short
from typing import NoReturn

from repmode_cl.errors import ModelError, StructureError
from repmode_cl.store.entry import Entry
from repmode_cl.store.history import Change
from repmode_cl.structures import check_structure_name

__all__ = [
    "BASE",
    "STRUCTURES",
    "STRUCTURE_FILE",
    "check_entries",
    "check_history",
    "find_entry_problem",
    "find_name_problem",
    "is_digest",
]

BASE = "base.safetensors"
STRUCTURES = "structures"
#: What a structure's file is named; any other is not ours.
STRUCTURE_FILE = re.compile(r"[a-z][a-z0-9_]{0,63}-[0-9a-f]{8,64}\.safetensors")

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: Bytes of a file and numbers of parameters stay far below.
_MOST = 1 << 63


def is_digest(value: object) -> bool:
    """Return whether a value is a SHA-256 in hexadecimal digits."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def find_name_problem(name: object) -> str:
    """Return why something is no name of a structure; empty if it is one."""
    if not isinstance(name, str) or len(name) > 64:
        return f"{short(name)} is no name of a structure"
    try:
        check_structure_name(name)
    except StructureError as error:
        return str(error)
    return ""


def find_entry_problem(entry: Entry) -> str:
    """Return why the values of an entry cannot be used, wherever its file lies; empty if they can.

    Parameters
    ----------
    entry
        An entry of `Entry.from_json`, which does not look at values.
    """
    if why := find_name_problem(entry.name):
        return why
    names = [need for need, _ in entry.needs]
    for need in names:
        if why := find_name_problem(need):
            return why
    stated = () if entry.spec is None else entry.spec.needs
    if tuple(names) != stated or len(set(names)) < len(names) or entry.name in names:
        return (
            f"the needs of {entry.name!r} are inconsistent: its entry and its spec must list the same additions, each "
            "once"
        )
    proof = entry.proof
    proof_digests = (proof.kernel_digest, proof.prediction_digest, proof.reference_digest)
    digests = [entry.digest, *(digest for _, digest in entry.needs), *proof_digests]
    if not all(is_digest(digest) for digest in digests):
        return "one of its digests is not 64 hexadecimal digits"
    if type(entry.parameters) is not int:
        return f"its number of parameters is {short(entry.parameters)}"
    # Other texts than a time came with packs that earlier versions imported: they are shown, and do no harm.
    if type(entry.created) is not str:
        return f"its time is {short(entry.created)}"
    if not _are_objects(entry.provenance, entry.metrics):
        return "its provenance or its metrics are no JSON object"
    # So many are started where it is verified.
    threads = proof.environment.get("threads")
    if type(threads) is not int or not 1 <= threads <= 1024:
        return f"its proof was made with {short(threads)} threads, allowed are 1 to 1024"
    return ""


def check_entries(path: Path, entries: Sequence[Entry], kept: Sequence[Entry]) -> None:
    """Refuse entries that no model has: nothing outside a model is read or written because of its registry.

    Parameters
    ----------
    path
        The registry.
    entries, kept
        Its active structures and its earlier versions.

    Raises
    ------
    ModelError
        If a value is invalid, a file is not the model's own, there is no base, a name or a version is there twice, or
        a structure needs one that does not stand before it.
    """
    for number, entry in enumerate((*entries, *kept)):
        if why := find_entry_problem(entry) or _find_place_problem(entry):
            _refuse(path, f"its entry {short(entry.name)}: {why}")
        if number >= len(entries) and entry.kind == "base":
            _refuse(path, f"its entry {short(entry.name)}: a structure of the base has no earlier version")
    if not entries or entries[0].kind != "base":
        _refuse(path, "its entries do not begin with a structure of the base")
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            _refuse(path, f"its entries have {entry.name!r} twice")
        if missing := [need for need, _ in entry.needs if need not in seen]:
            _refuse(
                path, f"its entry {entry.name!r}: it needs {missing[0]!r}, which does not stand before it"
            )
        seen.add(entry.name)
    versions = [(entry.name, entry.digest) for entry in (*entries, *kept)]
    if len(set(versions)) < len(versions):
        _refuse(path, "it names one version of a structure twice")


def _find_place_problem(entry: Entry) -> str:
    """Return what is wrong with the kind and the file of an entry; empty if nothing is."""
    if entry.kind not in ("base", "addition") or (entry.kind == "base") != (entry.spec is None):
        return f"its kind is {short(entry.kind)}: base without spec, or addition with one, is needed"
    folder, _, name = str(entry.file).rpartition("/")
    if entry.kind == "base":
        ours = entry.file == BASE
    else:
        ours = folder == STRUCTURES and STRUCTURE_FILE.fullmatch(name) is not None
    if not ours or not isinstance(entry.file, str):
        return f"it names the file {short(entry.file)}, which no model has: it is refused"
    if type(entry.bytes) is not int or not 0 <= entry.bytes < _MOST:
        return f"its bytes are {short(entry.bytes)}: a whole number is needed"
    if not is_digest(entry.sha256):
        return f"its sha256 is {short(entry.sha256)}: 64 hexadecimal digits are needed"
    return ""


def check_history(path: Path, history: Sequence[Change]) -> None:
    """Refuse a history whose changes are not numbered, or say what no change does; `path` is the registry.

    Raises
    ------
    ModelError
        With the change and what is wrong with it.
    """
    for number, change in enumerate(history, start=1):
        why = ""
        if change.number != number or (change.action == "create") != (number == 1):
            why = f"it is {change.action!r} of number {change.number}, and changes are numbered from a create on"
        elif change.structure is not None:
            why = find_name_problem(change.structure)
        if any(digest is not None and not is_digest(digest) for digest in (change.digest, change.earlier)):
            why = "one of its digests is not 64 hexadecimal digits"
        elif change.to is not None and (type(change.to) is not int or not 1 <= change.to < number):
            why = f"it goes back to {short(change.to)}, which is no change before it"
        elif not _are_objects(change.provenance, change.metrics):
            why = "its provenance or its metrics are no JSON object"
        if why:
            _refuse(path, f"change {number} of its history: {why}")


def _are_objects(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def _refuse(path: Path, why: str) -> NoReturn:
    raise ModelError(f"{path}: {why}; put it back from a copy of the model that you trust")
