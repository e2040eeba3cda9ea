"""The registry of a model: its structures, their files and their proofs.

It is the only file that is ever replaced, always last: a file that it does not name is not part of the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from repmode_cl.errors import ModelError
from repmode_cl.store.entry import Entry
from repmode_cl.store.entry_checks import check_entries, check_history
from repmode_cl.store.history import Action, Change, State, state_after
from repmode_cl.utils.atomic_files import json_text, write_json
from repmode_cl.utils.tensor_digests import json_digest

__all__ = ["REGISTRY", "Entry", "Registry", "creation_change", "utc_now", "plain_json", "read_json_document"]

REGISTRY = "registry.json"
REGISTRY_FORMAT = "repmode-cl registry"
#: Of registries that can be read. Version 4 is written where a structure has a `Reliability`, version 3 where an
#: addition has a choice that version 2 cannot state (`AdditionSpec.extended`), version 2 otherwise.
REGISTRY_VERSIONS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Registry:
    """The structures that a model holds, and its history.

    Parameters
    ----------
    model_sha256
        Of the ``model.json`` that this belongs to.
    entries
        The active structures, the base's first, what is needed before what needs it.
    kept
        Earlier versions that are not active but have their files still, until ``gc``.
    history
        Every change, from the creation on.
    """

    model_sha256: str
    entries: tuple[Entry, ...]
    kept: tuple[Entry, ...] = ()
    history: tuple[Change, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Active structures, in order."""
        return tuple(entry.name for entry in self.entries)

    @property
    def versions(self) -> tuple[Entry, ...]:
        """All versions that have files: the active ones, then those that are kept."""
        return self.entries + self.kept

    def entry(self, name: str) -> Entry:
        """Return the entry of an active structure; the caller has checked that there is one."""
        return next(entry for entry in self.entries if entry.name == name)

    def version(self, name: str, digest: str) -> Entry | None:
        """Return one version of a structure, active or kept; None if it is not here."""
        key = (name, digest)
        return next((entry for entry in self.versions if (entry.name, entry.digest) == key), None)

    def with_needs(self, names: tuple[str, ...]) -> tuple[Entry, ...]:
        """Return the entries of `names` and of all that they need, in the registry's order."""
        required, queue = set(names), list(names)
        while queue:
            for need, _ in self.entry(queue.pop()).needs:
                if need not in required:
                    required.add(need)
                    queue.append(need)
        return tuple(entry for entry in self.entries if entry.name in required)

    def needed_by(self, name: str) -> tuple[str, ...]:
        """Return the active structures that see the experts of `name`."""
        return tuple(e.name for e in self.entries if any(need == name for need, _ in e.needs))

    def state_after(self, number: int) -> State:
        """Return ``(name, digest)`` of the structures active after a change; ModelError without that change."""
        base = tuple((entry.name, entry.digest) for entry in self.entries if entry.kind == "base")
        return state_after(self.history, number, base)

    def with_change(
        self,
        action: Action,
        entries: Sequence[Entry],
        kept: Sequence[Entry],
        **fields: Any,
    ) -> Registry:
        """Return the registry after one more change; `fields` are those of the `Change` that apply."""
        change = Change(number=len(self.history) + 1, time=utc_now(), action=action, **fields)
        return Registry(self.model_sha256, tuple(entries), tuple(kept), (*self.history, change))

    def write(self, folder: Path) -> None:
        """Write this registry in place of the one in `folder`: the last step of every change."""
        body = {
            "format": REGISTRY_FORMAT,
            "version": self._version,
            "model_sha256": self.model_sha256,
            "entries": [entry.to_json() for entry in self.entries],
            "kept": [entry.to_json() for entry in self.kept],
            "history": [change.to_json() for change in self.history],
        }
        write_json(folder / REGISTRY, body | {"checksum": json_digest(body)})

    @property
    def _version(self) -> int:
        """The oldest version whose programs know all that this registry states."""
        if any(entry.reliability is not None for entry in self.versions):
            return 4
        specs = [entry.spec for entry in self.versions] + [change.spec for change in self.history]
        return 3 if any(spec is not None and spec.extended for spec in specs) else 2

    @classmethod
    def read(cls, folder: Path) -> Registry:
        """Read and check the registry of a model, of any version that was ever written.

        Raises
        ------
        ModelError
            If it is missing, damaged, of a version that this program does not know, or says what no model's does.
        """
        path = folder / REGISTRY
        if folder.is_file():
            raise ModelError(f"{folder} is a file: a model is a folder, such as `repmode-cl train` makes")
        text, body = read_json_document(path, REGISTRY_FORMAT, REGISTRY_VERSIONS)
        if not _is_intact(text, body):
            raise ModelError(
                f"{path} is damaged or was edited (its checksum does not fit): put it back from a copy of the model"
            )
        try:
            entries = tuple(Entry.from_json(values) for values in body["entries"])
            first = body["version"] == 1
            kept = () if first else tuple(Entry.from_json(values) for values in body["kept"])
            history = () if first else tuple(Change.from_json(values) for values in body["history"])
            model_sha256 = str(body["model_sha256"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelError(f"{path} lacks what a registry has ({error}): was it edited by hand?") from error
        check_entries(path, entries, kept)
        history = _history_of_version_1(entries) if first else history
        check_history(path, history)
        return cls(model_sha256, entries, kept, history)


def _is_intact(text: str, body: Mapping[str, Any]) -> bool:
    """Return whether a registry is, character by character, as it was written.

    The checksum covers the values. Comparing the text too finds changes that do not affect them: a flipped bit can
    turn 1e-05 into 1E-05, or a space into a tab.
    """
    values = dict(body)
    checksum = values.pop("checksum", None)
    try:
        return checksum == json_digest(values) and text == json_text(body)
    except (ValueError, RecursionError):  # a number too large for a float was read as infinite
        return False


def _history_of_version_1(entries: Sequence[Entry]) -> tuple[Change, ...]:
    """Return the history of a model of version 1, which could only grow: its entries in their order."""
    base = [entry for entry in entries if entry.kind == "base"]
    history = [creation_change(base)]
    for entry in entries:
        if entry.kind == "addition":
            history.append(
                Change(
                    number=len(history) + 1,
                    time=entry.created,
                    action="add",
                    structure=entry.name,
                    digest=entry.digest,
                    spec=entry.spec,
                    provenance=entry.provenance,
                    metrics=entry.metrics,
                )
            )
    return tuple(history)


def creation_change(base: Sequence[Entry]) -> Change:
    """Return the first change of every history: a base with these structures."""
    first = base[0]
    return Change(
        number=1,
        time=first.created,
        action="create",
        digest=first.digest,
        provenance=first.provenance,
        metrics={entry.name: entry.metrics for entry in base},
    )


def utc_now() -> str:
    """Return the present time, UTC, as registries record it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_json_document(path: Path, format_: str, versions: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Return the text and the values of a JSON object of a known format and one of the `versions`.

    Raises
    ------
    ModelError
        If it is missing, no JSON, or of another format or version.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        values = json.loads(text, parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is missing: {path.parent} is no model, or its creation was interrupted"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error}): put it back from a copy of the model") from error
    if not isinstance(values, dict) or values.get("format") != format_:
        raise ModelError(f"{path} is no {format_!r} file: put it back from a copy of the model")
    version = values.get("version")
    # `in` is not enough: 1.0 and true are equal to 1.
    if not isinstance(version, int) or isinstance(version, bool) or version not in versions:
        *others, last = map(str, versions)
        known = f"{', '.join(others)} and {last}" if others else last
        raise ModelError(
            f"{path} has format version {version!r}; this repmode-cl reads version{'s' * (len(versions) > 1)} "
            f"{known}: open it with the repmode-cl that wrote it, or a newer one"
        )
    return text, values


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def plain_json(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return `value` as it will be read back from JSON (tuples become lists).

    Raises
    ------
    ModelError
        If it is not JSON; `what` names it in the message.
    """
    try:
        return dict(json.loads(json.dumps(dict(value), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{what} cannot be stored as JSON ({error}): give plain, finite values") from error
