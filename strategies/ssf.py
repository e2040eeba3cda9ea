"""SSF: each structure scales and shifts the frozen network's features (Lian et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import ClassVar

from repmode_cl.nn.adaptations import AdaptationKind
from repmode_cl.strategies.frozen_base import FrozenBase

__all__ = ["SSF"]


class SSF(FrozenBase):
    """A learned scale and shift of each channel after every convolution and every norm; merged for prediction.

    The norms are the base's, with its running statistics.
    """

    kind: ClassVar[AdaptationKind] = "ssf"
