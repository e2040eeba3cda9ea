"""The history of a model: every change, and the structures that were active after it.

Changes are only ever appended. They hold copies of a structure's provenance and metrics, which so outlive the
structure itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from repmode_cl.errors import ModelError
from repmode_cl.nn import AdditionSpec

__all__ = ["Action", "Change", "State", "state_after"]

Action = Literal["create", "add", "replace", "remove", "rollback", "import", "accept", "gc"]

_T = TypeVar("_T")

#: Structures that are active, in order, each with the digest of its version.
State = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Change:
    """One change of a model.

    Parameters
    ----------
    number
        1 for the creation, then 2, 3, ... without gaps.
    time
        UTC time, ISO 8601.
    action
        ``create``, ``add``, ``replace``, ``remove``, ``rollback``, ``import`` (from a pack), ``accept`` (of a
        staged structure) or ``gc``.
    structure
        The structure; None where the change is of the whole model (``create``, ``rollback``, ``gc``).
    digest
        Digest of the version that became active; for ``create``, of the base; else None.
    earlier
        Digest of the version that was replaced or removed; else None.
    to
        For ``rollback``, the number of the change whose state came back; else None.
    spec
        How the version that became active was added; else None.
    provenance
        Where that version comes from: data, configuration, versions of libraries. For ``gc``, ``removed``:
        the versions that it deleted.
    metrics
        How well it predicted when it was stored; for ``create``, by structure.
    """

    number: int
    time: str
    action: Action
    structure: str | None = None
    digest: str | None = None
    earlier: str | None = None
    to: int | None = None
    spec: AdditionSpec | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the values for JSON; `from_json` reads them back."""
        return {
            "number": self.number,
            "time": self.time,
            "action": self.action,
            "structure": self.structure,
            "digest": self.digest,
            "earlier": self.earlier,
            "to": self.to,
            "spec": self.spec.to_json() if self.spec else None,
            "provenance": self.provenance,
            "metrics": self.metrics,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Change:
        """Read the values that `to_json` returns; ValueError for an unknown action."""
        if values["action"] not in get_args(Action):
            raise ValueError(f"action {values['action']!r} is none of {', '.join(get_args(Action))}")
        return cls(
            number=int(values["number"]),
            time=str(values["time"]),
            action=values["action"],
            structure=values["structure"],
            digest=values["digest"],
            earlier=values["earlier"],
            to=values["to"],
            spec=AdditionSpec.from_json(values["spec"]) if values["spec"] else None,
            provenance=values["provenance"],
            metrics=values["metrics"],
        )


def state_after(changes: Sequence[Change], number: int, base: State) -> State:
    """Return the structures that were active after a change, by replaying all changes up to it.

    Parameters
    ----------
    changes
        The whole history, from the first change.
    number
        Number of the change.
    base
        The structures of the base: they are there from the first change and never leave.

    Returns
    -------
    tuple
        ``(name, digest)`` of each. A version that replaced another stands at the end, so that additions
        always stand before those that need them.

    Raises
    ------
    ModelError
        If there is no such change.
    """
    if not 1 <= number <= len(changes):
        raise ModelError(f"there is no change {number}: the history has changes 1 to {len(changes)}")
    states: list[dict[str, str]] = []
    state: dict[str, str] = {}
    for change in changes[:number]:
        if change.action == "create":
            state = dict(base)
        elif change.action == "rollback":
            state = dict(states[_required(change.to) - 1])
        elif change.action != "gc":
            state = {name: digest for name, digest in state.items() if name != change.structure}
            if change.action != "remove":
                state[_required(change.structure)] = _required(change.digest)
        states.append(state)
    return tuple(states[-1].items())


def _required(value: _T | None) -> _T:
    """Return a value that the action of a change requires."""
    if value is None:
        raise ModelError(
            "the history lacks a part of a change: put registry.json back from a copy of the model"
        )
    return value
