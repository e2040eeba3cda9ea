"""What lies in ``pending/`` of a model: additions under way, and finished ones that a person has to accept.

A staged structure is complete and proved, but no part of the model: ``staged.json`` beside its pack says why it waits.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from repmode_cl.errors import ModelError, did_you_mean
from repmode_cl.store.candidate import Candidate
from repmode_cl.store.pack_exchange import ImportResult, examine, take
from repmode_cl.store.pack_format import read_pack
from repmode_cl.store.registry import Entry, now, read_document
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.store.transaction import DISCARDED, no_locks
from repmode_cl.utils.atomic_files import json_text, write_json
from repmode_cl.utils.tensor_digests import json_digest

__all__ = [
    "OUTCOME",
    "REQUEST",
    "PendingStructure",
    "accept",
    "clear_pending",
    "discard",
    "pending",
    "stage",
    "staged",
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
    """One structure that is no part of its model yet.

    Parameters
    ----------
    name
        The structure.
    folder
        Where its training is.
    busy
        Whether a process is at work on it now; None where that cannot be told, as by a user who may not write here.
    entry
        What the model would record of it, if it is staged; None while it is trained, or its training is interrupted.
    why
        Why it was staged.
    replace
        Whether it shall take the place of an addition of this name.
    min_r2
        R2 on held-out images that was asked for; None if none was.
    staged
        UTC time, ISO 8601; empty if it is not staged.
    file
        Name of its pack within the folder.
    problem
        Why what was staged cannot be accepted; empty if it can.
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


@contextmanager
def training_lock(model: ModelSnapshot, name: str) -> Iterator[None]:
    """Let one process alone train, accept or discard `name`, while others may do so with other structures.

    Raises
    ------
    ModelError
        If another process does, whose end is not waited for, or the file system has no locks.
    """
    path = _lock_of(model, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file stays when all is done: removing it would let two processes lock two files of one name.
    lock = FileLock(path, timeout=_PATIENCE)
    try:
        lock.acquire()
    except Timeout as error:
        raise ModelError(
            f"another process is adding {name!r} to {model.path} (it holds {path}): wait until it is done, or end it"
        ) from error
    except NotImplementedError as error:
        raise no_locks(model.path, error) from error
    try:
        yield
    finally:
        lock.release()


def stage(
    model: ModelSnapshot,
    candidate: Candidate,
    *,
    why: str,
    replace: bool = False,
    min_r2: float | None = None,
) -> Path:
    """Leave a finished structure for a person to `accept` or `discard`.

    Parameters
    ----------
    model
        The model that it was made for; only its ``pending/`` folder is written to.
    candidate
        As `make_candidate` gives it, in ``model.pending(name)``.
    why
        In words, for that person.
    replace
        Whether it shall take the place of the addition of this name.
    min_r2
        R2 on held-out images that was asked for.

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
        "staged": now(),
    }
    write_json(folder / STAGED, body | {"checksum": json_digest(body)})
    return folder


def pending(model: ModelSnapshot) -> tuple[PendingStructure, ...]:
    """Return what is under way or staged, by name."""
    folder = model.path / "pending"
    if not folder.is_dir():
        return ()
    names = sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    return tuple(_read(model, name) for name in names)


def staged(model: ModelSnapshot) -> tuple[PendingStructure, ...]:
    """Return what waits to be accepted or discarded, by name."""
    return tuple(one for one in pending(model) if one.entry is not None)


def accept(model: ModelSnapshot, name: str) -> ImportResult:
    """Make a staged structure part of the model, after the checks that a pack from elsewhere has to pass.

    What is left of its training goes then. Killed in between, the same call finishes.

    Parameters
    ----------
    model
        The model.
    name
        What was staged; it replaces the addition of this name, if it was staged for that.

    Returns
    -------
    Taken
        The new entry, and in which sense it was found to predict what it did when it was staged.

    Raises
    ------
    ModelError
        If nothing of that name is staged, a process is at work on it, its file is damaged, or the model changed so
        that it cannot take it any more. The model is then as it was, and the structure is still staged.
    """
    _one(model, name)
    with training_lock(model, name):
        found = _one(model, name)
        if found.problem:
            raise ModelError(found.problem)
        if found.entry is None:
            raise ModelError(
                f"{name!r} is not staged in {model.path}: its training is not finished; the same `repmode-cl add` or "
                "`replace` goes on with it, `repmode-cl discard` removes it"
            )
        pack = read_pack(found.folder / found.file)
        if pack.entry.portable_json() != found.entry.portable_json():
            raise ModelError(
                f"{pack.path} is not what {found.folder / STAGED} says: discard {name!r} and add it again"
            )
        active = ModelSnapshot.open(model.path).entries.get(name)
        if active is not None and active.digest == found.entry.digest:
            # Killed after it became part of the model: what is left to do is to clear up.
            taken = examine(model, pack)
        else:
            taken = take(model, pack, action="accept", replace=found.replace)
        clear_pending(found.folder)
    return taken


def discard(model: ModelSnapshot, name: str) -> PendingStructure:
    """Remove a staged structure, or the training of an addition that was interrupted; return what it was.

    Raises
    ------
    ModelError
        If there is nothing of that name, or a process is at work on it.
    """
    _one(model, name)
    with training_lock(model, name):
        found = _one(model, name)
        clear_pending(found.folder)
    return found


def clear_pending(folder: Path) -> None:
    """Remove a pending folder, and what a killed process left of others."""
    # Away in one step: half of a training would be taken for one to go on with.
    folder.rename(folder.with_name(f"{DISCARDED}{secrets.token_hex(4)}"))
    for gone in folder.parent.glob(f"{DISCARDED}*"):
        shutil.rmtree(gone, ignore_errors=True)  # another process may be at it, too


def _one(model: ModelSnapshot, name: str) -> PendingStructure:
    if not model.pending(name).is_dir():
        known = [one.name for one in pending(model)]
        raise ModelError(
            f"{model.path} has no pending {name!r}: it has {', '.join(known) or 'none'}{did_you_mean(name, known)}"
        )
    return _read(model, name)


def _read(model: ModelSnapshot, name: str) -> PendingStructure:
    folder, busy = model.pending(name), _is_held(_lock_of(model, name))
    path = folder / STAGED
    if not path.exists():
        return PendingStructure(name, folder, busy)
    try:
        text, body = read_document(path, STAGED_FORMAT, [STAGED_VERSION])
    except ModelError as error:
        return PendingStructure(name, folder, busy, problem=str(error))
    checksum = body.pop("checksum", None)
    if checksum != json_digest(body) or text != json_text(body | {"checksum": checksum}):
        problem = f"{path} is damaged or was edited: discard {name!r} and add it again"
        return PendingStructure(name, folder, busy, problem=problem)
    return PendingStructure(
        name,
        folder,
        busy,
        entry=Entry.from_json(body["entry"]),
        file=Path(body["file"]).name,
        why=body["why"],
        replace=body["replace"],
        min_r2=body["min_r2"],
        staged=body["staged"],
    )


def _lock_of(model: ModelSnapshot, name: str) -> Path:
    folder = model.pending(name)
    return folder.with_name(f"{name}.lock")


def _is_held(path: Path) -> bool | None:
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # not to be locked by this user, or on this file system
        return None
