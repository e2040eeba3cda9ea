"""What strategies share that is no strategy: a network's interface, and where training stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from repmode_cl.nn import PlainUNet

__all__ = ["Evaluation", "Progress", "StructureNetwork"]


class StructureNetwork(Protocol):
    """A network that predicts structures by name: RepMode's, or one plain network for each."""

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures that it knows."""

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Freeze all but what training `structures` may change, and return those parameters' names."""

    def fuse(self, structure: str) -> PlainUNet:
        """Return the plain network that predicts `structure`, in evaluation mode."""


@dataclass
class Progress:
    """Where training stands within an experience; everything that a checkpoint must bring back."""

    experience: int = 0
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Validation figures: experience, structure, train_step, metric, value."""


#: Structure -> metric -> mean over its images.
Evaluation = dict[str, dict[str, float]]
