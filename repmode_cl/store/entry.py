"""An entry of a registry: one version of one structure, with its file, its proof and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from repmode_cl.nn import AdditionSpec
from repmode_cl.store.proof import Proof
from repmode_cl.store.reliability import Reliability
from repmode_cl.verdict import Verdict, structure_verdict

__all__ = ["Entry"]


@dataclass(frozen=True)
class Entry:
    """One structure of a model.

    Parameters
    ----------
    name
        The structure.
    kind
        ``base``: trained jointly with the base; ``addition``: added to it, in its own file.
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
        The proof computed when it was stored, without references.
    provenance
        Where it comes from: data, configuration, versions.
    metrics
        How well it predicted when it was stored.
    created
        UTC time, ISO 8601.
    reliability
        What says how far its predictions can be trusted; None in models of before, and where there were no images.
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
    reliability: Reliability | None = None

    @property
    def verdict(self) -> Verdict:
        """What its figures say: learned nothing, weak, useful, or unknown (`repmode_cl.verdict`)."""
        # The images of a base are recorded for all its structures together.
        added = self.kind == "addition"
        return structure_verdict(self.name, self.metrics, self.provenance, recorded_images=added)

    def portable_json(self) -> dict[str, Any]:
        """Return the values that do not depend on where the file lies: all but ``file``, ``bytes``, ``sha256``."""
        values = self.to_json()
        return {key: value for key, value in values.items() if key not in ("file", "bytes", "sha256")}

    def to_json(self) -> dict[str, Any]:
        """Return the values for JSON; `from_json` reads them back."""
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
            # Left out where there is none: entries of before are read and written as they were.
        } | ({} if self.reliability is None else {"reliability": self.reliability.to_json()})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Entry:
        """Read the values that `to_json` returns."""
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
            reliability=Reliability.from_json(values["reliability"]) if "reliability" in values else None,
        )
