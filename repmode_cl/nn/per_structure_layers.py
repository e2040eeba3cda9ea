"""Layers of which an added structure may have its own copy: batch norm and resampling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.experts import kaiming

__all__ = ["StructureNorm", "StructureResampling", "Resampling", "StructureGroups", "apply_by_structure"]


@dataclass(frozen=True)
class StructureGroups:
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


def apply_by_structure(
    x: Tensor, groups: StructureGroups, compute: Callable[[Tensor, str], Tensor]
) -> Tensor:
    """Apply ``compute(part, structure)`` to each structure's samples of `x` (N, C, Z, Y, X), and join."""
    if len(groups.names) == 1:
        return compute(x, groups.names[0])
    parts = torch.split(x, list(groups.counts))
    return torch.cat([compute(part, name) for part, name in zip(parts, groups.names, strict=True)])


class StructureNorm(nn.Module):
    """Batch norm: the base's, and a copy for each added structure.

    A shared norm would not do: even with frozen weights, its running statistics would drift while a new structure
    trains, and the predictions of all others with them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.base = nn.BatchNorm3d(channels)
        self.own = nn.ModuleDict()

    def add(self, name: str) -> None:
        """Add a copy of the base's norm for `name`."""
        self.own[name] = copy.deepcopy(self.base)

    def of(self, name: str) -> nn.Module:
        """Return the norm that `name` uses."""
        return self.own[name] if name in self.own else self.base

    def forward(self, x: Tensor, groups: StructureGroups) -> Tensor:
        """Normalise `x`; structures that share a norm are normalised as one batch."""
        norms = {id(self.of(name)): self.of(name) for name in groups.names}
        if len(norms) == 1:
            result: Tensor = next(iter(norms.values()))(x)
            return result
        return apply_by_structure(x, groups, lambda part, name: self.of(name)(part))


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


class StructureResampling(nn.Module):
    """A resampling layer, batch norm and ReLU: the base's, and a copy for each added structure that has one."""

    def __init__(self, c_in: int, c_out: int, *, up: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.base = Resampling(c_in, c_out, up=up, generator=generator)
        self.own = nn.ModuleDict()
        self.norm = StructureNorm(c_out)

    def add(self, name: str) -> None:
        """Add a copy of the base's layer for `name`."""
        self.own[name] = copy.deepcopy(self.base)

    def of(self, name: str) -> nn.Module:
        """Return the layer that `name` uses."""
        return self.own[name] if name in self.own else self.base

    def forward(self, x: Tensor, groups: StructureGroups) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, ...) with half or twice the size."""
        if any(name in self.own for name in groups.names):
            x = apply_by_structure(x, groups, lambda part, name: self.of(name)(part))
        else:
            x = self.base(x)
        return torch.relu(self.norm(x, groups))
