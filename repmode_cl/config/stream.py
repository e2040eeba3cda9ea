"""The keys of a configuration's stream: which structures arrive, and when."""

from __future__ import annotations

from pydantic import field_validator, model_validator

from repmode_cl.config.common import Frozen
from repmode_cl.structures import check_structure_name

__all__ = ["StreamConfig"]


class StreamConfig(Frozen):
    """Which structures arrive, and when."""

    base: tuple[str, ...] = ()
    """Structures that are learned jointly first; empty starts with the first of `order` alone."""
    order: tuple[str, ...] | None = None
    """Structures that follow, one experience each; null takes the manifest's others in its order."""
    order_seed: int | None = None
    """Shuffle what follows the base with this seed."""
    order_file: str | None = None
    """Text file with one structure a line, in place of `order`."""

    @field_validator("base", "order")
    @classmethod
    def _names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            check_structure_name(name)
        return names

    @model_validator(mode="after")
    def _one_order(self) -> StreamConfig:
        if self.order is not None and self.order_file is not None:
            raise ValueError("give either order or order_file, not both")
        names = self.base + (self.order or ())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} named twice in base and order: a structure is learned once")
        return self
