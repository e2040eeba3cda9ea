"""Fold batch norms into the convolutions before them, the last cost of a fused network besides convolving."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.convolution import convolve
from repmode_cl.nn.per_structure_layers import Resampling, StructureResampling
from repmode_cl.nn.plain_unet import PlainBlock, PlainResampling, PlainUNet
from repmode_cl.nn.repmode_unet import RepModeUNet
from repmode_cl.nn.unet import UNet

__all__ = [
    "FoldedUNet",
    "fold_norms",
    "fold_structure",
    "FoldedBlock",
    "FoldedResampling",
    "folded_layer_factories",
    "in_plain_layout",
]

#: Most numbers that are scaled at once: the scratch memory of folding, in float64.
_SCRATCH = 1 << 17


class FoldedBlock(nn.Module):
    """A K x K x K convolution with a bias; ReLU follows, except in the last block.

    Parameters
    ----------
    weight
        (C_out, C_in, K, K, K); it belongs to this block from now on, which scales it in place.
    norm
        The norm to fold into it; None for the last block.
    after
        A layer that the output passes (`PlainBlock.after`), which belongs to this block from now on.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, norm: nn.BatchNorm3d | None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.after = after
        bias = None
        if norm is not None:
            scale, bias = _scale_and_bias(norm)
            _scale_channels(weight, scale, axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, Z, Y, X)."""
        x = convolve(x, self.weight, self.bias)
        if self.bias is None:
            return x
        x = x.relu_()
        return x if self.after is None else cast(Tensor, self.after(x))


class FoldedResampling(nn.Module):
    """A down or up layer with a bias, and ReLU.

    Parameters
    ----------
    layer
        The layer, whose weight is copied.
    norm
        The norm to fold into it.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Resampling, norm: nn.BatchNorm3d) -> None:
        super().__init__()
        self.up = layer.up
        scale, bias = _scale_and_bias(norm)
        # A transposed convolution's weight has its output channels second.
        weight = layer.weight.detach().clone()
        _scale_channels(weight, scale, axis=1 if self.up else 0)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, ...) with half or twice the size."""
        return (F.conv_transpose3d if self.up else F.conv3d)(x, self.weight, self.bias, stride=2).relu_()


class FoldedUNet(UNet):
    """A plain U-Net that only predicts: its convolutions carry their batch norms.

    Made by `fold_norms` and `fold_structure`.

    Parameters
    ----------
    width, depth, kernel
        As of `PlainUNet`.
    layers
        Functions that make the layers, by layer name.
    """

    def __init__(
        self, width: int, depth: int, kernel: int, layers: Mapping[str, Callable[[], nn.Module]]
    ) -> None:
        super().__init__(width, depth, lambda *_: nn.Identity(), lambda *_: nn.Identity())
        for name, make in layers.items():
            parent, _, last = name.rpartition(".")
            setattr(self.get_submodule(parent), last, make())
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X)."""
        return self.run(x, None)


def fold_norms(network: PlainUNet) -> FoldedUNet | PlainUNet:
    """Return a copy of `network` with every batch norm folded into the convolution before it.

    It computes the same but for rounding: scales are computed and multiplied in float64 and rounded once. The copy
    takes no gradients, and is never unfolded again: the unmerged experts stay the truth.

    Parameters
    ----------
    network
        A network in evaluation mode: its running statistics are folded. One that cannot be folded
        (`PlainUNet.foldable`) is copied as it is.

    Raises
    ------
    ValueError
        If the network is in training mode.
    """
    if network.training:
        raise ValueError("only running statistics can be folded: put the network in evaluation mode first")
    if not network.foldable:
        return copy.deepcopy(network).requires_grad_(False)

    def block(module: PlainBlock) -> nn.Module:
        return FoldedBlock(module.weight.detach().clone(), module.norm, copy.deepcopy(module.after))

    def resampling(module: PlainResampling) -> nn.Module:
        return FoldedResampling(module.layer, module.norm)

    layers: dict[str, Callable[[], nn.Module]] = {
        name: partial(block, cast(PlainBlock, module)) for name, module in network.named_blocks()
    }
    for name, module in network.named_resampling():
        layers[name] = partial(resampling, cast(PlainResampling, module))
    with torch.no_grad():
        return FoldedUNet(network.width, network.depth, network.kernel, layers).eval()


def fold_structure(network: RepModeUNet, structure: str) -> FoldedUNet:
    """Return the folded network of `structure`: ``fold_norms(network.fuse(structure))``, bit for bit.

    One layer is fused at a time, so that besides `network` only the result is ever in memory. The mode of `network`
    does not matter: its running statistics are folded.

    Raises
    ------
    UnknownStructureError
        If the network does not know it.
    """
    blocks = dict(network.named_mode_blocks())
    kernel = blocks["head"].kernel_shape(structure)[-1]
    with torch.no_grad():
        return FoldedUNet(
            network.width, network.depth, kernel, folded_layer_factories(network, structure)
        ).eval()


def folded_layer_factories(network: RepModeUNet, structure: str) -> dict[str, Callable[[], nn.Module]]:
    """Return a function for each folded layer of `structure` that makes it, by layer name; nothing is made yet."""

    def block(name: str) -> nn.Module:
        module = blocks[name]
        norm = None if module.norm is None else cast(nn.BatchNorm3d, module.norm.of(structure))
        return FoldedBlock(in_plain_layout(module.kernel(structure).detach()), norm)

    def resampling(module: StructureResampling) -> nn.Module:
        layer, norm = module.of(structure), module.norm.of(structure)
        return FoldedResampling(cast(Resampling, layer), cast(nn.BatchNorm3d, norm))

    blocks = dict(network.named_mode_blocks())
    layers: dict[str, Callable[[], nn.Module]] = {name: partial(block, name) for name in blocks}
    for name, module in network.named_resampling():
        layers[name] = partial(resampling, module)
    return layers


def in_plain_layout(kernel: Tensor) -> Tensor:
    """Return a fused kernel in the memory layout of a plain network's weight, which decides how it is convolved.

    The layouts differ where there is only one input channel: such a kernel is both channels-last and contiguous, and
    only its strides tell torch which of the two to use.
    """
    return kernel if kernel.shape[1] > 1 else kernel.clone(memory_format=torch.contiguous_format)


def _scale_and_bias(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Return a norm in evaluation mode as a factor (float64) and a bias for each channel."""
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = norm.weight.detach().double() / torch.sqrt(variance + norm.eps)
    bias = norm.bias.detach().double() - mean * scale
    return scale, bias.to(norm.bias.dtype)


def _scale_channels(weight: Tensor, scale: Tensor, axis: int) -> None:
    """Multiply `weight` in place by a factor for each channel of an axis: in float64, rounded once."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    factor = scale.reshape(shape)
    rows = max(1, _SCRATCH * len(weight) // weight.numel())
    for first in range(0, len(weight), rows):
        part = slice(first, first + rows)
        weight[part] = weight[part].double() * (factor[part] if axis == 0 else factor)
