"""What ``model.json`` may say: it comes with models from elsewhere, and is checked before anything is built from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

from repmode_cl.errors import ModelError
from repmode_cl.nn import Architecture
from repmode_cl.nn.experts import expert_shapes
from repmode_cl.store.entry_checks import BASE, is_digest
from repmode_cl.store.registry import Registry, plain_json

__all__ = ["check_inference", "check_model_document"]

#: Far beyond every network, and small enough to compute with.
_MOST = {"width": 1 << 20, "depth": 32}


def check_inference(inference: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default settings of predictions as JSON; refuse invalid ones."""
    values = plain_json(inference, "inference")
    window, overlap, batch = values.get("window"), values.get("overlap"), values.get("batch")
    if (weights := values.get("weights", "floored")) not in ("floored", "authors"):
        raise ModelError(f"inference has weights {weights!r}: floored or authors are allowed")
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


def check_model_document(path: Path, document: Mapping[str, Any], registry: Registry) -> None:
    """Refuse values of ``model.json`` that no model has, and a registry of another base.

    Parameters
    ----------
    path
        The file.
    document
        Its values.
    registry
        The checked registry beside it.

    Raises
    ------
    ModelError
        With the key, what it says, and what is needed.
    """
    try:
        _check_architecture(document.get("architecture"))
        _check_base(document, registry)
        _check_voxel_size(document)
        for key in ("preprocessing", "inference"):
            _check_object(document, key)
        check_inference(document["inference"])
    except ModelError as error:
        raise ModelError(f"{path}: {error}; put it back from a copy of the model that you trust") from error


def _check_architecture(values: object) -> None:
    if not isinstance(values, dict) or not isinstance(values.get("experts"), list):
        raise ModelError(
            f"architecture is {short(values)}: an object with width, depth and experts is needed"
        )
    for key, most in _MOST.items():
        if type(values.get(key)) is not int or not 1 <= values[key] <= most:
            raise ModelError(
                f"architecture has the {key} {short(values.get(key))}: a whole number from 1 to {most:,} is needed"
            )
    try:
        for spec in values["experts"]:
            expert_shapes(spec, 1, 1)
        Architecture.from_json(values)
    except (TypeError, ValueError) as error:
        raise ModelError(f"architecture: {error}") from error


def _check_base(document: Mapping[str, Any], registry: Registry) -> None:
    base, names = document.get("base"), document.get("base_structures")
    if not isinstance(base, dict) or base.get("file") != BASE or not is_digest(base.get("digest")):
        raise ModelError(f"base is {short(base)}: the file {BASE} and the digest of its tensors are needed")
    entries = [entry for entry in registry.entries if entry.kind == "base"]
    if names != [entry.name for entry in entries]:
        raise ModelError(
            f"base_structures are {short(names)}, and the registry has {[entry.name for entry in entries]}: the two "
            "are not of one model"
        )
    if any(entry.digest != base["digest"] for entry in entries):
        raise ModelError(f"base has the digest {base['digest'][:8]}, and the registry another")


def _check_voxel_size(document: Mapping[str, Any]) -> None:
    size = document.get("voxel_size", "missing")
    if size is None:
        return
    fits = isinstance(size, list) and len(size) == 3
    if not fits or not all(type(step) in (int, float) and step > 0 and math.isfinite(step) for step in size):
        raise ModelError(f"voxel_size is {short(size)}: three positive numbers in um, or null, are needed")


def _check_object(document: Mapping[str, Any], key: str) -> None:
    if not isinstance(document.get(key), dict):
        raise ModelError(f"{key} is {short(document.get(key))}: a JSON object is needed")
