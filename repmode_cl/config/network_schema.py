"""Keys of the network in a configuration, and those that a strategy sets for itself."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from repmode_cl.config.field_types import ExpertSpec, FrozenModel, GrownModel, Positive, check_expert

__all__ = ["NetworkConfig", "NetworkOverride"]

Depth = Annotated[int, Field(ge=1, le=6)]
Scope = Literal["both", "encoder", "decoder"]
Gating = Literal["softmax", "sigmoid"]
Embedding = Literal["onehot", "gauss"]
Gate = Literal["linear", "two_layer", "input"]


class NetworkConfig(GrownModel):
    """The U-Net that every strategy shares (paper, section 3.2)."""

    later_keys: ClassVar[tuple[str, ...]] = ("scope", "gating", "embedding", "gate")

    width: Positive = 32
    """Channels of the first level; they double with each of the `depth` levels."""
    depth: Depth = 4
    """Number of times the resolution is halved."""
    experts: tuple[ExpertSpec, ...] = ("conv5", "conv3", "conv1", "avg3", "avg5")
    """Shared experts of each MoDE block; one may be repeated, such as [conv1, conv1, conv3]."""
    scope: Scope = "both"
    """Blocks that are MoDE blocks: both, encoder (with bottleneck) or decoder; the others are plain convolutions."""
    gating: Gating = "softmax"
    """Weights of the experts from their logits: softmax, or the sigmoid of each."""
    embedding: Embedding = "onehot"
    """What the gates' layers read of a structure: a one-hot, or gauss, a fixed vector of normal numbers."""
    gate: Gate = "linear"
    """Layers of the gates: linear (a free row for each structure of the base), two_layer, or input: of the image."""

    @field_validator("experts")
    @classmethod
    def _experts(cls, experts: tuple[str, ...]) -> tuple[str, ...]:
        if not experts:
            raise ValueError("at least one expert is needed")
        return tuple(check_expert(spec) for spec in experts)

    @model_validator(mode="after")
    def _gate_reads_a_structure(self) -> NetworkConfig:
        if self.gate == "input" and self.embedding != "onehot":
            raise ValueError("embedding is gauss, and gate is input, which reads no structure: leave one out")
        return self


class NetworkOverride(FrozenModel):
    """Keys of `network` for which one strategy has its own values; null takes those of the section."""

    width: Positive | None = None
    depth: Depth | None = None
    experts: tuple[ExpertSpec, ...] | None = None
    scope: Scope | None = None
    gating: Gating | None = None
    embedding: Embedding | None = None
    gate: Gate | None = None

    def applied_to(self, network: NetworkConfig) -> NetworkConfig:
        """Return the section with these keys.

        Raises
        ------
        ValueError
            If they do not go together.
        """
        own = {key: value for key, value in dict(self).items() if value is not None}
        try:
            return NetworkConfig.model_validate({**dict(network), **own})
        except ValidationError as error:
            raise ValueError("; ".join(str(problem["msg"]) for problem in error.errors())) from error
