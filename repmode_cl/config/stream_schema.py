"""Keys of a configuration's stream: its structures, their order, and their numbers of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from repmode_cl.config.field_types import FrozenModel, Seed
from repmode_cl.structures import check_structure_name

__all__ = ["Arrangement", "StreamConfig"]

# Strict, because `true` would else be taken for the number 1 where a list is allowed too.
Count = Annotated[int, Field(strict=True, ge=1)]
Arrangement = Literal["given", "easiest_first", "hardest_first"]


class StreamConfig(FrozenModel):
    """Structures of a stream, their order, and their numbers of images.

    Lists of variants (`order_seeds`, `arrange`, `images`) make a stream of each, and of each combination.
    """

    base: tuple[str, ...] | Count = ()
    """Structures learned jointly first, or their number; empty starts with only the first of the order."""
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
    def arrangements(self) -> tuple[Arrangement, ...]:
        """Value of `arrange` as a list."""
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
            if duplicates := _duplicates(value):
                raise ValueError(f"{', '.join(map(str, duplicates))} named twice: each makes its own stream")
        return value

    @model_validator(mode="after")
    def _one_order(self) -> StreamConfig:
        if self.order is not None and self.order_file is not None:
            raise ValueError("give either order or order_file, not both")
        if isinstance(self.base, tuple):
            if duplicates := _duplicates(self.base):
                raise ValueError(f"base: {', '.join(map(str, duplicates))} named twice in one experience")
            if repeated := [name for name in self.base if name in (self.order or ())]:
                raise ValueError(
                    f"{', '.join(repeated)} named in base and order: a structure of the base cannot come again, "
                    "because retraining it would make another base"
                )
        return self

    @model_validator(mode="after")
    def _one_arrangement(self) -> StreamConfig:
        if self.order_seed is not None and self.order_seeds is not None:
            raise ValueError("give either order_seed or order_seeds, not both")
        shuffled = "order_seeds" if self.order_seeds is not None else "order_seed"
        if getattr(self, shuffled) is not None and "given" not in self.arrangements:
            raise ValueError(
                f"{shuffled} shuffles what arrange sorts: leave one out, or give arrange: [given, "
                f"{', '.join(self.arrangements)}] for streams of both kinds"
            )
        if self.difficulty is not None and self.arrangements == ("given",):
            raise ValueError(
                "difficulty is of use only with arrange easiest_first or hardest_first, and arrange is given"
            )
        return self


def _duplicates(values: Sequence[object]) -> list[object]:
    return [value for place, value in enumerate(values) if value in values[:place]]
