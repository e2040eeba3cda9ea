"""PackNet's network (Mallya and Lazebnik, CVPR 2018): several structures in the weights of one plain U-Net.

Every weight of a layer belongs to the experience that it was trained in, or is free. A structure uses the weights of
its own experiences and of those before its first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.errors import StructureError
from repmode_cl.nn.architecture import Architecture
from repmode_cl.nn.convolution import convolve
from repmode_cl.nn.experts import uninitialised_weights
from repmode_cl.nn.multi_head_unet import MultiHeadUNet
from repmode_cl.nn.per_structure_layers import StructureGroups, StructureNorm
from repmode_cl.nn.plain_unet import PlainBlock, PlainResampling, PlainUNet

__all__ = ["FREE", "PackedUNet"]

#: Owner of a weight that no experience has.
FREE = 0
#: Most experiences: an owner is one byte.
_MOST = 255


class _PackedLayer(nn.Module):
    """The part that blocks and resampling layers have in common: the owner of each weight, and norms."""

    owner: Tensor

    def _make_parts(self, weight: Tensor, channels: int) -> None:
        self.register_buffer("owner", torch.zeros(weight.shape, dtype=torch.uint8))
        self.structure_norm = StructureNorm(channels)
        #: Structure -> owners of the weights that it uses; shared by all layers of a network.
        self.visible: dict[str, frozenset[int]] = {}
        #: Owners -> their mask: a cache, not state.
        self.masks: dict[frozenset[int], Tensor] = {}

    @property
    def packed_weight(self) -> nn.Parameter:
        """The weights of all structures."""
        raise TypeError(f"{type(self).__name__} has no weights")

    def mask_of(self, owners: frozenset[int]) -> Tensor:
        """Return 1 for each weight that one of `owners` has, and 0 for the others."""
        if owners not in self.masks:
            mask = torch.isin(
                self.owner, torch.tensor(sorted(owners), device=self.owner.device).to(torch.uint8)
            )
            self.masks[owners] = mask.to(self.packed_weight.dtype)
        return self.masks[owners]

    def kernel(self, structure: str) -> Tensor:
        """Return the kernel of a structure: the weights that it uses, and 0 for the others."""
        return self.packed_weight * self.mask_of(self.visible[structure])


class _PackedBlock(PlainBlock, _PackedLayer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.norm is not None:
            self._make_parts(self.weight, len(self.weight))
            self.norm = None  # in its place: `structure_norm`

    @property
    def packed_weight(self) -> nn.Parameter:
        return self.weight

    def forward(self, x: Tensor, context: StructureGroups | None = None) -> Tensor:
        assert context is not None, "a packed network is called with structures"
        x = convolve(x, self.kernel(context.names[0]))
        return torch.relu(self.structure_norm(x, context))


class _PackedResampling(PlainResampling, _PackedLayer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._make_parts(self.layer.weight, self.norm.num_features)
        del self.norm  # in its place: `structure_norm`

    @property
    def packed_weight(self) -> nn.Parameter:
        return self.layer.weight

    def forward(self, x: Tensor, context: StructureGroups | None = None) -> Tensor:
        assert context is not None, "a packed network is called with structures"
        resample = F.conv_transpose3d if self.layer.up else F.conv3d
        x = resample(x, self.kernel(context.names[0]), stride=2)
        return torch.relu(self.structure_norm(x, context))


class PackedUNet(MultiHeadUNet):
    """A plain U-Net whose weights are shared out to experiences, with a last layer for each structure.

    Parameters
    ----------
    architecture, kernel, structures, seed
        As of `MultiHeadUNet`; `structures` are those of the base.
    own_norms
        Whether each structure after the base has its own norms; else all use those of the base, frozen.

    Notes
    -----
    An experience begins with `begin`, and trains its weights and all free ones. `prune` gives it the largest of these,
    and frees the others; it then trains only its own. What moves other weights (an optimiser's weight decay) is to be
    undone with `frozen_weights` and `restore`.
    """

    block_class: ClassVar[type[PlainBlock]] = _PackedBlock
    resampling_class: ClassVar[type[PlainResampling]] = _PackedResampling

    def __init__(
        self,
        architecture: Architecture,
        kernel: int,
        structures: Sequence[str],
        *,
        own_norms: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(architecture, kernel, structures, head="last", seed=seed)
        self.own_norms = own_norms
        self.base_structures = tuple(structures)
        self._visible: dict[str, frozenset[int]] = {}
        self._owner = FREE
        for _, layer in self.packed_layers():
            layer.visible = self._visible

    def packed_layers(self) -> Iterator[tuple[str, _PackedLayer]]:
        """Yield all layers but the last with their names."""
        for name, layer in [*self.named_blocks(), *self.named_resampling()]:
            if name != "head":
                yield name, cast(_PackedLayer, layer)

    def add_structure(self, name: str, *, seed: int) -> None:
        """Add `name` with a fresh last layer, and copies of the base's norms if structures have their own."""
        super().add(name, seed=seed)
        if self.own_norms:
            for _, layer in self.packed_layers():
                layer.structure_norm.add(name)
        if self._trainable is not None:
            self.restrict_training(self._trainable)
        self.train(self.training)

    def begin(self, structures: Sequence[str], number: int, *, pruned: bool = False) -> None:
        """Begin experience `number`, from 0, of `structures`, or the part of it after pruning.

        A structure that comes for the first time uses the weights of all experiences so far; one that comes again uses
        those that it did, and what this experience adds.
        """
        if not 0 <= number < _MOST:
            raise StructureError(
                f"experience {number} cannot be packed: an owner is one byte, {_MOST} at most"
            )
        self._owner = number + 1
        for name in structures:
            earlier = self._visible.get(name, frozenset(range(1, self._owner))) - {FREE}
            self._visible[name] = earlier | {self._owner} | (frozenset() if pruned else {FREE})

    def prune(self, share: float) -> None:
        """Free the smallest `share` of the free weights in each layer; the others are this experience's from now on."""
        with torch.no_grad():
            for _, layer in self.packed_layers():
                weight, candidates = layer.packed_weight, layer.owner == FREE
                sizes = weight.abs()[candidates]
                freed = round(share * len(sizes))
                kept = torch.ones_like(sizes, dtype=torch.bool)
                kept[sizes.argsort(stable=True)[:freed]] = False
                owners = layer.owner[candidates]
                owners[kept] = self._owner
                layer.owner[candidates] = owners
                weight[layer.owner == FREE] = 0
                layer.masks.clear()
        for name, owners_of in self._visible.items():
            self._visible[name] = owners_of - {FREE}

    def trained_weights(self, layer: _PackedLayer) -> Tensor:
        """Return 1 for each weight of a layer that this experience may change now, and 0 for the others."""
        is_open = any(FREE in owners for owners in self._visible.values())
        return layer.mask_of(frozenset({self._owner} | ({FREE} if is_open else set())))

    def mask_gradients(self) -> None:
        """Zero the gradients of all weights that this experience may not change."""
        for _, layer in self.packed_layers():
            if layer.packed_weight.grad is not None:
                layer.packed_weight.grad.mul_(self.trained_weights(layer))

    def frozen_weights(self) -> list[Tensor]:
        """Return a copy of the weights of each layer."""
        return [layer.packed_weight.detach().clone() for _, layer in self.packed_layers()]

    def restore(self, weights: Sequence[Tensor]) -> None:
        """Set every weight that this experience may not change to that of `weights`."""
        with torch.no_grad():
            for (_, layer), before in zip(self.packed_layers(), weights, strict=True):
                mine = self.trained_weights(layer) > 0
                layer.packed_weight.copy_(torch.where(mine, layer.packed_weight, before))

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Make all weights, and what `structures` have to themselves, trainable, and return the parameters' names.

        Which of the weights may change is decided one by one: see `mask_gradients` and `restore`.
        """
        if not structures:
            raise StructureError("nothing to train: name at least one structure")
        for name in structures:
            self._check(name)
        added = [name for name in structures if name not in self.base_structures]
        if added and len(structures) > 1:
            raise StructureError(
                f"{', '.join(structures)} cannot be trained together: additions are one at a time"
            )
        parts = tuple(f".own.{name}." for name in structures)
        names = [name for name, _ in self.named_parameters()]
        return self.restrict_training(
            frozenset(
                name
                for name in names
                if any(part in name for part in parts)
                or (".own." not in name and not (added and ".structure_norm." in name))
            )
        )

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state; masks that were made of another are made again."""
        result = super().load_state_dict(*args, **kwargs)
        for _, layer in self.packed_layers():
            layer.masks.clear()
        return result

    def fuse(self, structure: str) -> PlainUNet:
        """Return the plain network that predicts `structure`, a copy in evaluation mode."""
        self._check(structure)
        with uninitialised_weights():
            plain = PlainUNet(self.width, self.depth, self.kernel)
        layers = {**dict(plain.named_blocks()), **dict(plain.named_resampling())}
        with torch.no_grad():
            for name, packed in self.packed_layers():
                layer = layers[name]
                norm = copy.deepcopy(packed.structure_norm.of(structure))
                layer.norm = norm
                target = (
                    layer.weight
                    if isinstance(layer, PlainBlock)
                    else cast(PlainResampling, layer).layer.weight
                )
                target.copy_(packed.kernel(structure))
            layers["head"].load_state_dict(self._head_of(structure).state_dict())
        return plain.to(next(self.parameters()).device).eval().requires_grad_(False)

    def _head_of(self, structure: str) -> nn.Module:
        return cast(nn.ModuleDict, self.head.own)[structure]

    def _check_mixture(self, structures: Sequence[str]) -> None:
        if len({self._visible[name] for name in structures}) > 1:
            raise StructureError(
                f"{', '.join(structures)} cannot be computed in one batch: they use different weights"
            )
