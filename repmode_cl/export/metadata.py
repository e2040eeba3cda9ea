"""Facts that travel with an exported network: whose it is, what it takes, and how close to the model it was found."""

from __future__ import annotations

import json
from typing import Any

from repmode_cl.data.preprocessing.intensity_scales import recorded_target
from repmode_cl.errors import RepmodeError
from repmode_cl.export.parity import Parity
from repmode_cl.inference.provenance import z_score_text
from repmode_cl.inference.writers.image_metadata import software
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.atomic_files import canonical_json

__all__ = ["export_facts", "facts_text", "read_facts"]

_FORMAT, _VERSION = "repmode-cl export", 1


def export_facts(model: ModelSnapshot, structure: str, parity: Parity | None) -> dict[str, Any]:
    """Return the facts of one exported structure as JSON values.

    Parameters
    ----------
    model
        The model.
    structure
        One of its structures.
    parity
        The comparison with the model; None before it is made.
    """
    entry, shape = model.entries[structure], model.architecture
    scale = recorded_target(entry.provenance, structure)
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "software": software(),
        "structure": structure,
        "structure_digest": entry.digest,
        "base_digest": model.base_digest,
        "needs": [{"name": name, "digest": digest} for name, digest in entry.needs],
        "network": {
            "width": shape.width,
            "depth": shape.depth,
            "size_multiple": 1 << shape.depth,
            "norms": "folded" if entry.proof.folded else "batch norms",
        },
        "voxel_size_zyx_um": None if model.voxel_size is None else list(model.voxel_size),
        "preprocessing": model.preprocessing,
        "windows": model.inference,
        "values": z_score_text(model),
        **({} if scale is None else {"fluorescence_mean_and_deviation": list(scale)}),
        "parity": None if parity is None else parity.to_json(),
    }


def facts_text(facts: dict[str, Any]) -> str:
    """Return facts as the text that a file holds."""
    return canonical_json(facts)


def read_facts(text: str, where: str) -> dict[str, Any]:
    """Return the facts that `facts_text` wrote.

    Parameters
    ----------
    text
        The text.
    where
        Name of the file, for messages.

    Raises
    ------
    RepmodeError
        If it is no such text, or of a version that this program does not know.
    """
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RepmodeError(f"{where}: its metadata are damaged ({error}): export it again") from error
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        raise RepmodeError(
            f"{where}: holds no metadata of repmode-cl: give a file that `repmode-cl export` wrote"
        )
    if facts.get("version") != _VERSION:
        raise RepmodeError(
            f"{where}: its metadata have version {facts.get('version')!r}, this repmode-cl reads version {_VERSION}: "
            "use a newer repmode-cl"
        )
    missing = {"structure", "structure_digest", "base_digest"} - {
        key for key, value in facts.items() if isinstance(value, str)
    }
    if missing:
        raise RepmodeError(f"{where}: its metadata lack {', '.join(sorted(missing))}: export it again")
    return facts
