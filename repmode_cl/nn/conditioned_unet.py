"""Task-conditioned U-Nets: one network for all structures, told which by a code, a vector or a last layer.

The base of the paper's rivals CondNet, TSNs, PIPO-FAN, DoDNet and TGNet.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from repmode_cl.errors import StructureError
from repmode_cl.nn.architecture import Architecture
from repmode_cl.nn.experts import uniform
from repmode_cl.nn.per_structure_layers import StructureGroups, apply_by_structure
from repmode_cl.nn.plain_unet import PlainBlock, PlainResampling
from repmode_cl.nn.structure_unet import StructureUNet, structure_seed
from repmode_cl.structures import check_structure_name

__all__ = [
    "SLOTS",
    "Arrival",
    "ConditionedUNet",
    "LastLayers",
    "OneStructure",
    "StructurePart",
    "StructureVectors",
    "expand_rows",
]

#: Slots of a network where nothing else is said: the paper's twelve structures.
SLOTS = 12


@dataclass(frozen=True)
class Arrival:
    """A structure that a network gets.

    Attributes
    ----------
    name
        The structure.
    place
        How many structures the network has before it.
    generator
        Draws the weights that are its own.
    base
        Structures of the base; none while the base itself is made.
    frozen
        Whether everything else is frozen, so that only what it owns is trained.
    """

    name: str
    place: int
    generator: torch.Generator
    base: tuple[str, ...]
    frozen: bool


class StructurePart(nn.Module):
    """A part of a network of which each structure has its own, in the module dictionary `own`."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ModuleDict()

    def add(self, arrival: Arrival) -> None:
        """Make what the structure has to itself."""
        raise TypeError(f"{type(self).__name__} does not say what {arrival.name} gets")


class _Vector(nn.Module):
    def __init__(self, values: nn.Parameter) -> None:
        super().__init__()
        self.values = values


class StructureVectors(StructurePart):
    """A vector for each structure: the column that a linear layer has for one entry of a one-hot task code.

    The columns of the base's structures are drawn as torch draws a linear layer; one that comes later begins as the
    mean of theirs.

    Parameters
    ----------
    length
        Numbers of a vector.
    inputs
        Inputs of the linear layer, the one-hot's entries included.
    """

    def __init__(self, length: int, inputs: int) -> None:
        super().__init__()
        self.length, self.bound = length, 1 / math.sqrt(max(1, inputs))

    def add(self, arrival: Arrival) -> None:
        """Add a column."""
        if arrival.base:
            columns = [self._vector(name).detach() for name in arrival.base]
            values = nn.Parameter(torch.stack(columns).mean(0))
        else:
            values = uniform((self.length,), self.bound, arrival.generator)
        self.own[arrival.name] = _Vector(values)

    def forward(self, groups: StructureGroups) -> Tensor:
        """Return each sample's vector, (N, length)."""
        return expand_rows([self._vector(name) for name in groups.names], groups)

    def _vector(self, name: str) -> Tensor:
        return cast(_Vector, self.own[name]).values


def expand_rows(rows: Sequence[Tensor], groups: StructureGroups) -> Tensor:
    """Return one row for each sample, (N, ...), from one for each structure of the batch."""
    return torch.cat([row.expand(count, *row.shape) for row, count in zip(rows, groups.counts, strict=True)])


class LastLayers(StructurePart):
    """The last layer of each structure: a K x K x K convolution to one channel, without bias, norm or ReLU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.channels, self.kernel = channels, kernel

    def add(self, arrival: Arrival) -> None:
        """Draw a last layer."""
        self.own[arrival.name] = PlainBlock(
            self.channels, 1, self.kernel, activation=False, generator=arrival.generator
        )

    def forward(self, x: Tensor, groups: StructureGroups) -> Tensor:
        """(N, C, Z, Y, X) -> (N, 1, Z, Y, X), each structure's samples by its own layer."""
        return apply_by_structure(x, groups, lambda part, name: cast(Tensor, self.own[name](part)))


class OneStructure(nn.Module):
    """A copy of a conditioned network, in evaluation mode, that predicts one structure.

    Attributes
    ----------
    depends_on_window
        Whether its weights or norms depend on what it is given, so that windows of another size than the training
        patches' are predicted otherwise.
    """

    def __init__(self, network: ConditionedUNet, structure: str) -> None:
        super().__init__()
        self.network, self.structure = copy.deepcopy(network), structure
        self.depends_on_window = network.depends_on_window
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X)."""
        return cast(Tensor, self.network(x, self.structure))


class ConditionedUNet(StructureUNet):
    """A plain U-Net of which structures share all but their `StructurePart`; subclasses say what those are.

    The structures of the base are trained jointly, in mixed batches. A structure after it is either added to what is
    trained further (`add_base_structure`), or to the frozen network (`add_structure`), of which from then on only
    what an added structure owns is trained: nothing else changes, to the bit.

    Parameters
    ----------
    architecture
        Width and depth; its experts have no meaning here.
    kernel
        Edge K of the convolution kernels, 3 or 5.
    generator
        Draws the weights; torch's global generator is not touched.
    """

    #: Whether weights or norms are computed of the patch: the network must then see windows of the training's size.
    depends_on_window: ClassVar[bool] = False

    #: The most structures that it can have; None is any number.
    slots: int | None = None

    def __init__(self, architecture: Architecture, kernel: int, generator: torch.Generator) -> None:
        if kernel not in (3, 5):
            raise ValueError(f"kernel is 3 or 5, not {kernel}")
        super().__init__(
            architecture.width,
            architecture.depth,
            lambda c_in, c_out, act: PlainBlock(c_in, c_out, kernel, activation=act, generator=generator),
            lambda c_in, c_out, up: PlainResampling(c_in, c_out, up=up, generator=generator),
        )
        self.architecture, self.kernel = architecture, kernel
        self._structures: tuple[str, ...] = ()
        self._base: tuple[str, ...] = ()
        self._additions: tuple[str, ...] = ()

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures that it predicts, in the order they came."""
        return self._structures

    @property
    def base_structures(self) -> tuple[str, ...]:
        """Structures that the network began with."""
        return self._base

    @property
    def additions(self) -> tuple[str, ...]:
        """Structures that were added to the frozen network."""
        return self._additions

    def begin(self, structures: Sequence[str], seed: int) -> None:
        """Make what the structures of the base own; the last step of a subclass's constructor."""
        for name in structures:
            self._add(name, seed, frozen=False)
        self._base = self._structures

    def add_base_structure(self, name: str, *, seed: int) -> None:
        """Add `name` to the structures with which all that is shared is trained further.

        Raises
        ------
        StructureError
            If it is here already, or others were added to the frozen network, which would change with it.
        """
        if self._additions:
            raise StructureError(
                f"{name} cannot be added to what is trained further: {', '.join(self._additions)} depend on the "
                "frozen network; add it to that"
            )
        self._add(name, seed, frozen=False)

    def add_structure(self, name: str, *, seed: int) -> None:
        """Add `name` to the network, which is frozen from now on.

        Raises
        ------
        StructureError
            If it is here already.
        """
        self._add(name, seed, frozen=True)
        self._additions = (*self._additions, name)
        if self._trainable is not None:
            self.restrict_training(self._trainable)

    def _add(self, name: str, seed: int, *, frozen: bool) -> None:
        check_structure_name(name)
        if name in self._structures:
            raise StructureError(
                f"{name!r} is here already: this network knows {', '.join(self._structures)}"
            )
        if self.slots is not None and len(self._structures) >= self.slots:
            raise StructureError(
                f"{name} cannot be added: the network has {self.slots} slots, and all are taken; make one with more "
                "(slots)"
            )
        generator = torch.Generator().manual_seed(structure_seed(seed, name))
        arrival = Arrival(name, len(self._structures), generator, self._base, frozen)
        device = next(self.parameters()).device
        for module in list(self.modules()):
            if isinstance(module, StructurePart):
                module.add(arrival)
                if name in module.own:
                    module.own[name].to(device)
        self._structures = (*self._structures, name)
        if self._trainable is not None:
            self.restrict_training(self._trainable)
        self.train(self.training)

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Make what `structures` may change trainable, freeze the rest, and return the parameters' names.

        That is what they own, and unless others were added to the frozen network all that is shared.

        Raises
        ------
        UnknownStructureError
            If the network does not know one of them.
        StructureError
            If there are none, or the shared parameters are to be trained although additions depend on them.
        """
        if not structures:
            raise StructureError("nothing to train: name at least one structure")
        for name in structures:
            self._check(name)
        if self._additions and not set(structures) <= set(self._additions):
            raise StructureError(
                f"{', '.join(structures)} cannot be trained: only additions are trained from now on, and the base no "
                f"more, because {', '.join(self._additions)} depend on it"
            )
        parts = tuple(f".own.{name}." for name in structures)
        names = [name for name, _ in self.named_parameters()]
        own = {name for name in names if any(part in name for part in parts)}
        shared = {name for name in names if ".own." not in name and self.shares_training(name)}
        return self.restrict_training(frozenset(own if self._additions else own | shared))

    def shares_training(self, parameter: str) -> bool:
        """Return whether a shared parameter is trained with any structure, as by default all are."""
        return True

    def fuse(self, structure: str) -> OneStructure:  # type: ignore[override]
        """Return a copy that predicts `structure`, in evaluation mode.

        Nothing is fused: no plain network computes the same. Where `depends_on_window` holds, weights or norms depend
        on each window, and the windows must be as large as the patches of training.
        """
        self._check(structure)
        return OneStructure(self, structure)
