"""Everything that changes a model, by name, for processes that may not live to finish it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stored_model import PARTS, base_network, grown, liven

from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.store import verify_model


def _new(model: Model, name: str, expert: str, sees: str, seed: int) -> RepModeUNet:
    """Return the model's network with a structure as training could have left it."""
    spec = AdditionSpec(expert=expert, sees=sees)  # type: ignore[arg-type]
    if name not in model.structures:
        network = grown(model, name, spec)
    else:
        network = model.network([other for other in model.structures if other != name])
        network.add_structure(name, spec, seed=seed)
    liven(network, f".own.{name}.")
    return network


def create(path: Path) -> None:
    """Write a new model."""
    Model.create(path, base_network(), **PARTS)  # type: ignore[arg-type]


def add(path: Path, name: str, expert: str = "conv1", sees: str = "own") -> str:
    """Add a structure; return its digest."""
    model = Model.open(path)
    return model.add(name, _new(model, name, expert, sees, 0), metrics={"r2": 0.5}).digest


def replace(path: Path, name: str) -> str:
    """Store another version of a structure."""
    model = Model.open(path)
    return model.add(name, _new(model, name, "conv1", "own", 1), replace=True).digest


def remove(path: Path, name: str) -> None:
    """Remove a structure; its version is kept."""
    Model.open(path).remove(name)


def rollback(path: Path, number: int) -> None:
    """Go back to the state after a change."""
    Model.open(path).rollback(number)


def gc(path: Path) -> None:
    """Delete versions that are not active."""
    Model.open(path).gc()


def import_pack(path: Path, file: str) -> str:
    """Add a structure from its pack."""
    return Model.open(path).import_pack(file).status


def export_pack(path: Path, name: str, file: str) -> None:
    """Write a structure's pack."""
    Model.open(path).export_pack(name, file)


def stage(path: Path, name: str) -> None:
    """Leave a structure for a person to accept."""
    from repmode_cl.store import make_candidate
    from repmode_cl.store.staging import stage

    model = Model.open(path)
    folder = model.pending(name)
    folder.mkdir(parents=True)
    network = _new(model, name, "conv1", "own", 0)
    candidate = make_candidate(model, name, network, folder, provenance={}, metrics={"r2": 0.4})
    stage(model, candidate, why="asked for", replace=name in model.structures)


def accept(path: Path, name: str) -> None:
    """Take a structure that was staged."""
    from repmode_cl.store.staging import accept

    accept(Model.open(path), name)


def discard(path: Path, name: str) -> None:
    """Remove a structure that was staged."""
    from repmode_cl.store.staging import discard

    discard(Model.open(path), name)


def verify(path: Path) -> bool:
    """Check everything."""
    return verify_model(path).ok


def predict(path: Path, name: str) -> str:
    """Predict a structure of a fixed volume; return a digest of the result."""
    volume = np.random.default_rng(0).standard_normal((8, 8, 8)).astype(np.float32)
    return hashlib.sha256(Model.open(path).predict(volume, name).tobytes()).hexdigest()


OPERATIONS: dict[str, Callable[..., Any]] = {
    one.__name__: one
    for one in (
        create, add, replace, remove, rollback, gc, import_pack, export_pack, stage, accept, discard, verify, predict,
    )
}  # fmt: skip
