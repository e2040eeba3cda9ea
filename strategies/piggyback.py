"""Piggyback: each structure learns which weights of the frozen network it uses (Mallya et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from repmode_cl.config import StrategyConfig
from repmode_cl.errors import ConfigError
from repmode_cl.nn.adaptations import AdaptationKind, AdaptationSpec
from repmode_cl.strategies.frozen_base import FrozenBase, last_layer_base
from repmode_cl.utils.memory import tensor_bytes

__all__ = ["Piggyback"]


class Piggyback(FrozenBase):
    """A binary mask of every frozen convolution, learned through real scores; own norms and last layer.

    A weight is kept where its score is above 0.005; scores start at 0.01, and take the gradient of the mask
    (straight-through). When a structure is learned only the bits are kept: each is counted as one parameter and an
    eighth of a byte. If it comes again its scores start from them, at 0.01 and 0.
    """

    kind: ClassVar[AdaptationKind] = "piggyback"

    def __init__(self, *, init_from: str = "none", **kwargs: Any) -> None:
        if init_from != "none":
            raise ConfigError(
                f"init_from is {init_from}: Piggyback starts each mask from all weights, as its publication does, and "
                "stored masks have no scores to copy; leave it out"
            )
        super().__init__(**kwargs)

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the base of Multi-Head with a last layer for each structure."""
        return last_layer_base(options)

    @classmethod
    def spec_of(cls, options: StrategyConfig) -> AdaptationSpec:
        """Return the norms of an addition."""
        return AdaptationSpec(cls.kind, norm=options.norm)

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train what `FrozenBase` trains; masks that were packed get scores first."""
        for name in self._added(structures):
            for mask in self.network.masks(name):
                mask.unpack()
        return super().choose_trained(structures)

    def after_experience(self, number: int) -> None:
        """Pack the masks of the structures that were learned."""
        self._pack(self._added(self.stream.experiences[number]))

    def costs(self) -> dict[str, float]:
        """Return what a structure adds, with its masks as bits."""
        number = self.progress.experience
        added = self._added(self.stream.experiences[number])
        if not added or any(set(added) & set(names) for names in self.stream.experiences[:number]):
            return {}
        parts = tuple(f".own.{name}." for name in added)
        tensors = {k: t for k, t in self.network.state_dict().items() if any(part in k for part in parts)}
        numbers = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
        masks = [mask for name in added for mask in self.network.masks(name)]
        bits = [mask.bits for mask in masks if mask.bits is not None]
        return {
            "added_parameters": sum(t.numel() for t in numbers) + sum(mask.mask().numel() for mask in masks),
            "added_bytes": tensor_bytes([*numbers, *bits]),
        }

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return which structures have packed masks."""
        packed = [name for name in self.network.additions if self.network.masks(name)[0].packed]
        return {}, {"packed": packed}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Pack those masks, whose bits are loaded next."""
        self._pack(values["packed"])

    def _added(self, structures: Sequence[str]) -> list[str]:
        return [name for name in structures if name in self.network.additions]

    def _pack(self, structures: Sequence[str]) -> None:
        for name in structures:
            for mask in self.network.masks(name):
                mask.pack()
