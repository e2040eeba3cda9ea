"""Statements about a model that a person signs: a chain, in which each names the one before by its digest.

The registry is replaced with every addition, so a signature of it would be void the next day. What is signed instead
never changes: one statement of ``model.json``, one of the base, one of each version of a structure that became active,
and one of each removal. A later one is only ever appended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmode_cl.errors import ModelError
from repmode_cl.store.registry import Entry, Registry
from repmode_cl.utils.atomic_files import canonical_json
from repmode_cl.utils.safetensors_io import read_metadata
from repmode_cl.utils.tensor_digests import json_digest

__all__ = ["Statement", "fold_statements", "missing_statements", "parse_statement"]

#: Before the text that is signed, so that a signature of something else never fits.
_CONTEXT = b"repmode-cl statement 1\n"

_DIGEST_KEYS = {"sha256", "digest", "base", "entries"}
#: Keys of each kind, besides ``kind``, ``number``, ``time``, ``previous`` and ``base``.
_KINDS: dict[str, set[str]] = {
    "model": {"sha256"},
    "base": {"sha256", "digest", "structures", "entries"},
    "structure": {"name", "sha256", "digest", "needs"},
    "removal": {"name", "digest"},
}


@dataclass(frozen=True)
class Statement:
    """One statement.

    Parameters
    ----------
    values
        JSON values: ``kind``, ``number``, ``time``, ``previous`` (digest of the statement before), ``base`` (digest of
        the base), and what it states.
    """

    values: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """``model``, ``base``, ``structure`` or ``removal``."""
        return str(self.values["kind"])

    @property
    def number(self) -> int:
        """1 for the first."""
        return int(self.values["number"])

    @property
    def name(self) -> str:
        """The structure; of the model and the base, the word."""
        return str(self.values.get("name", f"the {self.kind}"))

    @property
    def message(self) -> bytes:
        """Bytes that are signed."""
        return _CONTEXT + canonical_json(dict(self.values)).encode("ascii")

    @property
    def digest(self) -> str:
        """SHA-256 of the signed bytes."""
        return hashlib.sha256(self.message).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What it states, without its place in the chain."""
        return {key: value for key, value in self.values.items() if key not in ("number", "time", "previous")}


def parse_statement(values: object, where: str) -> Statement:
    """Return a statement of JSON values that a stranger may have written.

    Raises
    ------
    ModelError
        If a key is missing, unknown, or of another type.
    """

    def wrong(what: str) -> ModelError:
        return ModelError(
            f"{where} is no signature of a model ({what}): put it back from a copy of the model"
        )

    if not isinstance(values, dict) or values.get("kind") not in _KINDS:
        raise wrong("its statement is of no known kind")
    expected = _KINDS[values["kind"]] | {"kind", "number", "time", "previous", "base"}
    if values["kind"] == "structure" and "entry" in values:
        expected |= {"entry"}
    if set(values) != expected:
        raise wrong(f"its statement has the keys {', '.join(sorted(map(str, values)))}")
    texts = {*_DIGEST_KEYS, "time", "name", "entry"} & expected
    if not all(isinstance(values[key], str) for key in texts):
        raise wrong("a value of its statement is no text")
    number, previous = values["number"], values["previous"]
    if type(number) is not int or number < 1 or not isinstance(previous, str | None):
        raise wrong("its place in the chain is not stated")
    for key in ("needs", "structures"):
        pairs = values.get(key, [])
        if not isinstance(pairs, list) or not all(isinstance(one, str | list) for one in pairs):
            raise wrong(f"{key} is no list")
    return Statement(values)


def fold_statements(statements: Sequence[Statement]) -> dict[str, Statement]:
    """Return the statement that holds of each structure after all of a chain."""
    active: dict[str, Statement] = {}
    for one in statements:
        if one.kind == "structure":
            active[one.name] = one
        elif one.kind == "removal":
            active.pop(one.name, None)
    return active


def _model_facts(registry: Registry, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the first statement states: ``model.json``."""
    return {"kind": "model", "base": _base(document), "sha256": registry.model_sha256}


def _base_facts(registry: Registry, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the second statement states: the base's file, and what the registry says of its structures."""
    entries = [entry for entry in registry.entries if entry.kind == "base"]
    return {
        "kind": "base",
        "base": _base(document),
        "sha256": entries[0].sha256,
        "digest": entries[0].digest,
        "structures": [entry.name for entry in entries],
        # Their provenance and figures are in no other file.
        "entries": json_digest([entry.portable_json() for entry in entries]),
    }


def _structure_facts(path: Path, entry: Entry, base: str) -> dict[str, Any]:
    """Return what is stated of an active addition."""
    file = path / entry.file
    # A file of the first version does not hold provenance and figures, so that its digest says nothing of them.
    held = not file.is_file() or "entry" in read_metadata(file)
    stated = {} if held else {"entry": json_digest(entry.portable_json())}
    return stated | {
        "kind": "structure",
        "base": base,
        "name": entry.name,
        "sha256": entry.sha256,
        "digest": entry.digest,
        "needs": [[name, digest] for name, digest in entry.needs],
    }


def missing_statements(
    path: Path, registry: Registry, document: Mapping[str, Any], chain: Sequence[Statement]
) -> list[dict[str, Any]]:
    """Return the facts that a chain lacks to state a model as it is now, in the order in which they are signed.

    Raises
    ------
    ModelError
        If ``model.json`` or the base is not the one that was stated: these never change.
    """
    fixed = [_model_facts(registry, document), _base_facts(registry, document)]
    for stated, facts in zip(chain, fixed, strict=False):
        if stated.facts != facts:
            raise ModelError(
                f"{path}: {stated.name} is not what statement {stated.number} states, and it never changes: put the "
                f"model back from a copy, or remove {path / 'signatures'} to sign another model"
            )
    missing = fixed[len(chain) :]
    active, base = fold_statements(chain), _base(document)
    names = {entry.name for entry in registry.entries}
    # What is gone first: a structure may only leave after those that need it.
    missing += [
        {"kind": "removal", "base": base, "name": name, "digest": one.values["digest"]}
        for name, one in reversed(active.items())
        if name not in names
    ]
    for entry in registry.entries:
        if entry.kind == "addition":
            facts = _structure_facts(path, entry, base)
            if entry.name not in active or active[entry.name].facts != facts:
                missing.append(facts)
    return missing


def _base(document: Mapping[str, Any]) -> str:
    return str(document["base"]["digest"])
