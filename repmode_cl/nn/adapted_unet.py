"""A plain U-Net that is frozen after its base, and to which each structure adds a small part."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.errors import StructureError, UnknownStructureError
from repmode_cl.nn.adaptations import (
    AdaptationSpec,
    AdaptedLayer,
    BinaryMask,
    LayerAdaptation,
    make_adaptation,
)
from repmode_cl.nn.architecture import Architecture
from repmode_cl.nn.convolution import convolve
from repmode_cl.nn.experts import uninitialised_weights
from repmode_cl.nn.multi_head_unet import MultiHeadUNet
from repmode_cl.nn.per_structure_layers import StructureGroups, apply_by_structure
from repmode_cl.nn.plain_unet import PlainBlock, PlainResampling, PlainUNet
from repmode_cl.nn.structure_unet import structure_seed

__all__ = ["AdaptedBlock", "AdaptedResampling", "AdaptedUNet"]


class AdaptedBlock(PlainBlock):
    """A block of the frozen network, with an adaptation for each added structure."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own = nn.ModuleDict()

    @property
    def layer(self) -> AdaptedLayer:
        """The base's layer."""
        assert self.norm is not None, "the last layer is not adapted: each structure has its own"
        return AdaptedLayer(self.weight, self.norm)

    def forward(self, x: Tensor, context: StructureGroups | None = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, Z, Y, X), each structure's samples with its adaptation."""
        if context is None or not any(name in self.own for name in context.names):
            return super().forward(x, context)
        return apply_by_structure(x, context, self._adapted)

    def _adapted(self, x: Tensor, name: str) -> Tensor:
        if name not in self.own:
            return super().forward(x)
        own, layer = adaptation(self, name), self.layer
        x = torch.relu(own.normalise(convolve(x, own.kernel(layer.weight)), layer.norm))
        return x if own.after is None else cast(Tensor, own.after(x))


class AdaptedResampling(PlainResampling):
    """A down or up layer of the frozen network, with an adaptation for each added structure."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own = nn.ModuleDict()

    @property
    def adapted_layer(self) -> AdaptedLayer:
        """The base's layer."""
        return AdaptedLayer(self.layer.weight, self.norm, transposed=self.layer.up, block=False)

    def forward(self, x: Tensor, context: StructureGroups | None = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, ...), each structure's samples with its adaptation."""
        if context is None or not any(name in self.own for name in context.names):
            return super().forward(x, context)
        return apply_by_structure(x, context, self._adapted)

    def _adapted(self, x: Tensor, name: str) -> Tensor:
        if name not in self.own:
            return super().forward(x)
        own, layer = adaptation(self, name), self.adapted_layer
        resample = F.conv_transpose3d if layer.transposed else F.conv3d
        return torch.relu(own.normalise(resample(x, own.kernel(layer.weight), stride=2), layer.norm))


def adaptation(module: AdaptedBlock | AdaptedResampling, name: str) -> LayerAdaptation:
    """Return the adaptation of `name` in one layer."""
    return cast(LayerAdaptation, module.own[name])


class AdaptedUNet(MultiHeadUNet):
    """A plain U-Net whose structures of the base are trained jointly, and which is frozen for all others.

    Every structure has its own last layer, as in `MultiHeadUNet` with ``head="last"``, whose trained base it can load;
    an added one has an adaptation of every other layer too.

    Parameters
    ----------
    architecture, kernel, structures, seed
        As of `MultiHeadUNet`; `structures` are those of the base.
    spec
        What each added structure gets.
    """

    block_class: ClassVar[type[PlainBlock]] = AdaptedBlock
    resampling_class: ClassVar[type[PlainResampling]] = AdaptedResampling

    def __init__(
        self,
        architecture: Architecture,
        kernel: int,
        structures: Sequence[str],
        spec: AdaptationSpec,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(architecture, kernel, structures, head="last", seed=seed)
        self.spec = spec
        self.base_structures = tuple(structures)

    @property
    def additions(self) -> tuple[str, ...]:
        """Structures that were added to the frozen base."""
        return tuple(name for name in self.structures if name not in self.base_structures)

    def add_structure(self, name: str, *, seed: int) -> None:
        """Add `name` to the frozen network: a fresh last layer, and an adaptation of every other layer."""
        generator = torch.Generator().manual_seed(structure_seed(seed, f"{name}/adaptation"))
        made = {
            module: make_adaptation(self.spec, layer, generator) for module, layer in self._adapted_layers()
        }
        super().add(name, seed=seed)
        device = next(self.parameters()).device
        for module, own in made.items():
            module.own[name] = own.to(device)
        if self._trainable is not None:
            self.restrict_training(self._trainable)
        self.train(self.training)

    def begin_as(self, name: str, other: str) -> None:
        """Set what the untrained addition `name` owns to what `other` has, so that both are predicted alike.

        Of a structure of the base that is its last layer: an untrained adaptation leaves the other layers as they are,
        or nearly so.

        Raises
        ------
        UnknownStructureError
            If `name` is no addition, or the network does not know `other`.
        """
        if name not in self.additions:
            raise UnknownStructureError(name, self.additions, "the additions of this network")
        self._check(other)
        self.load_head(name, self, other)
        if other in self.additions:
            for module, _ in self._adapted_layers():
                module.own[name].load_state_dict(module.own[other].state_dict())

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Make what an added structure owns trainable, or the base before there are any, and return those names.

        Raises
        ------
        UnknownStructureError
            If the network does not know one of them.
        StructureError
            If there are none, an addition is mixed with others, or the base is to be trained although additions
            depend on it.
        """
        if not self.additions:
            return super().train_only(structures)
        for name in structures:
            self._check(name)
        if len(structures) != 1 or structures[0] not in self.additions:
            raise StructureError(
                f"{', '.join(structures) or 'nothing'} cannot be trained: additions are trained one at a time, and "
                f"the base no more, because {', '.join(self.additions)} depend on it"
            )
        part = f".own.{structures[0]}."
        return self.restrict_training(frozenset(name for name, _ in self.named_parameters() if part in name))

    def fuse(self, structure: str) -> PlainUNet:
        """Return the plain network that predicts `structure`, a copy in evaluation mode.

        What can be merged is part of its kernels and norms; adapters follow its blocks (`PlainBlock.after`).
        """
        self._check(structure)
        with uninitialised_weights():
            plain = PlainUNet(self.width, self.depth, self.kernel)
        layers = {**dict(plain.named_blocks()), **dict(plain.named_resampling())}
        mine = {**dict(self.named_blocks()), **dict(self.named_resampling())}
        with torch.no_grad():
            for name, layer in layers.items():
                own = mine[name]
                if name == "head":
                    layer.load_state_dict(cast(nn.ModuleDict, own.own)[structure].state_dict())
                elif structure not in cast(AdaptedBlock, own).own:
                    layer.load_state_dict({key: own.state_dict()[key] for key in layer.state_dict()})
                else:
                    _merge(layer, cast(AdaptedBlock | AdaptedResampling, own), structure)
        return plain.to(next(self.parameters()).device).eval().requires_grad_(False)

    def masks(self, structure: str) -> list[BinaryMask]:
        """Return the binary masks of an addition, one for each layer; none where it has no masks."""
        modules = [adaptation(module, structure) for module, _ in self._adapted_layers()]
        return [module for module in modules if isinstance(module, BinaryMask)]

    def _adapted_layers(self) -> list[tuple[AdaptedBlock | AdaptedResampling, AdaptedLayer]]:
        blocks = [cast(AdaptedBlock, block) for name, block in self.named_blocks() if name != "head"]
        resampling = [cast(AdaptedResampling, module) for _, module in self.named_resampling()]
        return [
            *((block, block.layer) for block in blocks),
            *((module, module.adapted_layer) for module in resampling),
        ]

    def _check_mixture(self, structures: Sequence[str]) -> None:
        if self.training and any(name in self.additions for name in structures):
            raise StructureError(
                f"{', '.join(structures)} cannot be mixed in a training batch: added structures have their own parts"
            )


def _merge(layer: nn.Module, adapted: AdaptedBlock | AdaptedResampling, structure: str) -> None:
    """Set a layer of a plain network to the adapted one of `structure`."""
    own = adaptation(adapted, structure)
    if isinstance(adapted, AdaptedBlock):
        block, base = cast(PlainBlock, layer), adapted.layer
        block.weight.copy_(own.kernel(base.weight))
        block.norm = own.merged_norm(base.norm)
        block.after = copy.deepcopy(own.after)
    else:
        resampling, base = cast(PlainResampling, layer), adapted.adapted_layer
        resampling.layer.weight.copy_(own.kernel(base.weight))
        resampling.norm = own.merged_norm(base.norm)
