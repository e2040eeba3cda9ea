"""A U-Net of named structures, with mixed batches and frozen parts: the base class of RepMode and Multi-Head."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from repmode_cl.errors import StructureError, UnknownStructureError
from repmode_cl.nn.per_structure_layers import StructureGroups
from repmode_cl.nn.plain_unet import PlainUNet
from repmode_cl.nn.unet import UNet

__all__ = ["StructureUNet", "structure_seed"]


def structure_seed(seed: int, name: str) -> int:
    """Return the seed of the weights of the structure `name`: another for each structure and each run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "little")


class StructureUNet(UNet):
    """A U-Net whose layers are called with the structures of the batch; see `UNet` for its parameters."""

    #: Names of the parameters that may change; None where that was never restricted, as in a fresh network.
    _trainable: frozenset[str] | None = None

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures that the network predicts."""
        raise TypeError(f"{type(self).__name__} does not say which structures it knows")

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Make only what training `structures` may change trainable, and return the names of these parameters."""
        raise TypeError(f"{type(self).__name__} does not say what training {', '.join(structures)} changes")

    def fuse(self, structure: str) -> PlainUNet:
        """Return the plain network that predicts `structure`, a copy in evaluation mode."""
        raise TypeError(f"{type(self).__name__} does not say how {structure!r} is fused")

    def _check(self, name: str) -> None:
        if name not in self.structures:
            raise UnknownStructureError(name, self.structures)

    def restrict_training(self, names: frozenset[str]) -> frozenset[str]:
        """Let exactly the parameters `names` take gradients; frozen norms stay in evaluation mode from now on."""
        self._trainable = frozenset(names)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in names)
            if name not in names:
                parameter.grad = None
        self.train(self.training)
        return self._trainable

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for frozen norms, whose running statistics must never drift."""
        super().train(mode)
        if self._trainable is not None:
            # By the parameter and not by its name: norms may share one, which has the name of the first.
            trained = {id(one) for name, one in self.named_parameters() if name in self._trainable}
            for module in self.modules():
                if isinstance(module, nn.BatchNorm3d) and id(module.weight) not in trained:
                    module.eval()
        return self

    def forward(self, x: Tensor, structures: str | Sequence[str]) -> Tensor:
        """Predict one structure for each sample.

        Parameters
        ----------
        x
            Transmitted light, (N, 1, Z, Y, X), z-scored.
        structures
            One name for all samples, or one for each.

        Returns
        -------
        Tensor
            Fluorescence, (N, 1, Z, Y, X), z-scored.

        Raises
        ------
        UnknownStructureError
            If a structure is not known; there is no fallback.
        StructureError
            If names and samples differ in number, or structures are mixed in training that cannot be.
        """
        names = [structures] * len(x) if isinstance(structures, str) else list(structures)
        if len(names) != len(x):
            raise StructureError(
                f"{len(names)} structures for {len(x)} samples: give one for each, or one for all"
            )
        distinct = tuple(dict.fromkeys(names))
        for name in distinct:
            self._check(name)
        groups = StructureGroups(distinct, tuple(names.count(name) for name in distinct))
        if len(distinct) == 1:
            return self.run(x, groups)
        self._check_mixture(distinct)
        order = sorted(range(len(names)), key=lambda i: distinct.index(names[i]))
        inverse = torch.empty(len(order), dtype=torch.long)
        inverse[torch.tensor(order)] = torch.arange(len(order))
        return self.run(x[order], groups)[inverse.to(x.device)]

    def _check_mixture(self, structures: Sequence[str]) -> None:
        """Refuse a batch of structures that cannot be computed together; by default any can."""
