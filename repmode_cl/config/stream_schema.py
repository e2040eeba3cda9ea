"""The keys of a configuration's stream: which structures arrive, when, and with how many images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from repmode_cl.config.field_types import FrozenModel, Seed
from repmode_cl.structures import check_structure_name

__all__ = ["Arrangement", "StreamConfig"]

# Strict, because `true` would else be the number 1 beside a list.
Count = Annotated[int, Field(strict=True, ge=1)]
Arrangement = Literal["given", "easiest_first", "hardest_first"]


class StreamConfig(FrozenModel):
    """Which structures arrive, when, and with how many images.

    Lists of variants (`order_seeds`, `arrange`, `images`) make a stream of each, and of each combination.
    """

    base: tuple[str, ...] | Count = ()
    """Structures that are learned jointly first, or how many of the order; empty starts with the first of it alone."""
    order: tuple[str, ...] | None = None
    """Structures that follow, one experience each, some again; null takes the manifest's others in its order."""
    order_seed: Seed | None = None
    """Shuffle the order with this seed."""
    order_seeds: tuple[Seed, ...] | None = None
    """Shuffle the order with each of these seeds: a stream each."""
    order_file: str | None = None
    """Text file with one structure a line, in place of `order`."""
    arrange: Arrangement | tuple[Arrangement, ...] = "given"
    """Sort the order by difficulty, or leave it as given (or shuffled); a list makes a stream each."""
    difficulty: str | None = None
    """CSV of structure and r2 to sort by; null takes what was measured on the simulated structures."""
    images: Count | tuple[Count | None, ...] | None = None
    """Most training images of each structure after the base; a list makes a stream each, null takes all."""

    @property
    def arranged(self) -> tuple[Arrangement, ...]:
        """What `arrange` asks for, as a list."""
        return (self.arrange,) if isinstance(self.arrange, str) else self.arrange

    @field_validator("base", "order")
    @classmethod
    def _names(cls, names: tuple[str, ...] | int | None) -> tuple[str, ...] | int | None:
        if isinstance(names, tuple):
            for name in names:
                check_structure_name(name)
        return names

    @field_validator("order_seeds", "arrange", "images")
    @classmethod
    def _variants(cls, value: object) -> object:
        if isinstance(value, tuple):
            if not value:
                raise ValueError("the list is empty: name at least one, or leave the key out")
            if twice := _twice(value):
                raise ValueError(f"{', '.join(map(str, twice))} named twice: each makes a stream of its own")
        return value

    @model_validator(mode="after")
    def _one_order(self) -> StreamConfig:
        if self.order is not None and self.order_file is not None:
            raise ValueError("give either order or order_file, not both")
        if isinstance(self.base, tuple):
            if twice := _twice(self.base):
                raise ValueError(f"base: {', '.join(map(str, twice))} named twice in one experience")
            if again := [name for name in self.base if name in (self.order or ())]:
                raise ValueError(
                    f"{', '.join(again)} named in base and order: a structure of the base cannot come again, because "
                    "retraining it would make another base"
                )
        return self

    @model_validator(mode="after")
    def _one_arrangement(self) -> StreamConfig:
        if self.order_seed is not None and self.order_seeds is not None:
            raise ValueError("give either order_seed or order_seeds, not both")
        shuffled = "order_seeds" if self.order_seeds is not None else "order_seed"
        if getattr(self, shuffled) is not None and "given" not in self.arranged:
            raise ValueError(
                f"{shuffled} shuffles what arrange sorts: leave one out, or give arrange: [given, "
                f"{', '.join(self.arranged)}] for streams of both kinds"
            )
        if self.difficulty is not None and self.arranged == ("given",):
            raise ValueError(
                "difficulty is of use only with arrange easiest_first or hardest_first, and arrange is given"
            )
        return self


def _twice(values: Sequence[object]) -> list[object]:
    return [value for place, value in enumerate(values) if value in values[:place]]
