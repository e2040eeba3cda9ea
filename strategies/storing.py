"""What each way to a structure takes on a disk: sizes of files, as `add`, a copy or a network would leave them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repmode_cl.strategies.dry_run_add import file_bytes
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.nn import RepModeUNet
from repmode_cl.store import Model, make_candidate
from repmode_cl.store.tensors import write_tensors

__all__ = ["addition_bytes", "network_bytes", "second_model_bytes"]


def addition_bytes(
    model: Model,
    structure: str,
    network: RepModeUNet,
    folder: Path,
    *,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> int:
    """Return the size of the file that the model would get: it is written to `folder`, and removed.

    Tensors, the references of its proof, and its record. Of one that can get no file, because its training diverged,
    the size is estimated.
    """
    with _scratch(folder) as place:
        try:
            made = make_candidate(model, structure, network, place, provenance=provenance, metrics=metrics)
        except ModelError:
            return file_bytes(network, structure)
        return made.entry.bytes


def network_bytes(state: Mapping[str, Tensor], folder: Path) -> int:
    """Return the size of one safetensors file of a network's tensors: it is written to `folder`, and removed."""
    with _scratch(folder) as place:
        file = place / "network.safetensors"
        write_tensors(file, state, {})
        return file.stat().st_size


def second_model_bytes(model: Model, known: Sequence[str], rows: Sequence[Tensor]) -> int:
    """Return what a second model takes: the files of base and additions as `model` has them, and new gate rows."""
    files = {model.entries[name].file: model.entries[name].bytes for name in known}
    return sum(files.values()) + sum(row.numel() * row.element_size() for row in rows)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    # Always the same: what a killed process left is found again.
    place = folder / "scratch"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
