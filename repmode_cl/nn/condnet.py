"""CondNet (Dmitriev and Kaufman, CVPR 2019): a constant channel in the decoder tells the network its structure.

The paper's rival on the plain U-Net. Each convolution of the decoder gets one more input channel, of the value

    h_k = -1 + 2 (k + 0.5) / S

in all voxels, for the structure that came as number k = 0, 1, ..., with S the slots of the network. The convolution
pads it with zeros like the others, so that it is a bias: h_k times the sum of the channel's taps, less at the borders.

From the publication: the constant channel, its value from a fixed look-up table that is not learned ("a hash
function", as RepMode has it), and the decoder as the best place for it. Known of RepMode's adaptation: a head for each
structure, where the original has one for all (`last_layer`). Chosen here: the values of the table, with spare slots;
the backbone's layers in place of densely connected blocks; and where a structure is added to the frozen network, its
h_k, which begins at the next slot, is trained (one number for all layers).

Batch norm follows these convolutions, and in training mode it subtracts a constant: in a batch of one structure the
condition vanishes but at the borders, while in evaluation mode it acts. So the base is trained in mixed batches; and
where later structures, of which each comes without the others, train all that is shared, the norms of the decoder's
blocks stay as the base left them, in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from repmode_cl.nn.architecture import Architecture
from repmode_cl.nn.conditioned_unet import (
    SLOTS,
    Arrival,
    ConditionedUNet,
    LastLayers,
    StructurePart,
    expand_rows,
)
from repmode_cl.nn.per_structure_layers import StructureGroups
from repmode_cl.nn.plain_unet import PlainBlock

__all__ = ["CondNet", "ConditionalBlock", "Conditions"]


@dataclass(frozen=True)
class _Conditioned(StructureGroups):
    """The structures of a batch, and the value of each sample, (N, 1)."""

    values: Tensor


class _Condition(nn.Module):
    def __init__(self, value: float, *, trained: bool) -> None:
        super().__init__()
        if trained:
            self.value: Tensor = nn.Parameter(torch.tensor([value]))
        else:
            self.register_buffer("value", torch.tensor([value]))


class Conditions(StructurePart):
    """The value of each structure.

    Parameters
    ----------
    slots
        Entries of the table.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots

    def add(self, arrival: Arrival) -> None:
        """Take the next value of the table, to be trained where all else is frozen."""
        value = -1 + 2 * (arrival.place + 0.5) / self.slots
        self.own[arrival.name] = _Condition(value, trained=arrival.frozen)

    def forward(self, groups: StructureGroups) -> Tensor:
        """Return each sample's value, (N, 1)."""
        return expand_rows([cast(_Condition, self.own[name]).value for name in groups.names], groups)


class ConditionalBlock(PlainBlock):
    """A block of the decoder, whose convolution reads a constant channel too."""

    def __init__(self, c_in: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(c_in + 1, *args, **kwargs)

    def forward(self, x: Tensor, context: _Conditioned | None = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, Z, Y, X)."""
        assert context is not None, "a conditioned block is called with the values of the batch"
        values = context.values.to(x.dtype)[:, :, None, None, None]
        return super().forward(torch.cat([x, values.expand(-1, -1, *x.shape[2:])], dim=1))


class CondNet(ConditionedUNet):
    """The plain U-Net with a constant channel in each convolution of the decoder, and last layers.

    Parameters
    ----------
    architecture, kernel
        As of `ConditionedUNet`.
    structures
        Structures of the base.
    slots
        The most structures that it can have.
    last_layer
        ``"own"``: one for each structure, as RepMode's authors adapted it. ``"shared"``: one for all, as it was
        published; a structure that is added to the frozen network then owns one number, its value.
    seed
        Seed of the initial weights.
    """

    def __init__(
        self,
        architecture: Architecture,
        kernel: int,
        structures: Sequence[str] = (),
        *,
        slots: int = SLOTS,
        last_layer: Literal["own", "shared"] = "own",
        seed: int = 0,
    ) -> None:
        if last_layer not in ("own", "shared"):
            raise ValueError(f"last_layer is own or shared, not {last_layer!r}")
        generator = torch.Generator().manual_seed(seed)
        super().__init__(architecture, kernel, generator)
        self.slots = slots
        for level in range(self.depth):
            channels = self.width << level
            self.decoder[level] = nn.ModuleList(
                ConditionalBlock(c_in, channels, kernel, activation=True, generator=generator)
                for c_in in (2 * channels, channels)
            )
        if last_layer == "own":  # else the backbone's, of all structures
            self.head = LastLayers(self.width, kernel)
        self.conditions = Conditions(slots)
        self.begin(structures, seed)

    def shares_training(self, parameter: str) -> bool:
        """Return False, after the base, for the norms that would subtract the condition of a batch of one structure."""
        later = len(self.structures) > len(self.base_structures)
        return not (later and parameter.startswith("decoder.") and ".norm." in parameter)

    def run(self, x: Tensor, context: StructureGroups) -> Tensor:
        """Compute a batch that is sorted by structure, each sample with its structure's value."""
        return super().run(x, _Conditioned(context.names, context.counts, self.conditions(context)))
