"""Writing into a model directory: under its lock, nothing half-written, and nothing that does not belong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from repmode_cl.errors import ModelError
from repmode_cl.files import TEMPORARY_MARK
from repmode_cl.store import records
from repmode_cl.store.registry import REGISTRY, plain_json

__all__ = ["check_inference", "check_vacant", "writing"]

LOCK_SECONDS = 60.0


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
    ours = {records.BASE, records.MODEL, ".lock"}
    others = sorted(item.name for item in path.iterdir() if item.name not in ours)
    if others:
        raise ModelError(f"{path} holds {', '.join(others[:3])}: a model needs a folder of its own")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the model's lock, and clear away what a killed writer left."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path / ".lock", timeout=LOCK_SECONDS):
            for folder in (path, path / records.STRUCTURES):
                for left in folder.glob(f"*{TEMPORARY_MARK}*") if folder.is_dir() else ():
                    left.unlink(missing_ok=True)
            yield
    except Timeout as error:
        raise ModelError(
            f"{path} has been locked by another process for {LOCK_SECONDS:.0f} s: wait until it is done"
        ) from error
