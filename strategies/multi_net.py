"""Multi-Net (paper, section 4.2): one plain network for each structure, which share nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.errors import ConfigError, StructureError, UnknownStructureError
from repmode_cl.nn import Architecture, PlainUNet, structure_seed
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.hooks import Experiences, Regrouped
from repmode_cl.strategies.state import architecture_of
from repmode_cl.structures import check_structure_name

__all__ = ["MultiNet", "PlainNetworks"]


class PlainNetworks(nn.Module):
    """One plain U-Net for each structure.

    Parameters
    ----------
    architecture
        Width and depth; its experts are not used.
    kernel
        Edge of the convolution kernels, 3 or 5.
    """

    def __init__(self, architecture: Architecture, kernel: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.kernel = kernel
        self.networks = nn.ModuleDict()
        self._trained: str | None = None

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures that have a network."""
        return tuple(self.networks)

    def add(self, name: str, *, seed: int) -> None:
        """Give `name` a fresh network; its weights depend on the seed and the name."""
        check_structure_name(name)
        if name in self.networks:
            raise StructureError(f"{name!r} has a network already")
        self.networks[name] = PlainUNet(
            self.architecture.width, self.architecture.depth, self.kernel, seed=structure_seed(seed, name)
        )

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Make one structure's network trainable and freeze the others."""
        if len(structures) != 1:
            raise StructureError(f"networks are trained one at a time, not {', '.join(structures)} together")
        [self._trained] = structures
        self._get(self._trained)
        for name, network in self.networks.items():
            network.requires_grad_(name == self._trained)
            if name != self._trained:
                network.zero_grad()  # else the gradients of a finished network would stay in memory
        self.train(self.training)
        return frozenset(name for name, p in self.named_parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> Self:
        """Set training mode for only the network that is trained; the norms of the others must not drift."""
        super().train(mode)
        for name, network in self.networks.items():
            network.train(mode and name == self._trained)
        return self

    def fuse(self, structure: str) -> PlainUNet:
        """Return the network of `structure`, in evaluation mode."""
        return self._get(structure).eval()

    def forward(self, x: Tensor, structures: Sequence[str]) -> Tensor:
        """Map (N, 1, Z, Y, X) to (N, 1, Z, Y, X), each sample by its structure's network."""
        distinct = dict.fromkeys(structures)
        if len(distinct) == 1:
            result: Tensor = self._get(structures[0])(x)
            return result
        return torch.cat([self._get(name)(x[i : i + 1]) for i, name in enumerate(structures)])

    def _get(self, name: str) -> PlainUNet:
        if name not in self.networks:
            raise UnknownStructureError(name, self.networks, "Multi-Net")
        return cast(PlainUNet, self.networks[name])


class MultiNet(StructureStrategy):
    """Individual training: it never forgets, and each structure adds a whole network."""

    network_class: ClassVar[type[nn.Module] | None] = PlainNetworks
    joint_base: ClassVar[bool] = False

    @classmethod
    def make_network(
        cls, config: Config, options: StrategyConfig, base: Sequence[str], seed: int
    ) -> PlainNetworks:
        """Return an empty collection of plain networks."""
        return PlainNetworks(architecture_of(config), options.kernel)

    @classmethod
    def regroup(cls, experiences: Experiences, options: StrategyConfig) -> Regrouped:
        """Return one experience for each structure, with or without those of a joint base."""
        first = 1 if options.networks == "added" and len(experiences) > 1 else 0
        pairs = [(name, step) for step, names in enumerate(experiences) if step >= first for name in names]
        return tuple((name,) for name, _ in pairs), tuple(step for _, step in pairs)

    def check_stream(self, stream: StructureStream) -> None:
        """Refuse an experience of several structures: networks are trained one at a time."""
        for number, names in enumerate(stream.experiences):
            if len(names) > 1:
                raise ConfigError(
                    f"Multi-Net trains one network at a time, and experience {number} holds {', '.join(names)}: make "
                    "the stream without a base, so that each experience holds one structure"
                )

    def grow(self, structures: Sequence[str]) -> None:
        """Give each structure a fresh network."""
        for name in structures:
            self.network.add(name, seed=self.seed)
