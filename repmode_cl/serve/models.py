"""Models that the server offers, and what the page shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from repmode_cl.data.voxel_size_check import trained_voxels, voxel_range_text
from repmode_cl.errors import RepmodeError
from repmode_cl.inference.display_colours import colour_of, hexadecimal
from repmode_cl.inference.predict_file import FusedNetworks
from repmode_cl.serve.settings import RequestError
from repmode_cl.store.registry import Entry
from repmode_cl.store.snapshot import ModelSnapshot

__all__ = ["ServedModel", "ServedModels", "open_models"]


@dataclass(frozen=True)
class ServedModel:
    """A model and the name under which the page offers it."""

    name: str
    model: ModelSnapshot

    def describe(self) -> dict[str, Any]:
        """Return what the page shows of it, as JSON values."""
        model = self.model
        return {
            "name": self.name,
            "voxel_size": None if model.voxel_size is None else list(model.voxel_size),
            "structures": [_describe_structure(entry, model) for entry in model.entries.values()],
        }


def _describe_structure(entry: Entry, model: ModelSnapshot) -> dict[str, Any]:
    verdict, reliability = entry.verdict, entry.reliability
    return {
        "name": entry.name,
        "colour": f"#{hexadecimal(colour_of(entry.name))}",
        "verdict": {"level": str(verdict.level), "text": verdict.text, "useful": verdict.useful},
        "trained_on": voxel_range_text(trained_voxels(entry.provenance, model.voxel_size)),
        "has_confidence": reliability is not None and reliability.calibration is not None,
        "has_unlike_map": reliability is not None and reliability.features is not None,
    }


class ServedModels:
    """The models of a server, as they were when it started, and their networks on its device."""

    def __init__(self, models: Sequence[ServedModel], device: torch.device) -> None:
        self.models = tuple(models)
        self._by_name = {one.name: one for one in models}
        # Kept by identity: one set of networks for each model.
        self.networks = cache(lambda model: FusedNetworks(model, device))

    def find(self, name: str) -> ServedModel:
        """Return a model by its name.

        Raises
        ------
        RequestError
            If there is none.
        """
        if name not in self._by_name:
            raise RequestError(400, f"there is no model {name!r}; there are {', '.join(self._by_name)}")
        return self._by_name[name]


def open_models(paths: Sequence[Path]) -> list[ServedModel]:
    """Open models, each named by the last part of its path, or by so many that no two names are the same.

    Raises
    ------
    RepmodeError
        If one is named twice, or cannot be opened.
    """
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise RepmodeError("a model is named twice; name each once")
    parts = 1
    while len({path.parts[-parts:] for path in resolved}) < len(resolved):
        parts += 1
    return [
        ServedModel("/".join(path.parts[-parts:]), ModelSnapshot.open(given))
        for given, path in zip(paths, resolved, strict=True)
    ]
