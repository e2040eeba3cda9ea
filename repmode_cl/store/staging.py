"""Pending structures of a model: additions in training, and staged ones, which a person has to accept.

A staged structure is complete and proved, but not part of the model: ``staged.json`` beside its pack says why.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmode_cl.errors import ModelError, RepmodeError, StructureError, did_you_mean
from repmode_cl.store.candidate import Candidate
from repmode_cl.store.entry_checks import find_entry_problem
from repmode_cl.store.pack_exchange import ImportResult, check_pack, commit_pack
from repmode_cl.store.pack_format import Pack, read_pack
from repmode_cl.store.preconditions import check_addition
from repmode_cl.store.registry import Entry, Registry, read_json_document, utc_now
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.store.transaction import DISCARDED, WITHOUT_LOCKS
from repmode_cl.structures import check_structure_name
from repmode_cl.utils.atomic_files import json_text, write_json
from repmode_cl.utils.locks import exclusive, is_locked
from repmode_cl.utils.tensor_digests import json_digest

__all__ = [
    "OUTCOME",
    "REQUEST",
    "PendingStructure",
    "accept",
    "clear_pending",
    "discard",
    "list_pending",
    "open_with_staged",
    "refusal",
    "stage",
    "list_staged",
    "training_lock",
]

#: File of a pending structure's folder: the settings with which its training was started.
REQUEST = "request.json"
#: File with the figures of a finished training, written just before its commit.
OUTCOME = "outcome.json"
STAGED = "staged.json"
STAGED_FORMAT = "repmode-cl staged"
STAGED_VERSION = 1
# Seconds: whoever lists what is pending holds each lock for an instant.
_PATIENCE = 1.0


@dataclass(frozen=True)
class PendingStructure:
    """One structure that is not part of its model yet.

    Parameters
    ----------
    name
        The structure.
    folder
        Its folder in ``pending/``.
    busy
        Whether a process is working on it now; None where that is unknown, as for a user who may not write here.
    entry
        Its registry entry, if it is staged; None while it is trained, or if its training was interrupted.
    why
        Why it was staged.
    replace
        Whether it replaces an addition of this name.
    min_r2
        R2 on held-out images that was demanded; None if none was.
    staged
        UTC time, ISO 8601; empty if it is not staged.
    file
        Name of its pack within the folder.
    problem
        Why it cannot be accepted although it is staged; empty if it can.
    foreign
        Whether no structure can have its name: the folder is someone else's.
    """

    name: str
    folder: Path
    busy: bool | None
    entry: Entry | None = None
    why: str = ""
    replace: bool = False
    min_r2: float | None = None
    staged: str = ""
    file: str = ""
    problem: str = ""
    foreign: bool = False


@contextmanager
def training_lock(model: ModelSnapshot, name: str) -> Iterator[None]:
    """Let only one process train, accept or discard `name`, while others may do so with other structures.

    Raises
    ------
    ModelError
        If another process holds the lock, whose end is not waited for, or the file system has no locks.
    """
    path = _lock_path(model, name)
    busy = (
        f"another process is adding {name!r} to {model.path} ({{holder}}): wait until it is done, or end it"
    )
    holder = path.with_name(f"{path.name}.holder")
    with exclusive(path, busy, error=ModelError, timeout=_PATIENCE, advice=WITHOUT_LOCKS, holder=holder):
        yield


def stage(
    model: ModelSnapshot,
    candidate: Candidate,
    *,
    why: str,
    replace: bool = False,
    min_r2: float | None = None,
) -> Path:
    """Stage a finished structure for a person to `accept` or `discard`.

    Parameters
    ----------
    model
        The model that it was made for; only its ``pending/`` folder is written to.
    candidate
        A candidate of `make_candidate`, in ``model.pending(name)``.
    why
        The reason, in words.
    replace
        Whether it replaces the addition of this name.
    min_r2
        R2 on held-out images that was demanded.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ModelError
        If the candidate is somewhere else.
    """
    entry = candidate.entry
    folder = model.pending(entry.name)
    if candidate.path.parent.resolve() != folder.resolve():
        raise ModelError(f"{candidate.path} cannot be staged: it must lie in {folder}")
    body: dict[str, Any] = {
        "format": STAGED_FORMAT,
        "version": STAGED_VERSION,
        "file": candidate.path.name,
        "entry": entry.to_json(),
        "why": why,
        "replace": replace,
        "min_r2": min_r2,
        "staged": utc_now(),
    }
    write_json(folder / STAGED, body | {"checksum": json_digest(body)})
    return folder


def list_pending(model: ModelSnapshot) -> tuple[PendingStructure, ...]:
    """Return the pending structures of a model, in training or staged, by name."""
    folder = model.path / "pending"
    if not folder.is_dir():
        return ()
    names = sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    return tuple(_read_pending(model, name) if _is_name(name) else _foreign(folder / name) for name in names)


def list_staged(model: ModelSnapshot) -> tuple[PendingStructure, ...]:
    """Return the staged structures of a model, by name."""
    return tuple(one for one in list_pending(model) if one.entry is not None)


def refusal(model: ModelSnapshot, structure: PendingStructure) -> str:
    """Return why the model, as it is on disk now, cannot take a staged structure; empty if it can."""
    if structure.entry is None:
        return ""
    registry = Registry.read(model.path)
    replace = structure.replace and structure.name in registry.names
    try:
        check_addition(model.path, registry, structure.name, structure.entry.needs, replace=replace)
    except RepmodeError as error:
        return str(error)
    return ""


def open_with_staged(model: ModelSnapshot, names: Sequence[str]) -> ModelSnapshot:
    """Return a model in which staged structures can be predicted, before anyone accepts them; it is never written.

    Parameters
    ----------
    model
        The model; its directory is only read.
    names
        Staged structures. One that is to replace a structure of the model stands in its place.

    Raises
    ------
    ModelError
        If nothing of a name is staged, or its file is damaged.
    """
    for name in names:
        structure = _require_pending(model, name)
        if structure.problem:
            raise ModelError(structure.problem)
        if structure.entry is None:
            raise ModelError(
                f"{name!r} is pending in {model.path} but not staged: its training is not finished, so that there is "
                "nothing to predict with"
            )
        pack = _read_staged_pack(structure, structure.entry)
        for need, digest in structure.entry.needs:
            active = model.entries.get(need)
            if active is None or active.digest != digest:
                raise ModelError(
                    f"{name!r} was trained with the version {digest[:8]} of {need!r}, which is not in {model.path} now"
                )
        file = pack.path.relative_to(model.path).as_posix()
        size = pack.path.stat().st_size
        model = model.with_entry(dataclasses.replace(structure.entry, file=file, bytes=size))
    return model


def accept(model: ModelSnapshot, name: str) -> ImportResult:
    """Make a staged structure part of the model, after the checks that a pack from elsewhere has to pass.

    The rest of its training is removed then. If it is killed in between, the same call completes it.

    Parameters
    ----------
    model
        The model.
    name
        A staged structure; it replaces the addition of this name, if it was staged for that. Where that addition was
        removed meanwhile, nothing is replaced: it is added.

    Returns
    -------
    ImportResult
        The new entry, and how its predictions agree with those at its staging.

    Raises
    ------
    ModelError
        If nothing of that name is staged, a process is working on it, its file is damaged, or it cannot be added any
        more because the model changed. The model is then as it was, and the structure is still staged.
    """
    _require_pending(model, name)
    with training_lock(model, name):
        structure = _require_pending(model, name)
        if structure.problem:
            raise ModelError(structure.problem)
        if structure.entry is None:
            raise ModelError(
                f"{name!r} is not staged in {model.path}: its training is not finished; the same `repmode-cl add` or "
                "`replace` resumes it, `repmode-cl discard` removes it"
            )
        pack = _read_staged_pack(structure, structure.entry)
        active = ModelSnapshot.open(model.path).entries.get(name)
        if active is not None and active.digest == structure.entry.digest:
            # A process was killed after it became part of the model: only the folder remains to be removed.
            result = check_pack(model, pack)
        else:
            replace = structure.replace and active is not None
            result = commit_pack(model, pack, action="accept", replace=replace)
        clear_pending(structure.folder)
    return result


def discard(model: ModelSnapshot, name: str) -> PendingStructure:
    """Remove a staged structure, or an addition whose training was interrupted; return what was removed.

    Raises
    ------
    ModelError
        If there is nothing of that name, or a process is working on it.
    """
    _require_pending(model, name)
    with training_lock(model, name):
        structure = _require_pending(model, name)
        clear_pending(structure.folder)
    return structure


def clear_pending(folder: Path) -> None:
    """Remove a pending folder, and the rests of others whose removal was interrupted."""
    # Renamed first, in one step: half of a training would look like one that can be resumed.
    folder.rename(folder.with_name(f"{DISCARDED}{secrets.token_hex(4)}"))
    for discarded in folder.parent.glob(f"{DISCARDED}*"):
        shutil.rmtree(discarded, ignore_errors=True)  # another process may be removing it, too


def _is_name(name: str) -> bool:
    try:
        check_structure_name(name)
    except StructureError:
        return False
    return True


def _foreign(folder: Path) -> PendingStructure:
    """Return a folder that no structure can be pending in, such as a copy that a program for synchronising made."""
    problem = f"{folder} is named as no structure can be: it is not used; move it out of the model"
    return PendingStructure(folder.name, folder, busy=False, problem=problem, foreign=True)


def _require_pending(model: ModelSnapshot, name: str) -> PendingStructure:
    if not model.pending(name).is_dir():
        names = [one.name for one in list_pending(model)]
        raise ModelError(
            f"{model.path} has no pending {name!r}: it has {', '.join(names) or 'none'}{did_you_mean(name, names)}"
        )
    return _read_pending(model, name)


def _read_staged_pack(structure: PendingStructure, entry: Entry) -> Pack:
    """Return the pack of a staged structure; a file that is not what its record says is refused."""
    pack = read_pack(structure.folder / structure.file)
    if pack.entry.portable_json() != entry.portable_json():
        raise ModelError(
            f"{pack.path} is not what {structure.folder / STAGED} says: discard {structure.name!r} and add it again"
        )
    return pack


def _read_pending(model: ModelSnapshot, name: str) -> PendingStructure:
    folder, busy = model.pending(name), is_locked(_lock_path(model, name))
    path = folder / STAGED
    if not path.exists():
        return PendingStructure(name, folder, busy)
    try:
        text, body = read_json_document(path, STAGED_FORMAT, [STAGED_VERSION])
    except ModelError as error:
        return PendingStructure(name, folder, busy, problem=str(error))
    checksum = body.pop("checksum", None)
    if checksum != json_digest(body) or text != json_text(body | {"checksum": checksum}):
        problem = f"{path} is damaged or was edited: discard {name!r} and add it again"
        return PendingStructure(name, folder, busy, problem=problem)
    try:
        entry = Entry.from_json(body["entry"])
        problem = find_entry_problem(entry)
        structure = PendingStructure(
            name,
            folder,
            busy,
            entry=entry,
            file=Path(body["file"]).name,
            why=str(body["why"]),
            replace=body["replace"] is True,
            min_r2=None if body["min_r2"] is None else float(body["min_r2"]),
            staged=str(body["staged"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"it lacks what a staged structure has ({error})"
    if problem:
        problem = f"{path}: {problem}: discard {name!r} and add it again"
        return PendingStructure(name, folder, busy, problem=problem)
    return structure


def _lock_path(model: ModelSnapshot, name: str) -> Path:
    folder = model.pending(name)
    return folder.with_name(f"{name}.lock")
