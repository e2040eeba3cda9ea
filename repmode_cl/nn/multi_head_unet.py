"""Multi-Head (paper, section 4.2): one shared plain U-Net with a decoder, or a last layer, for each structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from repmode_cl.errors import StructureError
from repmode_cl.nn.architecture import Architecture
from repmode_cl.nn.per_structure_layers import StructureGroups, apply_by_structure
from repmode_cl.nn.plain_unet import PlainBlock, PlainResampling, PlainUNet
from repmode_cl.nn.structure_unet import StructureUNet, structure_seed
from repmode_cl.structures import check_structure_name

__all__ = ["Head", "MultiHeadUNet"]

#: The part of the network that each structure has to itself.
Head = Literal["decoder", "last"]

#: Makes one layer, from a generator of its weights.
LayerFactory = Callable[[torch.Generator], nn.Module]


class _PerStructureLayer(nn.Module):
    """A layer of which each structure has its own."""

    def __init__(self, make: LayerFactory) -> None:
        super().__init__()
        self.make = make
        self.own = nn.ModuleDict()

    def forward(self, x: Tensor, groups: StructureGroups) -> Tensor:
        """Compute each structure's samples of `x` (N, C, Z, Y, X) with its own layer."""
        return apply_by_structure(x, groups, lambda part, name: cast(Tensor, self.own[name](part)))


class MultiHeadUNet(StructureUNet):
    """A plain U-Net in which each structure has its own decoder, or only its own last layer.

    The paper's Multi-Head (Dec.) and Multi-Head (Las.). Encoder and bottleneck are shared (for ``last`` the decoder
    too), with their norms.

    Parameters
    ----------
    architecture
        Width and depth; its experts have no meaning here.
    kernel
        Edge of the convolution kernels, 3 or 5.
    structures
        Structures that it has heads for at first.
    head
        ``decoder``: up layers, decoder and last layer are each structure's own; ``last``: only the last layer is.
    seed
        Seed of the initial weights; torch's global generator is not touched. The weights of a head depend on
        its structure too, and not on which others there are.

    Raises
    ------
    StructureError
        If a structure is named twice.
    """

    #: Classes of the layers that structures share.
    block_class: ClassVar[type[PlainBlock]] = PlainBlock
    resampling_class: ClassVar[type[PlainResampling]] = PlainResampling

    def __init__(
        self,
        architecture: Architecture,
        kernel: int,
        structures: Sequence[str] = (),
        *,
        head: Head = "decoder",
        seed: int = 0,
    ) -> None:
        if kernel not in (3, 5):
            raise ValueError(f"kernel is 3 or 5, not {kernel}")
        if head not in ("decoder", "last"):
            raise ValueError(f"head is 'decoder' or 'last', not {head!r}")
        generator = torch.Generator().manual_seed(seed)
        super().__init__(
            architecture.width,
            architecture.depth,
            lambda c_in, c_out, act: self.block_class(
                c_in, c_out, kernel, activation=act, generator=generator
            ),
            lambda c_in, c_out, up: self.resampling_class(c_in, c_out, up=up, generator=generator),
        )
        self.architecture, self.kernel, self.head_kind = architecture, kernel, head
        self._structures: tuple[str, ...] = ()
        if head == "decoder":
            for level in range(self.depth):
                channels = self.width << level
                self.up[level] = _PerStructureLayer(_up_layer_factory(2 * channels, channels))
                self.decoder[level] = nn.ModuleList(
                    [
                        _PerStructureLayer(_block_factory(c, channels, kernel))
                        for c in (2 * channels, channels)
                    ]
                )
        self.head = _PerStructureLayer(_block_factory(self.width, 1, kernel, activation=False))
        for name in structures:
            self.add(name, seed=seed)

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures that have a head, in the order they came."""
        return self._structures

    def add(self, name: str, *, seed: int) -> None:
        """Add a fresh head for `name`; its weights depend on the seed and the name."""
        check_structure_name(name)
        if name in self._structures:
            raise StructureError(f"{name!r} has a head already")
        generator = torch.Generator().manual_seed(structure_seed(seed, name))
        device = next(self.parameters()).device
        for module in self.modules():
            if isinstance(module, _PerStructureLayer):
                module.own[name] = module.make(generator).to(device)
        self._structures = (*self._structures, name)
        if self._trainable is not None:
            self.restrict_training(self._trainable)
        self.train(self.training)

    def load_head(self, name: str, source: MultiHeadUNet, other: str) -> None:
        """Give `name` the weights of the head that `other` has in `source`, a network of the same shape."""
        mine = [module for module in self.modules() if isinstance(module, _PerStructureLayer)]
        theirs = [module for module in source.modules() if isinstance(module, _PerStructureLayer)]
        # A network may have others inside, after its own: see `CopiedMultiHeadUNet`.
        for module, one in zip(mine, theirs, strict=False):
            module.own[name].load_state_dict(one.own[other].state_dict())

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Make all that is shared and the heads of `structures` trainable, freeze the rest, and return those names."""
        if not structures:
            raise StructureError("nothing to train: name at least one structure")
        for name in structures:
            self._check(name)
        own_parts = tuple(f".own.{name}." for name in structures)
        names = frozenset(
            name
            for name, _ in self.named_parameters()
            if ".own." not in name or any(part in name for part in own_parts)
        )
        return self.restrict_training(names)

    def fuse(self, structure: str) -> PlainUNet:
        """Return the plain network that predicts `structure`, a copy in evaluation mode."""
        self._check(structure)
        plain = PlainUNet(self.width, self.depth, self.kernel)
        part, state = f".own.{structure}.", self.state_dict()
        own = {name.replace(part, "."): name for name in state if part in name}
        plain.load_state_dict({name: state[own.get(name, name)] for name in plain.state_dict()})
        return plain.to(next(self.parameters()).device).eval().requires_grad_(False)


def _block_factory(c_in: int, c_out: int, kernel: int, *, activation: bool = True) -> LayerFactory:
    return lambda generator: PlainBlock(c_in, c_out, kernel, activation=activation, generator=generator)


def _up_layer_factory(c_in: int, c_out: int) -> LayerFactory:
    return lambda generator: PlainResampling(c_in, c_out, up=True, generator=generator)
