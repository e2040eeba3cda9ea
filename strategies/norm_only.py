"""Norms only: each structure trains its own batch norms and last layer on frozen convolutions."""

from __future__ import annotations

from typing import ClassVar

from repmode_cl.nn.adaptations import AdaptationKind
from repmode_cl.strategies.frozen_base import FrozenBase

__all__ = ["NormOnly"]


class NormOnly(FrozenBase):
    """Own batch norms for each structure, on shared convolutions (Bilen and Vedaldi, arXiv 1701.07275, 2017)."""

    kind: ClassVar[AdaptationKind] = "norm_only"
