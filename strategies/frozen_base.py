"""Strategies on a frozen plain U-Net: the base of what adds only a small part of the network for each structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from torch import nn

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.errors import ConfigError
from repmode_cl.nn.adaptations import AdaptationKind, AdaptationSpec
from repmode_cl.nn.adapted_unet import AdaptedUNet
from repmode_cl.strategies.state import architecture_of
from repmode_cl.strategies.warm_start import WarmStart

__all__ = ["FrozenBase", "last_layer_base"]


def last_layer_base(options: StrategyConfig) -> str:
    """Return the key of the base of Multi-Head with a last layer for each structure, as `shared_base` returns it."""
    return f"multi_head_last_k{options.kernel}"


class FrozenBase(WarmStart):
    """A plain network that the base's structures are trained in jointly, and that is frozen after them.

    The base is that of Multi-Head with a last layer for each structure. Each structure after it trains a fresh last
    layer, and in every other layer what the subclass says: nothing old changes, to the bit.

    Notes
    -----
    A structure that returns trains its own parameters further; all others stay unchanged.
    """

    network_class: ClassVar[type[nn.Module] | None] = AdaptedUNet
    #: What a structure gets in each layer.
    kind: ClassVar[AdaptationKind]

    @classmethod
    def spec_of(cls, options: StrategyConfig) -> AdaptationSpec:
        """Return what each added structure gets."""
        return AdaptationSpec(cls.kind)

    @classmethod
    def make_network(
        cls, config: Config, options: StrategyConfig, base: Sequence[str], seed: int
    ) -> nn.Module:
        """Return the network of the base's structures, trainable."""
        spec = cls.spec_of(options)
        return AdaptedUNet(architecture_of(config), options.kernel, base, spec, seed=seed)

    @classmethod
    def _check_network(cls, network: nn.Module) -> None:
        """Refuse a network whose structures get another kind of adaptation."""
        super()._check_network(network)
        if (found := cast(AdaptedUNet, network).spec.kind) != cls.kind:
            raise ConfigError(
                f"{cls.__name__} trains adaptations of the kind {cls.kind}, and those of the model are {found}: make "
                f"it with AdaptationSpec({cls.kind!r})"
            )

    def grow(self, structures: Sequence[str]) -> None:
        """Add each structure to the frozen network."""
        for name in structures:
            self.network.add_structure(name, seed=self.seed)
