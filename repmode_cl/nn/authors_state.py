"""State of the network of the paper's authors, as a base of ours: names, shapes, and gate rows of weight and bias.

Their network is ours with the paper's experts: five levels of two MoDE blocks, down and up layers, and a last block.
Its gates are a linear layer of a one-hot, so that the row of task s is column s of the weight, plus the bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from repmode_cl.errors import ModelError, counted
from repmode_cl.nn.architecture import Architecture
from repmode_cl.nn.experts import uninitialised_weights
from repmode_cl.nn.repmode_unet import RepModeUNet

__all__ = ["network_of_authors_state"]

_EXPERTS = {
    "conv5": "expert_conv5x5_conv",
    "conv3": "expert_conv3x3_conv",
    "conv1": "expert_conv1x1_conv",
    "avg3": "expert_avg3x3_conv",
    "avg5": "expert_avg5x5_conv",
}
_POOLS = {"expert_avg3x3_pool": 3, "expert_avg5x5_pool": 5}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def network_of_authors_state(
    state: Mapping[str, Any], structures: Sequence[str], most_bytes: int
) -> RepModeUNet:
    """Return the network of a state of the authors' network, in evaluation mode.

    Parameters
    ----------
    state
        Tensors by their names; those of ``DataParallel`` start with ``module.``. Copied, not kept.
    structures
        Names of their tasks, in their order.
    most_bytes
        Bytes that the tensors can have together, those of the file: more is a forgery.

    Raises
    ------
    ModelError
        If it is no such state, a tensor is missing, unexpected, not finite, or of another shape or type, or
        `structures` are not as many as its tasks.
    """
    state = _without_prefix(state)
    architecture, tasks = _read_sizes(state)
    shapes = dict(_expected_shapes(architecture, tasks))
    _check_tensors(state, shapes, most_bytes)
    if len(structures) != tasks:
        raise ModelError(
            f"the checkpoint has {counted(tasks, 'task')}, and {counted(len(structures), 'structure')} "
            f"{'is' if len(structures) == 1 else 'are'} named ({', '.join(structures)}): name one for each task, in "
            "the alphabetical order of their data sets' names (adopted_datasets in its options, sorted)"
        )
    _check_pools(state)
    with uninitialised_weights():
        network = RepModeUNet(architecture, structures)
    network.load_base_state(_base_state(state, network, structures))
    return network.eval()


def _without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    parallel = bool(state) and all(str(name).startswith("module.") for name in state)
    return {str(name).removeprefix("module.") if parallel else str(name): t for name, t in state.items()}


def _read_sizes(state: Mapping[str, Any]) -> tuple[Architecture, int]:
    """Return width and depth, and the number of tasks, read off two tensors and the names of levels."""
    first, gate = "encoder_block1.conv_more.conv1.expert_conv5x5_conv", "conv_out.gate.weight"
    for name in (first, gate):
        if not isinstance(state.get(name), Tensor):
            raise ModelError(
                f"this is no state of the network of RepMode's authors: it has no tensor {name!r} (found "
                f"{', '.join(sorted(state)[:3]) or 'nothing'} ...)"
            )
    levels = {int(match[1]) for name in state if (match := re.match(r"encoder_block([0-9]{1,2})\.", name))}
    if state[first].ndim != 5 or state[gate].ndim != 2 or not levels <= set(range(1, 9)):
        raise ModelError("the shapes of its first and last block are not those of the authors' network")
    width, tasks = int(state[first].shape[0]), int(state[gate].shape[1])
    if width < 1 or tasks < 1:
        raise ModelError("a tensor of its first or last block is empty")
    return Architecture(width, max(levels)), tasks


def _places(depth: int) -> Iterator[tuple[str, str]]:
    """Yield our name and theirs of each MoDE block."""
    for level in range(depth):
        for i in (0, 1):
            yield f"encoder.{level}.{i}", f"encoder_block{level + 1}.conv_more.conv{i + 1}"
            yield f"decoder.{level}.{i}", f"decoder_block{level + 1}.conv_less.conv{i + 1}"
    for i in (0, 1):
        yield f"bottleneck.{i}", f"bottle_block.conv{i + 1}"
    yield "head", "conv_out"


def _resampling(depth: int) -> Iterator[tuple[str, str]]:
    """Yield our name and theirs of each down and up layer."""
    for level in range(depth):
        yield f"down.{level}", f"encoder_block{level + 1}.conv_down"
        yield f"up.{level}", f"decoder_block{level + 1}.convt"


def _block_channels(block: str, architecture: Architecture) -> tuple[int, int]:
    """Return the channels that a MoDE block reads and computes."""
    part, *place = block.split(".")
    if part == "head":
        return architecture.width, 1
    level = architecture.depth if part == "bottleneck" else int(place[0])
    c_out = architecture.channels(level)
    if place[-1] == "1":
        return c_out, c_out
    if part == "decoder":
        return 2 * c_out, c_out
    return (architecture.channels(level - 1) if level else 1), c_out


def _expected_shapes(architecture: Architecture, tasks: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor of their network, without building one."""
    for ours, theirs in _places(architecture.depth):
        c_in, c_out = _block_channels(ours, architecture)
        for spec, name in _EXPERTS.items():
            size = int(spec[-1]) if spec.startswith("conv") else 1
            yield f"{theirs}.{name}", (c_out, c_in, size, size, size)
        for name, size in _POOLS.items():
            yield f"{theirs}.{name}", (size, size, size)
        yield f"{theirs}.gate.weight", (len(_EXPERTS) * c_out, tasks)
        yield f"{theirs}.gate.bias", (len(_EXPERTS) * c_out,)
        if ours != "head":
            yield from _norm_shapes(f"{theirs}.subsequent_layer.0", c_out)
    for ours, theirs in _resampling(architecture.depth):
        channels = architecture.channels(int(ours.split(".")[1]))
        c_in = 2 * channels if ours.startswith("up") else channels
        # Of a transposed convolution the channels that it reads come first.
        yield f"{theirs}.0.weight", (c_in, channels, 2, 2, 2)
        yield from _norm_shapes(f"{theirs}.1", channels)


def _norm_shapes(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for key in _NORM:
        yield f"{name}.{key}", () if key == "num_batches_tracked" else (channels,)


def _check_tensors(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], most_bytes: int) -> None:
    """Refuse a state of other tensors, before one of them is copied."""
    if missing := sorted(set(shapes) - set(state)):
        raise ModelError(f"the checkpoint lacks the tensor {missing[0]!r} ({len(missing)} in all)")
    if extra := sorted(set(state) - set(shapes)):
        raise ModelError(
            f"the checkpoint has a tensor {extra[0]!r} ({len(extra)} in all) that the authors' network has not: only "
            "their RepMode network can be imported"
        )
    total = 0
    for name, shape in shapes.items():
        tensor = state[name]
        integer = name.endswith("num_batches_tracked")
        dtype = torch.int64 if integer else torch.float32
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tuple(tensor.shape) != shape:
            found = (
                f"{tensor.dtype} {tuple(tensor.shape)}"
                if isinstance(tensor, Tensor)
                else type(tensor).__name__
            )
            raise ModelError(f"the checkpoint's {name!r} is {found}, not {dtype} {shape}")
        total += tensor.numel() * tensor.element_size()
    if total > most_bytes:
        raise ModelError(
            f"the checkpoint's tensors have {total:,} bytes together, more than its file ({most_bytes:,}): "
            "it is damaged or forged"
        )
    for name in shapes:
        if not bool(torch.isfinite(state[name]).all()):
            raise ModelError(
                f"the checkpoint's {name!r} holds numbers that are not finite: it is damaged, or its training "
                "diverged; import another one"
            )


def _check_pools(state: Mapping[str, Tensor]) -> None:
    """Refuse averages that are none: they are part of our experts, and no tensors."""
    for name, tensor in state.items():
        size = _POOLS.get(name.rpartition(".")[2])
        if size is not None and not torch.allclose(tensor, torch.full_like(tensor, 1 / size**3), rtol=1e-5):
            raise ModelError(
                f"the checkpoint's {name!r} is not the average over {size} x {size} x {size} voxels"
            )


def _base_state(
    state: Mapping[str, Tensor], network: RepModeUNet, structures: Sequence[str]
) -> dict[str, Tensor]:
    """Return the tensors by our names."""
    depth, result = network.depth, {}

    def take_norm(ours: str, theirs: str) -> None:
        result.update({f"{ours}.{key}": state[f"{theirs}.{key}"] for key in _NORM})

    for ours, theirs in _places(depth):
        for spec, name in _EXPERTS.items():
            result[f"{ours}.experts.{spec}.weight"] = state[f"{theirs}.{name}"]
        weight, bias = state[f"{theirs}.gate.weight"], state[f"{theirs}.gate.bias"]
        for task, structure in enumerate(structures):
            result[f"{ours}.gates.{structure}"] = (weight[:, task] + bias).reshape(len(_EXPERTS), -1)
        if ours != "head":
            take_norm(f"{ours}.norm.base", f"{theirs}.subsequent_layer.0")
    for ours, theirs in _resampling(depth):
        result[f"{ours}.base.weight"] = state[f"{theirs}.0.weight"]
        take_norm(f"{ours}.norm.base", f"{theirs}.1")
    return result
