"""The keys of a strategy in a configuration: which one, and its options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from repmode_cl.config.common import ExpertSpec, Frozen, check_expert

__all__ = ["StrategyConfig"]


class StrategyConfig(Frozen):
    """One strategy of a benchmark."""

    name: Literal["experts_frozen", "fine_tuning", "multi_net"]
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,63}$")] | None = None
    """How tables name it; null makes one from the name and what differs from the default."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Of what comes after the base (multi_net: of every network); null takes training.learning_rate."""
    expert: ExpertSpec | Literal["none"] = "conv3"
    """experts_frozen: the fresh expert of each block."""
    sees: Literal["own", "all"] = "own"
    """experts_frozen: base and own expert, or those of all earlier additions too."""
    norm: Literal["own", "base"] = "own"
    """experts_frozen: own copies of every batch norm, or the base's, frozen."""
    resampling: Literal["own", "base"] = "own"
    """experts_frozen: own copies of the down and up layers, or the base's, frozen."""
    kernel: Literal[3, 5] = 3
    """multi_net: kernel size of the plain network."""

    @field_validator("expert")
    @classmethod
    def _expert(cls, expert: str) -> str:
        return expert if expert == "none" else check_expert(expert)

    @model_validator(mode="after")
    def _options_belong(self) -> StrategyConfig:
        for key, owner in {
            "expert": "experts_frozen",
            "sees": "experts_frozen",
            "norm": "experts_frozen",
            "resampling": "experts_frozen",
            "kernel": "multi_net",
        }.items():
            if key in self.model_fields_set and self.name != owner:
                raise ValueError(f"{key} is an option of {owner}, not of {self.name}")
        return self

    @property
    def title(self) -> str:
        """What tables and folders call it: `label`, or the name with the options that were given."""
        if self.label is not None:
            return self.label
        if self.name == "multi_net":
            return f"multi_net_k{self.kernel}"
        given = [
            str(getattr(self, key)).replace(":", "")
            for key in ("expert", "sees", "norm", "resampling")
            if getattr(self, key) != type(self).model_fields[key].default
        ]
        return "_".join([self.name, *given])
