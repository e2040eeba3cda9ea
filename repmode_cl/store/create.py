"""Write a trained base as a new model directory: its tensors, ``model.json`` and a registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.errors import ModelError
from repmode_cl.nn import RepModeUNet
from repmode_cl.store import record_files as records
from repmode_cl.store.model_document import check_inference
from repmode_cl.store.proof import on_cpu, prove
from repmode_cl.store.registry import Entry, Registry, creation_change, plain_json, utc_now
from repmode_cl.store.reliability import Reliability
from repmode_cl.store.transaction import check_new_folder, write_lock
from repmode_cl.structures import check_new_structure_name
from repmode_cl.utils.atomic_files import sha256_file, write_json
from repmode_cl.utils.tensor_digests import tensor_digest

__all__ = ["write_base_model"]


def write_base_model(
    path: Path,
    network: RepModeUNet,
    *,
    voxel_size: Sequence[float] | None,
    preprocessing: Mapping[str, Any],
    inference: Mapping[str, Any],
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    reliability: Mapping[str, Reliability],
) -> None:
    """Write the base of a network, without its additions; parameters and errors of `Model.create`."""
    network.check_fusible()
    for name in network.base_structures:
        check_new_structure_name(name)
    settings, smallest = check_inference(inference), network.architecture.smallest_size
    if min(settings["window"]) < smallest:
        raise ModelError(
            f"inference has the window {settings['window']} (z, y, x): the network, of depth "
            f"{network.architecture.depth}, takes no fewer than {smallest} voxels along each axis; give a larger window"
        )
    contents: dict[str, Any] = {
        "architecture": network.architecture.to_json(),
        "base_structures": list(network.base_structures),
        "voxel_size": [float(size) for size in voxel_size] if voxel_size is not None else None,
        "preprocessing": plain_json(preprocessing, "preprocessing"),
        "inference": settings,
    }
    version = records.model_version(contents)
    document: dict[str, Any] = {"format": records.MODEL_FORMAT, "version": version, **contents}
    network = on_cpu(network)
    base = network.base_state()
    facts = records.base_facts(document)
    digest = tensor_digest(base, facts)
    document["base"] = {"file": records.BASE, "digest": digest}
    proofs = {name: prove(network, name) for name in network.base_structures}
    with write_lock(path):
        check_new_folder(path)
        file = records.write_base(path, base, facts, digest, proofs)
        write_json(path / records.MODEL, document)
        created = utc_now()
        entries = tuple(
            Entry(
                name=name,
                kind="base",
                **file,
                digest=digest,
                spec=None,
                needs=(),
                parameters=records.parameter_count(base),
                proof=proofs[name],
                provenance=dict(provenance),
                metrics=dict(metrics.get(name, {})),
                created=created,
                reliability=reliability.get(name),
            )
            for name in network.base_structures
        )
        Registry(sha256_file(path / records.MODEL), entries, (), (creation_change(entries),)).write(path)
