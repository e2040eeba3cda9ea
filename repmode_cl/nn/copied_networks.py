"""Networks that answer a new structure with a copy of themselves: the base stays as it is, each copy is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from repmode_cl.errors import StructureError, UnknownStructureError
from repmode_cl.nn.experts import uninitialised_weights
from repmode_cl.nn.multi_head_unet import MultiHeadUNet
from repmode_cl.nn.plain_unet import PlainUNet
from repmode_cl.nn.repmode_unet import RepModeUNet
from repmode_cl.nn.structure_unet import StructureUNet
from repmode_cl.structures import check_structure_name

__all__ = ["CopiedUNet", "CopiedRepModeUNet", "CopiedMultiHeadUNet"]

Network = TypeVar("Network", bound=StructureUNet)


class CopiedUNet(StructureUNet):
    """A network of base structures, and for each added structure a copy of it that knows only that structure.

    Mixed into the class of the base, whose layers keep their names: a trained base of that class can be loaded. The
    copies share no tensor with the base or with each other.
    """

    copies: nn.ModuleDict

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures of the base, then those that have a copy."""
        return (*super().structures, *self.copies)

    def make_copy(self, name: str, *, seed: int) -> StructureUNet:
        """Return a copy of the base that knows `name`, with a fresh gate row or head."""
        raise TypeError(f"{type(self).__name__} does not say how it is copied")

    def take_row_or_head(self, name: str, other: str) -> None:
        """Give the copy of `name` the gate rows or the head of `other`, a structure of the base."""
        raise TypeError(f"{type(self).__name__} does not say what {name!r} takes from {other!r}")

    def begin_as(self, name: str, other: str) -> None:
        """Set the untrained copy of `name` to what predicts `other`: the base, or an earlier copy.

        Raises
        ------
        UnknownStructureError
            If there is no copy of `name`, or the network does not know `other`.
        """
        if name not in self.copies:
            raise UnknownStructureError(name, list(self.copies), "the copies of this network")
        self._check(other)
        if other not in self.copies:
            self.take_row_or_head(name, other)
            return
        source = self.copies[other].state_dict()
        keys = {
            key: ".".join(other if part == name else part for part in key.split("."))
            for key in self.copies[name].state_dict()
        }
        self.copies[name].load_state_dict(
            {key: source[renamed if renamed in source else key] for key, renamed in keys.items()}
        )

    def add_copy(self, name: str, *, seed: int) -> None:
        """Add a copy of the base for `name`; what is fresh in it depends on the seed and the name."""
        check_structure_name(name)
        if name in self.structures:
            raise StructureError(f"{name!r} is here already: this network knows {', '.join(self.structures)}")
        self.copies[name] = self.make_copy(name, seed=seed).to(next(self.parameters()).device)
        if self._trainable is not None:
            self.restrict_training(self._trainable)
        self.train(self.training)

    def base_parts(self) -> dict[str, Tensor]:
        """Return the base's tensors by name."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith("copies.")}

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Make one copy trainable, or without copies what the base's class trains, and return the parameters' names.

        Raises
        ------
        UnknownStructureError
            If the network does not know one of them.
        StructureError
            If there are none, copies are mixed with others, or the base is to be trained although copies began as it.
        """
        for name in structures:
            self._check(name)
        if not self.copies:
            return super().train_only(structures)
        if len(structures) != 1 or structures[0] not in self.copies:
            raise StructureError(
                f"{', '.join(structures) or 'nothing'} cannot be trained: copies of the base are trained one at a "
                f"time, and the base no more; there are copies for {', '.join(self.copies)}"
            )
        [name] = structures
        trained = self._copy(name).train_only([name])
        return self.restrict_training(frozenset(f"copies.{name}.{parameter}" for parameter in trained))

    def forward(self, x: Tensor, structures: str | Sequence[str]) -> Tensor:
        """Predict one structure for each sample, as `StructureUNet.forward`, each by the network that knows it."""
        names = [structures] * len(x) if isinstance(structures, str) else list(structures)
        if not any(name in self.copies for name in names):
            return super().forward(x, names)
        if len(set(names)) == 1:
            return cast(Tensor, self._copy(names[0])(x, names))
        if self.training:
            raise StructureError(
                f"{', '.join(dict.fromkeys(names))} cannot be mixed in a training batch: each copy is a network"
            )
        return torch.cat([self.forward(x[i : i + 1], [name]) for i, name in enumerate(names)])

    def fuse(self, structure: str) -> PlainUNet:
        """Return the plain network that predicts `structure`, in evaluation mode."""
        return self._copy(structure).fuse(structure) if structure in self.copies else super().fuse(structure)

    def _copy(self, name: str) -> StructureUNet:
        return cast(StructureUNet, self.copies[name])


class CopiedRepModeUNet(CopiedUNet, RepModeUNet):
    """RepMode's network with copies; see `RepModeUNet` for its parameters.

    A copy has the base's experts, norms and resampling layers, and a fresh gate row in each block, as
    `RepModeUNet.add_base_structure` draws it; the gates of the base's structures are left out.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.copies = nn.ModuleDict()

    def make_copy(self, name: str, *, seed: int) -> RepModeUNet:
        """Return a copy of the base that knows `name`, with fresh gate rows."""
        with uninitialised_weights():
            grown = RepModeUNet(
                self.architecture, self.base_structures, shared_gate_bias=self.shares_gate_bias
            )
            copy = RepModeUNet(self.architecture.with_free_rows(), [name])
        grown.load_state_dict(self.base_parts())
        grown.add_base_structure(name, seed=seed)
        return _load_part(copy, grown)

    def take_row_or_head(self, name: str, other: str) -> None:
        """Give the copy of `name` the gate rows of `other`, a structure of the base."""
        copied = dict(cast(RepModeUNet, self.copies[name]).named_mode_blocks())
        with torch.no_grad():
            for block_name, block in self.named_mode_blocks():
                if block.gated:
                    copied[block_name].gates[name].copy_(block.base_rows()[other])

    def gate_weights(self, structure: str) -> dict[str, dict[str, Tensor]]:
        """Return the gate weights of `structure` in the network that knows it (`RepModeUNet.gate_weights`)."""
        if structure in self.copies:
            return cast(RepModeUNet, self.copies[structure]).gate_weights(structure)
        return super().gate_weights(structure)


class CopiedMultiHeadUNet(CopiedUNet, MultiHeadUNet):
    """Multi-Head's network with copies; see `MultiHeadUNet` for its parameters.

    A copy has what the base's structures share, with its norms, and a fresh head.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.copies = nn.ModuleDict()

    def make_copy(self, name: str, *, seed: int) -> MultiHeadUNet:
        """Return a copy of the base that knows `name`, with a fresh head."""
        base = [structure for structure in self.structures if structure not in self.copies]
        with uninitialised_weights():
            grown = MultiHeadUNet(self.architecture, self.kernel, base, head=self.head_kind)
            copy = MultiHeadUNet(self.architecture, self.kernel, [name], head=self.head_kind)
        grown.load_state_dict(self.base_parts())
        grown.add(name, seed=seed)
        return _load_part(copy, grown)

    def take_row_or_head(self, name: str, other: str) -> None:
        """Give the copy of `name` the head of `other`, a structure of the base."""
        cast(MultiHeadUNet, self.copies[name]).load_head(name, self, other)


def _load_part(network: Network, source: StructureUNet) -> Network:
    """Set every tensor of `network` to that of the same name in `source`, which may have more, and return it."""
    state = source.state_dict()
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network
