"""Places of the network where an added structure may have its own copy of what the base has: norms and resampling."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.experts import kaiming

__all__ = ["Groups", "NormSite", "Resampling", "ResamplingSite", "by_group", "convolve", "taps_within"]


@dataclass(frozen=True)
class Groups:
    """The distinct structures of a batch whose samples are sorted by structure.

    Attributes
    ----------
    names
        The structures, each once.
    counts
        Samples of each, in the batch's order.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve `x` (N, C_in, Z, Y, X) with `kernel` (C_out, C_in, K, K, K), stride 1, zero "same" padding.

    Activations are kept channels-last: with the few channels of a U-Net's first levels, where nearly all time
    goes, that halves the time of a training step on CPUs.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    kernel = _within_reach(kernel, x.shape[2:])
    padding = [size // 2 for size in kernel.shape[2:]]
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and _shallow(x, kernel):
        # oneDNN reads uninitialised memory for the weight gradient of a half-precision convolution over a volume
        # that is shallower than the kernel, as in the bottleneck; so small a layer costs nothing in float32.
        with torch.autocast("cpu", enabled=False):
            x = F.conv3d(x.float(), kernel.float(), bias, padding=padding)
    else:
        x = F.conv3d(x, kernel, bias, padding=padding)
    return x.contiguous(memory_format=torch.channels_last_3d)


def taps_within(size: Sequence[int]) -> tuple[int, int, int]:
    """Return the most taps (z, y, x) of a kernel that can meet a voxel of a volume of `size`: 2 n - 1 on each axis."""
    z, y, x = (2 * n - 1 for n in size)
    return z, y, x


def _within_reach(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """Cut off the taps that only ever meet the zero padding: in a volume of n voxels, those n or more from the centre.

    The result is the same. At the bottleneck, with one or two planes left, it is most of the work (the weight
    gradient of a kernel far larger than its volume is also where oneDNN is slowest).
    """
    wanted = [min(k, most) for k, most in zip(kernel.shape[2:], taps_within(size), strict=True)]
    cuts = [(k - taps) // 2 for k, taps in zip(kernel.shape[2:], wanted, strict=True)]
    if not any(cuts):
        return kernel
    z, y, x = (slice(cut, k - cut) for cut, k in zip(cuts, kernel.shape[2:], strict=True))
    return kernel[:, :, z, y, x]


def _shallow(x: Tensor, kernel: Tensor) -> bool:
    return any(n < k for n, k in zip(x.shape[2:], kernel.shape[2:], strict=True))


def by_group(x: Tensor, groups: Groups, compute: Callable[[Tensor, str], Tensor]) -> Tensor:
    """Apply ``compute(part, structure)`` to each structure's samples of `x` (N, C, Z, Y, X), and join."""
    if len(groups.names) == 1:
        return compute(x, groups.names[0])
    parts = torch.split(x, list(groups.counts))
    return torch.cat([compute(part, name) for part, name in zip(parts, groups.names, strict=True)])


class NormSite(nn.Module):
    """Batch norm: the base's, and the own copies of added structures (why: running statistics drift, DESIGN 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.base = nn.BatchNorm3d(channels)
        self.own = nn.ModuleDict()

    def add(self, name: str) -> None:
        """Give `name` its own copy, started from the base's."""
        self.own[name] = copy.deepcopy(self.base)

    def of(self, name: str) -> nn.Module:
        """Return the norm that `name` uses."""
        return self.own[name] if name in self.own else self.base

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """Normalise `x`; structures that share a norm are one batch to it."""
        norms = {id(self.of(name)): self.of(name) for name in groups.names}
        if len(norms) == 1:
            result: Tensor = next(iter(norms.values()))(x)
            return result
        return by_group(x, groups, lambda part, name: self.of(name)(part))


class Resampling(nn.Module):
    """A 2 x 2 x 2 convolution with stride 2, down or (transposed) up, without bias: batch norm follows."""

    def __init__(self, c_in: int, c_out: int, *, up: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.up = up
        # torch counts the fan of a transposed weight over its second axis; kept, to start as torch's layer does.
        shape = (c_in, c_out, 2, 2, 2) if up else (c_out, c_in, 2, 2, 2)
        self.weight = kaiming(shape, shape[1] * 8, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, ...) with half or twice the size."""
        return (F.conv_transpose3d if self.up else F.conv3d)(x, self.weight, stride=2)


class ResamplingSite(nn.Module):
    """A resampling layer, batch norm and ReLU: the base's, and own copies of added structures."""

    def __init__(self, c_in: int, c_out: int, *, up: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.base = Resampling(c_in, c_out, up=up, generator=generator)
        self.own = nn.ModuleDict()
        self.norm = NormSite(c_out)

    def add(self, name: str) -> None:
        """Give `name` its own copy of the layer, started from the base's."""
        self.own[name] = copy.deepcopy(self.base)

    def of(self, name: str) -> nn.Module:
        """Return the layer that `name` uses."""
        return self.own[name] if name in self.own else self.base

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, ...) with half or twice the size."""
        if any(name in self.own for name in groups.names):
            x = by_group(x, groups, lambda part, name: self.of(name)(part))
        else:
            x = self.base(x)
        return torch.relu(self.norm(x, groups))
