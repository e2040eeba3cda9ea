"""Writing into a model directory: under its lock, nothing half-written, and nothing that does not belong."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from repmode_cl.errors import ModelError
from repmode_cl.store import record_files as records
from repmode_cl.store.registry import REGISTRY, Registry, now, plain_json
from repmode_cl.utils.atomic_files import TEMPORARY_MARK

__all__ = [
    "DISCARDED",
    "changing",
    "check_inference",
    "check_vacant",
    "no_locks",
    "replace_registry",
    "sweep_if_idle",
    "writing",
]

LOCK = ".lock"
LOCK_SECONDS = 60.0
#: Begins the names of folders in ``pending/`` that are on their way out. No structure's name begins so.
DISCARDED = ".discarded-"

# Who holds the lock. Named as a temporary file, so that what a killed process leaves is cleared with the others.
_HOLDER = f"{LOCK}{TEMPORARY_MARK}holder"


def check_inference(inference: Mapping[str, Any]) -> dict[str, Any]:
    """Return what predictions use by default, as JSON; refuse what is none."""
    values = plain_json(inference, "inference")
    window, overlap, batch = values.get("window"), values.get("overlap"), values.get("batch")
    if (
        not isinstance(window, list)
        or len(window) != 3
        or not all(isinstance(size, int) and size > 0 for size in window)
        or not isinstance(overlap, int | float)
        or not 0 <= overlap < 1
        or not isinstance(batch, int)
        or batch < 1
    ):
        raise ModelError(
            f"inference has window {window!r}, overlap {overlap!r}, batch {batch!r}: needed are a window of "
            "three sizes in voxels, an overlap from 0 to below 1, and a batch of at least 1"
        )
    return values


def check_vacant(path: Path) -> None:
    """Refuse a folder with anything in it but what an interrupted creation leaves."""
    if (path / REGISTRY).exists():
        raise ModelError(f"{path} is a model already: choose another folder, or add structures to it")
    ours = {records.BASE, records.MODEL, LOCK, _HOLDER}
    others = sorted(item.name for item in path.iterdir() if item.name not in ours)
    if others:
        raise ModelError(f"{path} holds {', '.join(others[:3])}: a model needs a folder of its own")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the model's lock, and clear away what a killed writer left.

    Raises
    ------
    ModelError
        If another process holds the lock for a minute, or the file system has no locks.
    """
    path.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(path / LOCK, timeout=LOCK_SECONDS).acquire()
    except Timeout as error:
        raise ModelError(
            f"{path} has been locked for {LOCK_SECONDS:.0f} s by {_holder(path)}: wait until it is done"
        ) from error
    except NotImplementedError as error:
        raise no_locks(path, error) from error
    with held:
        for left in _temporary(path):
            left.unlink(missing_ok=True)
        for folder in (path / "pending").glob(f"{DISCARDED}*"):
            shutil.rmtree(folder, ignore_errors=True)  # another process may be at it, too
        # Only whoever waits reads it: a disk too full for a line of text may still have room for the change.
        with suppress(OSError):
            (path / _HOLDER).write_text(_this_process(), encoding="utf-8")
        try:
            yield
        finally:
            with suppress(OSError):
                (path / _HOLDER).unlink(missing_ok=True)


def no_locks(path: Path, error: Exception) -> ModelError:
    """Return the error of a model on a file system that has no locks."""
    return ModelError(
        f"{path} is on a file system without locks ({error}): copy the model to another disk, change it there, and "
        "copy it back"
    )


@contextmanager
def changing(path: Path) -> Iterator[tuple[Registry, dict[str, Any]]]:
    """Hold the lock of a model that is there; yield its registry and ``model.json`` as they are on disk now.

    Another process may have changed the model since it was opened: what is on disk under the lock is what counts.
    """
    # Before a lock file is made in a folder that is no model.
    Registry.read(path)
    with writing(path):
        registry = Registry.read(path)
        yield registry, records.read_model(path, registry)


def replace_registry(path: Path, before: Registry, after: Registry) -> None:
    """Put `after` in place of `before`, the registry that was read under the lock.

    Raises
    ------
    ModelError
        If another is there: the file system lets two processes hold one lock.
    """
    if Registry.read(path) != before:
        raise ModelError(
            f"{path / REGISTRY} changed while this process held the model's lock: locks do not work on this file "
            "system; nothing was changed by this process; let only one change the model at a time, and run "
            "`repmode-cl verify`"
        )
    after.write(path)


def sweep_if_idle(path: Path) -> None:
    """Clear away what a killed writer left, if that can be done at once; reading works in any case.

    Nothing is touched while another process writes, or where this one may not.
    """
    try:
        if not _temporary(path) or not os.access(path, os.W_OK):
            return
        with FileLock(path / LOCK, timeout=0):
            for left in _temporary(path):
                left.unlink(missing_ok=True)
    except (Timeout, OSError, NotImplementedError):
        # Left-overs harm nothing, and whoever reads has not asked for them to go: the next writer clears them.
        return


def _temporary(path: Path) -> list[Path]:
    """Return the temporary files of a model; those in ``pending/`` belong to the trainings there."""
    folders = (path, path / records.STRUCTURES)
    return [file for folder in folders for file in folder.glob(f"*{TEMPORARY_MARK}*") if not file.is_dir()]


def _this_process() -> str:
    return f"process {os.getpid()} on {platform.node() or 'an unnamed machine'}, since {now()}"


def _holder(path: Path) -> str:
    try:
        return (path / _HOLDER).read_text(encoding="utf-8", errors="replace")[:200] or "another process"
    except OSError:
        return "another process"
