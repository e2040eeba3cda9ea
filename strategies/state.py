"""Types that strategies share: the interface of a network, and the progress of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from repmode_cl.config import Config
from repmode_cl.nn import Architecture

__all__ = ["TrainingProgress", "StructureNetwork", "Evaluation", "Example", "architecture_of"]


def architecture_of(config: Config) -> Architecture:
    """Return the architecture that a configuration describes."""
    keys = dict(config.network)
    return Architecture(**keys)


class StructureNetwork(Protocol):
    """A network that predicts structures by name: RepMode's, or one plain network for each."""

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures that it knows."""

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Freeze all parameters but those that training `structures` may change, and return the names of these."""

    def fuse(self, structure: str) -> nn.Module:
        """Return a module that predicts `structure` from (N, 1, Z, Y, X); batch norms of a `PlainUNet` are folded."""


@dataclass
class TrainingProgress:
    """Progress of training within an experience; a checkpoint restores all of it."""

    experience: int = 0
    step: int = 0
    seconds: float = 0.0
    """Wall-clock seconds of training, without validating and recording."""
    cpu_seconds: float = 0.0
    """Processor seconds of all threads in the same time: comparable where runs share a machine."""
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
