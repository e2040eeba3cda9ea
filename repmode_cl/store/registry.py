"""The registry of a model: which structures it holds, in which files, and what proves them.

It is the one file that is ever replaced, always last: what it does not name is not part of the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from repmode_cl.errors import ModelError
from repmode_cl.files import write_json
from repmode_cl.nn import AdditionSpec
from repmode_cl.store.digests import json_digest
from repmode_cl.store.proof import Proof

__all__ = ["Entry", "Registry", "plain_json", "read_document"]

REGISTRY = "registry.json"
REGISTRY_FORMAT = "repmode-cl registry"
VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One structure of a model.

    Parameters
    ----------
    name
        The structure.
    kind
        ``base``: trained jointly with the base; ``addition``: added to it, in a file of its own.
    file
        Relative to the model, with slashes.
    bytes
        Size of that file.
    sha256
        Of that file.
    digest
        Of the tensors that the structure owns, with their facts; for a base structure, of the whole base.
    spec
        How it was added; None for a base structure.
    needs
        Name and digest of each addition that it sees.
    parameters
        Numbers that it owns, running statistics of its norms among them; for a base structure, the base's.
    proof
        What was computed of it when it was stored; without references.
    provenance
        Where it comes from: data, configuration, versions.
    metrics
        How well it predicted when it was stored.
    created
        UTC time, ISO 8601.
    """

    name: str
    kind: Literal["base", "addition"]
    file: str
    bytes: int
    sha256: str
    digest: str
    spec: AdditionSpec | None
    needs: tuple[tuple[str, str], ...]
    parameters: int
    proof: Proof
    provenance: dict[str, Any]
    metrics: dict[str, Any]
    created: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; `from_json` reads them back."""
        return {
            "name": self.name,
            "kind": self.kind,
            "file": self.file,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "digest": self.digest,
            "spec": self.spec.to_json() if self.spec else None,
            "needs": [{"name": name, "digest": digest} for name, digest in self.needs],
            "parameters": self.parameters,
            "proof": self.proof.to_json(),
            "provenance": self.provenance,
            "metrics": self.metrics,
            "created": self.created,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Entry:
        """Read what `to_json` gave."""
        return cls(
            name=values["name"],
            kind=values["kind"],
            file=values["file"],
            bytes=values["bytes"],
            sha256=values["sha256"],
            digest=values["digest"],
            spec=AdditionSpec.from_json(values["spec"]) if values["spec"] else None,
            needs=tuple((need["name"], need["digest"]) for need in values["needs"]),
            parameters=values["parameters"],
            proof=Proof.from_json(values["proof"]),
            provenance=values["provenance"],
            metrics=values["metrics"],
            created=values["created"],
        )


@dataclass(frozen=True)
class Registry:
    """The entries in the order in which they came, and the digest of the ``model.json`` they belong to."""

    model_sha256: str
    entries: tuple[Entry, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Structures, in order."""
        return tuple(entry.name for entry in self.entries)

    def entry(self, name: str) -> Entry:
        """Return the entry of a structure that is known to be there."""
        return next(entry for entry in self.entries if entry.name == name)

    def with_needs(self, names: tuple[str, ...]) -> tuple[Entry, ...]:
        """Return the entries of `names` and of all that they need, in the registry's order."""
        wanted, pending = set(names), list(names)
        while pending:
            for need, _ in self.entry(pending.pop()).needs:
                if need not in wanted:
                    wanted.add(need)
                    pending.append(need)
        return tuple(entry for entry in self.entries if entry.name in wanted)

    def write(self, folder: Path) -> None:
        """Put this registry in place of the one in `folder`: the last step of every change."""
        body = {
            "format": REGISTRY_FORMAT,
            "version": VERSION,
            "model_sha256": self.model_sha256,
            "entries": [entry.to_json() for entry in self.entries],
        }
        write_json(folder / REGISTRY, body | {"checksum": json_digest(body)})

    @classmethod
    def read(cls, folder: Path) -> Registry:
        """Read and check the registry of a model.

        Raises
        ------
        ModelError
            If it is missing, damaged, or of a version that this program does not know.
        """
        path = folder / REGISTRY
        body = read_document(path, REGISTRY_FORMAT)
        checksum = body.pop("checksum", None)
        if checksum != json_digest(body):
            raise ModelError(
                f"{path} is damaged (its checksum does not fit): put it back from a copy of the model"
            )
        try:
            entries = tuple(Entry.from_json(values) for values in body["entries"])
            return cls(str(body["model_sha256"]), entries)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path} lacks what a registry has ({error}): was it edited by hand?") from error


def read_document(path: Path, format_: str) -> dict[str, Any]:
    """Read a JSON object of a known format and version.

    Raises
    ------
    ModelError
        If it is missing, no JSON, or of another format or version.
    """
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is missing: {path.parent} is no model, or its creation was interrupted"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}): put it back from a copy of the model") from error
    if not isinstance(values, dict) or values.get("format") != format_:
        raise ModelError(f"{path} is no {format_!r} file: put it back from a copy of the model")
    if values.get("version") != VERSION:
        raise ModelError(
            f"{path} has format version {values.get('version')!r}; this repmode-cl reads version {VERSION}: "
            "open it with the repmode-cl that wrote it, or a newer one"
        )
    return values


def plain_json(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return `value` as it will be read back (tuples become lists).

    Raises
    ------
    ModelError
        If it is not JSON; `what` names it in the message.
    """
    try:
        return dict(json.loads(json.dumps(dict(value), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{what} cannot be stored as JSON ({error}): give plain, finite values") from error
