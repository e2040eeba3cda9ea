"""What strategies share that is no strategy: a network's interface, and where training stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from repmode_cl.config import Config
from repmode_cl.nn import Architecture, PlainUNet

__all__ = ["Evaluation", "Example", "TrainingProgress", "StructureNetwork", "architecture_of"]


def architecture_of(config: Config) -> Architecture:
    """Return the network's shape."""
    return Architecture(config.network.width, config.network.depth, config.network.experts)


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
class TrainingProgress:
    """Where training stands within an experience; everything that a checkpoint must bring back."""

    experience: int = 0
    step: int = 0
    seconds: float = 0.0
    """Of training, on the clock; validating and recording are not training."""
    cpu_seconds: float = 0.0
    """Of all of the process's threads in the same time: comparable where runs share a machine."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Validation figures: experience, structure, train_step, metric, value."""


@dataclass(frozen=True)
class Example:
    """One slice of a structure's first image of an evaluation, (Y, X) float32 in z-score units."""

    signal: NDArray[np.float32]
    truth: NDArray[np.float32]
    prediction: NDArray[np.float32]


#: Structure -> metric -> mean over its images.
Evaluation = dict[str, dict[str, float]]
