"""Predict a structure layer by layer: each fused layer is made when it is needed, and freed afterwards.

This lets a stored model be verified on the machine that predicts with it, even if it fills half the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.convolution import convolve
from repmode_cl.nn.experts import Expert
from repmode_cl.nn.gatrep import fuse_channels
from repmode_cl.nn.mode_block import ModeBlock
from repmode_cl.nn.norm_folding import folded_layer_factories, in_plain_layout
from repmode_cl.nn.per_structure_layers import Resampling, StructureResampling
from repmode_cl.nn.repmode_unet import RepModeUNet
from repmode_cl.nn.unet import UNet

__all__ = ["predict_layerwise", "predict_float64", "kernel_slices"]

#: Most numbers of a float64 kernel that are in memory at once.
_SCRATCH = 1 << 18

Layer = Callable[[Tensor], Tensor]


def predict_layerwise(network: RepModeUNet, structure: str, x: Tensor, *, folded: bool) -> Tensor:
    """Predict in the precision of the network's parameters.

    Parameters
    ----------
    network
        A network in any mode: its running statistics are used.
    structure
        One of its structures.
    x
        (N, 1, Z, Y, X), each size a multiple of 2^depth.
    folded
        Fold batch norms into kernels.

    Returns
    -------
    Tensor
        (N, 1, Z, Y, X), bit for bit what `fold_structure` (`folded`) or ``network.fuse`` predicts.
    """
    if folded:
        factories = folded_layer_factories(network, structure)
        layers = {name: partial(_build_and_apply, make) for name, make in factories.items()}
    else:
        layers = {
            name: partial(_unfolded_block, block, structure) for name, block in network.named_mode_blocks()
        }
        layers |= {name: partial(_resample, layer, structure) for name, layer in network.named_resampling()}
    with torch.inference_mode():
        return cast(Tensor, _LayerwiseUNet(network.width, network.depth, layers)(x))


def predict_float64(
    network: RepModeUNet,
    structure: str,
    x: Tensor,
    *,
    on_kernel: Callable[[str, slice, Tensor], None] = lambda name, channels, kernel: None,
) -> Tensor:
    """Predict in float64 with unfolded norms, from kernels that are fused in float64 a few channels at a time.

    Parameters
    ----------
    network, structure
        As for `predict_layerwise`.
    x
        float64 (1, 1, Z, Y, X), each size a multiple of 2^depth.
    on_kernel
        Called with the name of a block, output channels and their kernels, as these are computed.

    Returns
    -------
    Tensor
        float64 (1, 1, Z, Y, X).
    """
    layers: dict[str, Layer] = {
        name: partial(_float64_block, block, structure, partial(on_kernel, name))
        for name, block in network.named_mode_blocks()
    }
    layers |= {name: partial(_resample, layer, structure) for name, layer in network.named_resampling()}
    with torch.inference_mode():
        return cast(Tensor, _LayerwiseUNet(network.width, network.depth, layers)(x))


def kernel_slices(block: ModeBlock, structure: str) -> Iterator[tuple[slice, Tensor]]:
    """Yield the float64 kernel of a block, a few output channels at a time: (channels, C_in, K, K, K)."""
    labelled, gate = block.visible(structure)
    outside = block.outside_weight(structure)
    experts: list[Expert] = [expert for _, expert in labelled]
    c_out, *rest = block.kernel_shape(structure)
    rows = max(1, _SCRATCH // torch.Size(rest).numel())
    for first in range(0, c_out, rows):
        channels = slice(first, min(first + rows, c_out))
        yield channels, fuse_channels(experts, gate.detach(), channels, torch.float64, outside, block.gating)


class _LayerwiseUNet(UNet):
    """A U-Net without parameters: every layer is a function."""

    def __init__(self, width: int, depth: int, layers: Mapping[str, Layer]) -> None:
        super().__init__(width, depth, lambda *_: nn.Identity(), lambda *_: nn.Identity())
        for name, layer in layers.items():
            parent, _, last = name.rpartition(".")
            setattr(self.get_submodule(parent), last, _FunctionLayer(layer))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X)."""
        return self.run(x, None)


class _FunctionLayer(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, ...)."""
        return self._layer(x)


def _build_and_apply(make: Callable[[], nn.Module], x: Tensor) -> Tensor:
    return cast(Tensor, make()(x))


def _unfolded_block(block: ModeBlock, structure: str, x: Tensor) -> Tensor:
    x = convolve(x, in_plain_layout(block.kernel(structure)))
    return x if block.norm is None else torch.relu(_normalise(x, block.norm.of(structure)))


def _float64_block(
    block: ModeBlock, structure: str, on_kernel: Callable[[slice, Tensor], None], x: Tensor
) -> Tensor:
    out = x.new_empty((1, block.c_out, *x.shape[2:]))
    size = block.kernel_shape(structure)[-1]
    padded = F.pad(x, [size // 2] * 6)
    for channels, kernel in kernel_slices(block, structure):
        on_kernel(channels, kernel)
        out[0, channels] = _convolve_float64(padded[0], kernel, (x.shape[2], x.shape[3], x.shape[4]))
    return out if block.norm is None else torch.relu(_normalise(out, block.norm.of(structure)))


def _convolve_float64(padded: Tensor, kernel: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Convolve (C_in, Z + K - 1, ...) -> (C_out, Z, Y, X) by a matrix product for each tap.

    torch convolves in float64 by writing out all taps of all voxels, which takes a gigabyte for the first levels
    of the paper's network.
    """
    out = padded.new_zeros((len(kernel), size[0] * size[1] * size[2]))
    half = kernel.shape[-1] // 2
    taps = [range(max(0, half - (n - 1)), min(kernel.shape[-1], half + n)) for n in size]
    for z in taps[0]:
        for y in taps[1]:
            for x in taps[2]:
                shifted = padded[:, z : z + size[0], y : y + size[1], x : x + size[2]]
                out.addmm_(kernel[:, :, z, y, x], shifted.reshape(len(padded), -1))
    return out.reshape(len(kernel), *size)


def _resample(module: StructureResampling, structure: str, x: Tensor) -> Tensor:
    layer = cast(Resampling, module.of(structure))
    convolution = F.conv_transpose3d if layer.up else F.conv3d
    x = convolution(x, layer.weight.to(x.dtype), stride=2)
    return torch.relu(_normalise(x, module.norm.of(structure)))


def _normalise(x: Tensor, norm: nn.Module) -> Tensor:
    """Apply a batch norm with its running statistics, in the precision of `x`, whatever its mode."""
    norm = cast(nn.BatchNorm3d, norm)
    parts = (cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var), norm.weight, norm.bias)
    mean, variance, weight, bias = (part.to(x.dtype) for part in parts)
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=norm.eps)
