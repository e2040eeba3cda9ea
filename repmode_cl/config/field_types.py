"""Types of fields that all sections of a configuration share: frozen models, positive numbers, names of experts."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

__all__ = [
    "ExpertSpec",
    "FrozenModel",
    "GrownModel",
    "Positive",
    "Seed",
    "check_expert",
    "check_fresh_expert",
]

_EXPERT = re.compile(r"conv[135]|avg[35]|lowrank:[1-9][0-9]{0,3}")
_RANKS = re.compile(r"lowrank:(0|[1-9][0-9]{0,3})(,(0|[1-9][0-9]{0,3}))+")


def check_expert(spec: str) -> str:
    """Return `spec` if it names an expert: conv1, conv3, conv5, avg3, avg5 or lowrank:R."""
    if not _EXPERT.fullmatch(spec):
        raise ValueError(
            f"{spec!r} is no expert: choose conv1, conv3, conv5, avg3, avg5 or lowrank:R with a rank R"
        )
    return spec


def check_fresh_expert(spec: str) -> str:
    """Return `spec` if it names the expert of an addition: as `check_expert`, lowrank:R0,R1,... by level, or none."""
    if spec == "none" or _RANKS.fullmatch(spec):
        return spec
    try:
        return check_expert(spec)
    except ValueError as error:
        raise ValueError(f"{error}, lowrank:R0,R1,... with a rank for each level, or none") from error


ExpertSpec = Annotated[str, Field(description="conv1, conv3, conv5, avg3, avg5 or lowrank:R")]
Positive = Annotated[int, Field(ge=1)]
#: Range of seeds that every random generator accepts. Strict, because `true` would else be the number 1.
Seed = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]


class FrozenModel(BaseModel):
    """Base of all sections: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GrownModel(FrozenModel):
    """A section that later versions added keys to.

    What is written leaves these out where they have their defaults, so that runs and models of before are continued as
    they are, and earlier versions read what they know.
    """

    #: Keys that later versions added.
    later_keys: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        fields = type(self).model_fields
        defaults = {key for key in self.later_keys if getattr(self, key) == fields[key].default}
        return {key: value for key, value in values.items() if key not in defaults - self.always_written()}

    def always_written(self) -> frozenset[str]:
        """Return the keys that are written at their defaults too, because leaving them out means something else."""
        return frozenset()
