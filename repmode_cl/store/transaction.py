"""Transactions on a model directory: its lock, leftovers of killed writers, and the registry replaced last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repmode_cl.errors import ModelError
from repmode_cl.store import record_files as records
from repmode_cl.store.hub_copy import refuse_hub_copy
from repmode_cl.store.registry import REGISTRY, Registry
from repmode_cl.utils.atomic_files import TEMPORARY_MARK
from repmode_cl.utils.locks import exclusive

__all__ = [
    "DISCARDED",
    "WITHOUT_LOCKS",
    "transaction",
    "check_new_folder",
    "is_free",
    "replace_registry",
    "remove_leftovers_if_idle",
    "write_lock",
]

LOCK = ".lock"
LOCK_SECONDS = 60.0
#: What to do with a model whose file system has no locks.
WITHOUT_LOCKS = "copy the model to another disk, change it there, and copy it back"
#: Prefix of folders in ``pending/`` that are being removed. No structure's name begins with it.
DISCARDED = ".discarded-"

# Describes the process that holds the lock. Named as a temporary file, so that a leftover is removed with the others.
_HOLDER = f"{LOCK}{TEMPORARY_MARK}holder"


def is_free(path: Path) -> bool:
    """Return whether a model can be made at `path`: nothing is there, or what an interrupted creation left."""
    if not path.exists():
        return True
    return path.is_dir() and not (path / REGISTRY).exists() and not _foreign_files(path)


def check_new_folder(path: Path) -> None:
    """Refuse a folder that holds anything but the files of an interrupted creation."""
    if (path / REGISTRY).exists():
        raise ModelError(f"{path} is a model already: choose another folder, or add structures to it")
    if others := _foreign_files(path):
        raise ModelError(f"{path} holds {', '.join(others[:3])}: a model needs an empty folder")


def _foreign_files(path: Path) -> list[str]:
    ours = {records.BASE, records.MODEL, LOCK}
    return sorted(
        item.name for item in path.iterdir() if item.name not in ours and TEMPORARY_MARK not in item.name
    )


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Hold the model's lock, after removing the leftovers of killed writers.

    Raises
    ------
    ModelError
        If another process holds the lock for a minute, or the file system has no locks.
    """
    busy = f"{path} has been locked for {LOCK_SECONDS:.0f} s by {{holder}}: wait until it is done"
    holder = path / _HOLDER
    with exclusive(
        path / LOCK, busy, error=ModelError, timeout=LOCK_SECONDS, advice=WITHOUT_LOCKS, holder=holder
    ):
        for file in _temporary_files(path):
            if file != holder:
                file.unlink(missing_ok=True)
        for folder in (path / "pending").glob(f"{DISCARDED}*"):
            shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it, too
        yield


@contextmanager
def transaction(path: Path) -> Iterator[tuple[Registry, dict[str, Any]]]:
    """Hold the lock of an existing model; yield its registry and ``model.json`` as they are on disk now.

    Another process may have changed the model since it was opened: only the files read under the lock count.
    """
    # First, so that no lock file is made in a folder that is no model.
    Registry.read(path)
    refuse_hub_copy(path)
    with write_lock(path):
        registry = Registry.read(path)
        yield registry, records.read_model_document(path, registry)


def replace_registry(path: Path, before: Registry, after: Registry) -> None:
    """Replace `before`, the registry that was read under the lock, by `after`.

    Raises
    ------
    ModelError
        If another registry is there: the file system lets two processes hold one lock.
    """
    if Registry.read(path) != before:
        raise ModelError(
            f"{path / REGISTRY} changed while this process held the model's lock: locks do not work on this file "
            "system; nothing was changed by this process; let only one change the model at a time, and run "
            "`repmode-cl verify`"
        )
    after.write(path)


def remove_leftovers_if_idle(path: Path) -> None:
    """Remove the leftovers of killed writers, if that is possible at once; reading works in any case.

    Nothing is touched while another process writes, or where this one may not write.
    """
    try:
        if not _temporary_files(path) or not os.access(path, os.W_OK):
            return
        with exclusive(path / LOCK, "another process writes", error=ModelError):
            for file in _temporary_files(path):
                file.unlink(missing_ok=True)
    except (ModelError, OSError):
        # Leftovers do no harm, and a reader does not depend on their removal: the next writer removes them.
        return


def _temporary_files(path: Path) -> list[Path]:
    """Return the temporary files of a model, except those in ``pending/``, which belong to the trainings there."""
    folders = (path, path / records.STRUCTURES, path / "signatures")
    return [file for folder in folders for file in folder.glob(f"*{TEMPORARY_MARK}*") if not file.is_dir()]
