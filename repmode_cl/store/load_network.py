"""Load stored tensors into a network one at a time, and check their digest on the way.

The loaded tensors are the hashed ones, and there is never a second copy of a network's tensors in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.nn.architecture import expert_labels
from repmode_cl.nn.experts import expert_shapes, uninitialised_weights
from repmode_cl.store import record_files as records
from repmode_cl.store.registry import Entry
from repmode_cl.utils.safetensors_header import Slot
from repmode_cl.utils.safetensors_io import TensorFile, open_tensors
from repmode_cl.utils.tensor_digests import Described, stream_digest

__all__ = ["check_structure_tensors", "find_missing_expert", "load_base", "load_structure"]


def load_base(path: Path, document: Mapping[str, Any]) -> RepModeUNet:
    """Return the network of a model without its additions, in evaluation mode, on the CPU.

    Parameters
    ----------
    path
        The model directory.
    document
        Its ``model.json``.

    Raises
    ------
    ModelError
        If a tensor is not the one that was stored.
    """
    architecture = Architecture.from_json(document["architecture"])
    with open_tensors(path / records.BASE) as file:
        records.check_version(file.path, file.header.metadata, [records.BASE_VERSION])
        # Sizes are only numbers in the document: the file must hold so large a network before one is made.
        for block, c_in, c_out, experts in architecture.blocks():
            _check_experts(file, f"{block}.experts", experts, c_in, c_out)
        with uninitialised_weights():
            network = RepModeUNet(architecture, document["base_structures"])
        digest = _digest(file, records.base_facts(document), network.base_state())
        if digest != document["base"]["digest"]:
            raise _damage_error(file.path)
    return network.eval()


def load_structure(network: RepModeUNet, path: Path, entry: Entry, base: str) -> None:
    """Add a stored addition to a network that has all it needs; on an error the network is as before.

    Parameters
    ----------
    network
        A network of `load_base`, with the additions in ``entry.needs``.
    path
        The model directory.
    entry
        Its registry entry.
    base
        Digest of the base.

    Raises
    ------
    ModelError
        If a tensor is not the one that was stored.
    """
    with open_tensors(path / entry.file) as file:
        facts = _facts(file, entry, base)
        try:
            why = find_missing_expert(network, entry.spec or AdditionSpec(), file.header.tensors)
        except ValueError as error:
            raise ModelError(f"{file.path} ({entry.name}): {error}") from error
        if why:
            raise ModelError(f"{file.path} is damaged: {why}; put it back from a copy of the model")
        with uninitialised_weights():
            network.add_structure(entry.name, entry.spec)
        intact = False
        try:
            intact = _digest(file, facts, network.structure_state(entry.name)) == entry.digest
        finally:
            if not intact:
                network.drop_structure(entry.name)
        if not intact:
            raise _damage_error(file.path, entry)


def find_missing_expert(network: RepModeUNet, spec: AdditionSpec, tensors: Mapping[str, Slot]) -> str:
    """Return which expert of an addition its file lacks, of those whose size its specification chooses; or nothing.

    The rank is only a number in the metadata: the file must hold so large an expert before one is made.

    Parameters
    ----------
    network
        The network that the addition is for.
    spec
        How it was added.
    tensors
        Those of its file.

    Raises
    ------
    ValueError
        If it names no expert, or ranks that are not as many as the network has levels.
    """
    for block, mode_block in network.named_mode_blocks():
        expert = spec.expert_in(block, network.depth)
        if expert == "none" or not mode_block.gated:
            continue
        kind, _, rank = expert.partition(":")
        if kind != "lowrank":
            expert_shapes(expert, mode_block.c_in, mode_block.c_out)
            continue
        slot = tensors.get(f"{block}.expert.spatial")
        if slot is None or [str(slot.shape[0]), *slot.shape[1:]] != [rank, mode_block.c_in, 3, 3, 3]:
            return f"it holds no expert of rank {short(rank)} for the block {block}"
    return ""


def check_structure_tensors(path: Path, entry: Entry, base: str) -> None:
    """Check the stored tensors of an addition without a network; errors of `load_structure`."""
    with open_tensors(path / entry.file) as file:
        if _digest(file, _facts(file, entry, base)) != entry.digest:
            raise _damage_error(file.path, entry)


def _check_experts(file: TensorFile, block: str, experts: Sequence[str], c_in: int, c_out: int) -> None:
    """Refuse a file without the weights of a block's shared experts."""
    for label, spec in zip(expert_labels(experts), experts, strict=True):
        for weight, shape in expert_shapes(spec, c_in, c_out).items():
            name = f"{block}.{label}.{weight}"
            slot = file.header.tensors.get(name)
            if slot is None or slot.shape != shape:
                raise _tensor_error(file.path, name, None if slot is None else slot.shape, shape)


def _facts(file: TensorFile, entry: Entry, base: str) -> dict[str, Any]:
    if entry.spec is None:
        raise ModelError(f"{entry.name} is part of the base and has no separate file")
    versions = records.structure_versions(entry.spec, reliability=entry.reliability is not None)
    records.check_version(file.path, file.header.metadata, versions)
    return records.structure_facts(entry.name, entry.spec, base, entry.needs)


def _digest(file: TensorFile, facts: Any, state: Mapping[str, Tensor] | None = None) -> str:
    """Return the digest of a file's tensors without references, and copy them into `state`."""
    described: dict[str, Described] = {
        name: (slot.dtype, slot.shape)
        for name, slot in file.header.tensors.items()
        if not name.startswith(records.PROOF)
    }
    if state is not None:
        _check_shapes(file.path, described, state)

    def value(name: str) -> Tensor:
        tensor = file.read(name)
        if state is not None:
            state[name].copy_(tensor)
        return tensor

    with torch.no_grad():
        return stream_digest(described, value, facts)


def _check_shapes(path: Path, described: Mapping[str, Described], state: Mapping[str, Tensor]) -> None:
    expected = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    if described == expected:
        return
    differing = set(expected) ^ set(described) or {
        name for name in expected if expected[name] != described[name]
    }
    name = min(differing)
    raise _tensor_error(path, name, described.get(name), expected.get(name))


def _tensor_error(path: Path, name: str, found: object, needed: object) -> ModelError:
    return ModelError(
        f"{path} is damaged: its tensor {name!r} is {found or 'missing'}, the network's is {needed or 'none'}; put "
        "the file back from a copy of the model"
    )


def _damage_error(path: Path, entry: Entry | None = None) -> ModelError:
    whose = f" ({entry.name})" if entry is not None else ""
    return ModelError(
        f"{path}{whose} is damaged (its tensors are not those recorded): put it back from a copy of the model"
    )
