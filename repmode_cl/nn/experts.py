"""The experts of a MoDE block (paper, section 3.3): each can tell its kernel, which is all that GatRep needs."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

__all__ = ["AvgExpert", "ConvExpert", "Expert", "LowRankExpert", "kaiming", "make_expert"]


def kaiming(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> nn.Parameter:
    """Return a parameter drawn Kaiming-uniform with a = sqrt(5), torch's default for convolutions.

    The generator is explicit, so that building a network leaves torch's global generator alone.
    """
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * bound)


class Expert(nn.Module):
    """One branch of a MoDE block, without bias and with zero "same" padding.

    Attributes
    ----------
    kernel_size
        Edge K of the branch's receptive field, in voxels.
    """

    kernel_size: int

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the branch as one kernel, (C_out, C_in, K, K, K), or a shape that broadcasts to it.

        With `dtype` the parameters are converted before anything is computed.
        """
        raise TypeError(f"{type(self).__name__} defines no kernel")


class ConvExpert(Expert):
    """A K x K x K convolution."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = kaiming((c_out, c_in, *[kernel_size] * 3), c_in * kernel_size**3, generator)

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight itself, (C_out, C_in, K, K, K)."""
        return self.weight.to(dtype)


class AvgExpert(Expert):
    """The mean over K x K x K voxels, zero padding counted, then a 1 x 1 x 1 convolution (paper, eq. 3 to 5)."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = kaiming((c_out, c_in, 1, 1, 1), c_in, generator)

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the serially merged kernel: the weight spread over K^3 taps, (C_out, C_in, 1, 1, 1) to broadcast."""
        return self.weight.to(dtype) / self.kernel_size**3


class LowRankExpert(Expert):
    """A 3 x 3 x 3 convolution to `rank` channels, then a 1 x 1 x 1 convolution, serially merged (paper, eq. 5)."""

    def __init__(self, c_in: int, c_out: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kernel_size = 3
        self.spatial = kaiming((rank, c_in, 3, 3, 3), c_in * 27, generator)
        self.mix = kaiming((c_out, rank), rank, generator)

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the merged kernel, (C_out, C_in, 3, 3, 3)."""
        return torch.einsum("or,rizyx->oizyx", self.mix.to(dtype), self.spatial.to(dtype))


def make_expert(spec: str, c_in: int, c_out: int, generator: torch.Generator) -> Expert:
    """Build the expert that `spec` names.

    Parameters
    ----------
    spec
        ``conv1``, ``conv3``, ``conv5``, ``avg3``, ``avg5``, or ``lowrank:R`` with a rank R.
    c_in, c_out
        Channels in and out.
    generator
        Source of the initial weights.

    Raises
    ------
    ValueError
        If `spec` names no expert.
    """
    if found := re.fullmatch(r"conv([135])", spec):
        return ConvExpert(c_in, c_out, int(found[1]), generator)
    if found := re.fullmatch(r"avg([35])", spec):
        return AvgExpert(c_in, c_out, int(found[1]), generator)
    if found := re.fullmatch(r"lowrank:([1-9][0-9]*)", spec):
        return LowRankExpert(c_in, c_out, int(found[1]), generator)
    raise ValueError(
        f"{spec!r} is no expert: choose conv1, conv3, conv5, avg3, avg5 or lowrank:R with a rank R"
    )
