"""Experts frozen (paper, section 4.4): each structure brings a fresh expert and gate; nothing old may change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repmode_cl.strategies.base import StructureStrategy

from repmode_cl.nn import AdditionSpec, RepModeUNet

__all__ = ["ExpertsFrozen"]


class ExpertsFrozen(StructureStrategy):
    """Ours.

    Parameters
    ----------
    network
        With the base structures of the first experience.
    spec
        What each added structure gets.
    """

    def __init__(self, *, network: RepModeUNet, spec: AdditionSpec | None = None, **kwargs: Any) -> None:
        super().__init__(network=network, **kwargs)
        self.spec = spec or AdditionSpec()

    def grow(self, structures: Sequence[str]) -> None:
        """Add each structure to the frozen network."""
        for name in structures:
            self.network.add_structure(name, self.spec, seed=self.seed)
