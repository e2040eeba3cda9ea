"""Fold batch norms into the convolutions before them: what a fused network still spends beside convolving."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.plain import PlainBlock, PlainResampling, PlainUNet
from repmode_cl.nn.sites import convolve
from repmode_cl.nn.unet import UNet

__all__ = ["FoldedUNet", "fold_norms"]


class _FoldedBlock(nn.Module):
    """A K x K x K convolution with a bias, and ReLU unless it is the last."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, block: PlainBlock) -> None:
        super().__init__()
        weight, bias = block.weight.detach().clone(), None
        if block.norm is not None:
            scale, bias = _scale_and_bias(block.norm)
            weight = _scaled(weight, scale, axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, Z, Y, X)."""
        x = convolve(x, self.weight, self.bias)
        return x if self.bias is None else x.relu_()


class _FoldedResampling(nn.Module):
    """A down or up layer with a bias, and ReLU."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: PlainResampling) -> None:
        super().__init__()
        self.up = layer.layer.up
        scale, bias = _scale_and_bias(layer.norm)
        # A transposed convolution's weight has its output channels second.
        self.register_buffer("weight", _scaled(layer.layer.weight.detach(), scale, axis=1 if self.up else 0))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, ...) with half or twice the size."""
        return (F.conv_transpose3d if self.up else F.conv3d)(x, self.weight, self.bias, stride=2).relu_()


class FoldedUNet(UNet):
    """A plain U-Net for prediction alone, whose convolutions carry their batch norms; made by `fold_norms`.

    Parameters
    ----------
    network
        In evaluation mode; not changed.
    """

    def __init__(self, network: PlainUNet) -> None:
        super().__init__(network.width, network.depth, lambda *_: nn.Identity(), lambda *_: nn.Identity())
        for name, block in network.named_blocks():
            self._place(name, _FoldedBlock(cast(PlainBlock, block)))
        for name, layer in network.named_resampling():
            self._place(name, _FoldedResampling(cast(PlainResampling, layer)))
        self.kernel = network.kernel

    def _place(self, name: str, module: nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        setattr(self.get_submodule(parent), last, module)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X)."""
        return self.run(x, None)


def fold_norms(network: PlainUNet) -> FoldedUNet:
    """Return a copy of `network` with every batch norm folded into the convolution before it.

    The same function but for rounding: scales are computed and multiplied in float64 and rounded once. The copy
    takes no gradients, and nothing is ever taken apart again: the unmerged experts stay the truth.

    Parameters
    ----------
    network
        In evaluation mode: running statistics are what is folded.

    Raises
    ------
    ValueError
        If the network is in training mode.
    """
    if network.training:
        raise ValueError("only running statistics can be folded: put the network in evaluation mode first")
    with torch.no_grad():
        return FoldedUNet(network).eval()


def _scale_and_bias(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Return a norm in evaluation mode as a factor (float64) and a bias for each channel."""
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = norm.weight.detach().double() / torch.sqrt(variance + norm.eps)
    bias = norm.bias.detach().double() - mean * scale
    return scale, bias.to(norm.bias.dtype)


def _scaled(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return (weight.double() * scale.reshape(shape)).to(weight.dtype)
