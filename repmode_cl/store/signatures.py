"""Signatures of a model: written by who adds a structure, and checked against the public keys that a reader trusts.

Each statement (`repmode_cl.store.statements`) and its signature are one file, ``signatures/<number>.json``, which is
never written again.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.store import record_files as records
from repmode_cl.store.keys import fingerprint, public_key_of, raw_bytes, signed_by
from repmode_cl.store.registry import Entry, Registry, utc_now
from repmode_cl.store.statements import Statement, fold_statements, missing_statements, parse_statement
from repmode_cl.store.transaction import transaction
from repmode_cl.store.verify import verify_model
from repmode_cl.utils.atomic_files import canonical_json, sha256_file, write_json
from repmode_cl.utils.safetensors_io import read_metadata

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["SIGNATURES", "SignatureReport", "SignedStatement", "sign_model", "verify_signatures"]

SIGNATURES = "signatures"
_FORMAT, _VERSION = "repmode-cl signature", 1
_KEYS = {"format", "version", "statement", "public_key", "signature"}
_SEEN = re.compile(r"[0-9a-f]{8,64}")
#: Most bytes of a file, and most files: strangers write them.
_MOST_BYTES, _MOST_FILES = 1 << 18, 100_000


@dataclass(frozen=True)
class SignedStatement:
    """A statement and who signed it.

    Attributes
    ----------
    statement
        The statement.
    key
        The 32 bytes of the public key that the signature is of.
    """

    statement: Statement
    key: bytes

    @property
    def signer(self) -> str:
        """Fingerprint of the key."""
        return fingerprint(self.key)


@dataclass(frozen=True)
class SignatureReport:
    """Result of checking a model's signatures.

    Attributes
    ----------
    signed
        For the model, the base and each active addition: the statement that holds of it; without those that are not
        as they were signed, or not by a trusted key.
    problems
        What is wrong, in words; empty where every part is signed by a trusted key.
    newest
        Digest of the last statement; a later copy of the model has it too.
    """

    signed: Mapping[str, SignedStatement]
    problems: tuple[str, ...]
    newest: str

    @property
    def ok(self) -> bool:
        """True if there is no problem."""
        return not self.problems


def sign_model(
    path: str | Path, key: Ed25519PrivateKey, structures: Sequence[str] | None = None
) -> list[SignedStatement]:
    """Sign what is not signed yet of a model: its parts first, then additions and removals since.

    Parameters
    ----------
    path
        The model directory.
    key
        The signer's private key.
    structures
        Sign only statements about these; anything else that is not signed is refused. None signs all.

    Returns
    -------
    list
        The new statements; none where all is signed.

    Raises
    ------
    ModelError
        If a file is damaged, the chain of statements is broken, or something besides `structures` is not signed.
    """
    path = Path(path)
    before = Registry.read(path)
    report = verify_model(path, "tensors")
    if failed := [result.structure for result in report.results if not result.ok]:
        raise ModelError(
            f"{path}: {', '.join(failed)} failed, and a damaged model is not signed: run `repmode-cl verify`"
        )
    public = raw_bytes(key.public_key())
    with transaction(path) as (registry, document):
        if registry != before:
            raise ModelError(f"{path} changed while it was checked: look at what changed, and sign again")
        chain = _read_chain(path)
        statements = [one.statement for one in chain]
        missing = missing_statements(path, registry, document, statements)
        if structures is not None:
            _check_only(path, registry, missing, structures)
        done = []
        for facts in missing:
            previous = statements[-1].digest if statements else None
            place = {"number": len(statements) + 1, "time": utc_now(), "previous": previous}
            statement = Statement(facts | place)
            write_json(
                _file(path, statement.number),
                {
                    "format": _FORMAT,
                    "version": _VERSION,
                    "statement": dict(statement.values),
                    "public_key": base64.b64encode(public).decode(),
                    "signature": base64.b64encode(key.sign(statement.message)).decode(),
                },
            )
            statements.append(statement)
            done.append(SignedStatement(statement, public))
    return done


def _check_only(
    path: Path, registry: Registry, missing: Sequence[Mapping[str, Any]], structures: Sequence[str]
) -> None:
    gone = {str(one["name"]) for one in missing if one["kind"] == "removal"}
    for name in structures:
        if name not in registry.names and name not in gone:
            raise UnknownStructureError(name, registry.names, f"the model {path}")
    others = [
        str(one.get("name", f"the {one['kind']}")) for one in missing if one.get("name") not in structures
    ]
    if others:
        raise ModelError(
            f"{path}: not signed are also {', '.join(others)}: let who made them sign them first, or sign all without "
            "--structure if you vouch for them"
        )


def verify_signatures(
    path: str | Path, keys: Sequence[Ed25519PublicKey], *, includes: str | None = None
) -> SignatureReport:
    """Check that every part of a model is what a trusted person signed.

    Parameters
    ----------
    path
        The model directory.
    keys
        Public keys that are trusted, for every part alike.
    includes
        Digest of a statement (or its first digits, at least 8) that was seen before: a model without it is an older
        copy, or another one.

    Raises
    ------
    ModelError
        If the registry or ``model.json`` is missing or damaged, a signature's file cannot be read, or `includes` is no
        digest.
    """
    path = Path(path)
    # Every statement begins with nothing, and many with one digit: an unset variable of a script must not pass.
    if includes is not None and not _SEEN.fullmatch(includes):
        raise ModelError(
            f"the statement seen before is {short(includes)}: needed is its digest, or its first digits, at least 8 of "
            "0-9 and a-f, as `repmode-cl verify --signed-by KEY` prints it"
        )
    registry = Registry.read(path)
    document = records.read_model_document(path, registry)
    chain = _read_chain(path)
    if not chain:
        return SignatureReport({}, (f"{path} is not signed",), "")
    problems = []
    trusted = {raw_bytes(key) for key in keys}
    for one in chain:
        if one.key not in trusted:
            problems.append(
                f"statement {one.statement.number} ({one.statement.name}) is signed by the key {one.signer}, which is "
                "none of those given"
            )
    statements = [one.statement for one in chain]
    newest = statements[-1].digest
    if includes is not None and not any(one.digest.startswith(includes) for one in statements):
        problems.append(
            f"there is no statement {includes}: this is an older copy of the model, or another model"
        )
    try:
        missing = missing_statements(path, registry, document, statements)
    except ModelError as error:
        return SignatureReport({}, (*problems, str(error)), newest)
    problems += [_missing_text(facts, statements) for facts in missing]
    by_number = {one.statement.number: one for one in chain}
    holding = {name: by_number[one.number] for name, one in fold_statements(statements).items()}
    for entry in registry.entries:
        problems += _file_problems(path, entry)
    problems += _history_problems(registry)
    wrong = {facts.get("name") for facts in missing}
    holding |= {one.statement.name: one for one in chain[:2]}
    signed = {
        name: holding[name]
        for name in ("the model", "the base", *registry.names)
        if name in holding and name not in wrong and holding[name].key in trusted
    }
    return SignatureReport(signed, tuple(dict.fromkeys(problems)), newest)


def _missing_text(facts: Mapping[str, Any], statements: Sequence[Statement]) -> str:
    """Return what it means that a chain does not state the model's present state."""
    name, kind = facts.get("name"), facts["kind"]
    if kind == "removal":
        return f"{name} is gone from the model, and nobody signed its removal"
    if kind in ("model", "base"):
        return f"the {kind} is not signed"
    earlier = [one for one in statements if one.kind == "structure" and one.name == name]
    if not earlier:
        return f"{name} ({facts['digest'][:8]}) is in the model, and nobody signed it"
    older = [one for one in earlier if one.facts == facts]
    if older:
        return (
            f"{name} is the older version {facts['digest'][:8]} of statement {older[-1].number}, and a later statement "
            "holds"
        )
    if earlier[-1].values["digest"] != facts["digest"]:
        return (
            f"{name} has the digest {facts['digest'][:8]}, and {earlier[-1].values['digest'][:8]} was signed "
            f"(statement {earlier[-1].number})"
        )
    number = earlier[-1].number
    if {key: value for key, value in facts.items() if key != "entry"} == earlier[-1].facts:
        return (
            f"the figures of {name} are not signed (statement {number}): its file, of an earlier version, does not "
            "hold them; sign the model once more"
        )
    return f"{name} has another file, needs other structures, or has other figures than was signed (statement {number})"


def _file_problems(path: Path, entry: Entry) -> list[str]:
    """Return how a structure's file differs from what the registry, which the statements fit, says of it."""
    file = path / entry.file
    if not file.is_file():
        return [f"{file} is missing"]
    if sha256_file(file) != entry.sha256:
        return [f"{file} ({entry.name}) is not the file that was signed"]
    if entry.kind == "base":
        return []
    # The registry is not signed: what it says of a structure has to be what the signed file says.
    stated = read_metadata(file).get("entry")
    if stated is not None and stated != canonical_json(entry.portable_json()):
        return [f"{entry.name}: the registry says something else of it than its signed file"]
    return []


def _history_problems(registry: Registry) -> list[str]:
    """Return the changes whose figures are not those of the version that they brought, which is signed."""
    brought = {(change.structure, change.digest): change for change in registry.history if change.structure}
    problems = []
    for entry in registry.versions:
        change = brought.get((entry.name, entry.digest))
        if change is not None and (change.metrics, change.provenance) != (entry.metrics, entry.provenance):
            problems.append(
                f"{entry.name}: change {change.number} of the history says something else of version "
                f"{entry.digest[:8]} than the registry"
            )
    base = [entry for entry in registry.entries if entry.kind == "base"]
    created = registry.history[0]
    if (
        created.metrics != {entry.name: entry.metrics for entry in base}
        or created.provenance != base[0].provenance
    ):
        problems.append("the base: the history says something else of it than the registry")
    return problems


def _read_chain(path: Path) -> list[SignedStatement]:
    """Return a model's statements in order, each with a signature that fits the key in its file.

    Raises
    ------
    ModelError
        If one is missing, damaged, does not follow the one before, or its signature does not fit.
    """
    # A temporary file is no statement: `sign` may be writing it now, or was killed.
    files = sorted(file for file in (path / SIGNATURES).glob("*.json") if file.stem.isdigit())
    if len(files) > _MOST_FILES:
        raise ModelError(f"{path / SIGNATURES} holds {len(files):,} files: no model has so many statements")
    chain: list[SignedStatement] = []
    for number in range(1, len(files) + 1):
        file = _file(path, number)
        if not file.is_file():
            raise ModelError(
                f"{file} is missing, and {files[-1].name} is there: a statement was removed; put it back from a copy"
            )
        one = _read_statement(file)
        previous = chain[-1].statement.digest if chain else None
        if (one.statement.number, one.statement.values["previous"]) != (number, previous):
            raise ModelError(
                f"{file} does not follow the statement before it: statements were removed, changed or swapped; put "
                "them back from a copy of the model"
            )
        expected = {1: "model", 2: "base"}.get(number)
        if (one.statement.kind in ("model", "base")) != (expected is not None) or (
            expected is not None and one.statement.kind != expected
        ):
            raise ModelError(f"{file} states {one.statement.name}, which does not belong in this place")
        chain.append(one)
    return chain


def _read_statement(file: Path) -> SignedStatement:
    damaged = f"{file} is damaged: put it back from a copy of the model"
    if file.stat().st_size > _MOST_BYTES:
        raise ModelError(damaged)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{damaged} ({error})") from error
    if not isinstance(values, dict) or set(values) != _KEYS or values["format"] != _FORMAT:
        raise ModelError(damaged)
    if values["version"] != _VERSION:
        raise ModelError(
            f"{file} has version {values['version']!r}; this repmode-cl reads version {_VERSION}: use a newer one"
        )
    statement = parse_statement(values["statement"], str(file))
    try:
        raw = base64.b64decode(values["public_key"], validate=True)
        signature = base64.b64decode(values["signature"], validate=True)
        key, message = public_key_of(raw), statement.message
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{damaged} ({error})") from error
    if not signed_by(key, signature, message):
        raise ModelError(f"{file}: the signature does not fit the statement: one of them was changed")
    return SignedStatement(statement, raw)


def _file(path: Path, number: int) -> Path:
    return path / SIGNATURES / f"{number:04d}.json"
