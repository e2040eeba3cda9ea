"""The shape of a network and of its additions, as plain values that a model directory holds as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

__all__ = ["AdditionSpec", "Architecture", "smallest_size"]

PAPER_EXPERTS = ("conv5", "conv3", "conv1", "avg3", "avg5")


def smallest_size(depth: int) -> int:
    """Return the fewest voxels an axis may have.

    An axis is padded by reflection to a multiple of 2^depth, half on each side, and a reflection cannot be
    longer than the axis less one.
    """
    return -(-((1 << depth) + 2) // 3)


@dataclass(frozen=True)
class Architecture:
    """Shape of a RepMode U-Net (paper, section 3.2 and appendix A).

    Parameters
    ----------
    width
        Channels of the first level; they double with each level.
    depth
        Number of times the resolution is halved.
    experts
        Shared experts of each MoDE block, in the order of the gate's rows.
    """

    width: int = 32
    depth: int = 4
    experts: tuple[str, ...] = PAPER_EXPERTS

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"width and depth are at least 1, not {self.width} and {self.depth}")
        if not self.experts or len(set(self.experts)) < len(self.experts):
            raise ValueError(f"experts: at least one, and none twice, not {list(self.experts)}")

    def channels(self, level: int) -> int:
        """Return the channels of `level`: `width` at 0, the bottleneck's at `depth`."""
        return self.width << level

    @property
    def smallest_size(self) -> int:
        """Fewest voxels that a volume may have along an axis."""
        return smallest_size(self.depth)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; `from_json` reads them back."""
        return {"width": self.width, "depth": self.depth, "experts": list(self.experts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Architecture:
        """Read the values that `to_json` returns."""
        return cls(int(values["width"]), int(values["depth"]), tuple(values["experts"]))


@dataclass(frozen=True)
class AdditionSpec:
    """How a structure is added to a frozen network (paper, section 4.4 and Fig. 8).

    Parameters
    ----------
    expert
        Fresh expert of each MoDE block: ``conv3`` (the paper's), ``conv1``, ``conv5``, ``lowrank:R``, or ``none``.
    sees
        ``own``: the gate row mixes the base's experts and the fresh one. ``all``: those of all earlier additions too.
    norm
        ``own``: its own copy of every batch norm of the network. ``base``: the base's, frozen.
    resampling
        ``own``: it has its own copies of the down and up layers. ``base``: it uses the base's, frozen.
    needs
        Additions whose experts it sees, in the order of the gate's rows; filled in when the structure is added.
    """

    expert: str = "conv3"
    sees: Literal["own", "all"] = "own"
    norm: Literal["own", "base"] = "own"
    resampling: Literal["own", "base"] = "own"
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, allowed in {
            "sees": ("own", "all"),
            "norm": ("own", "base"),
            "resampling": ("own", "base"),
        }.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} is {' or '.join(allowed)}, not {getattr(self, key)!r}")
        if self.sees == "own" and self.needs:
            raise ValueError(
                f"an addition that sees only its own expert needs no other addition, not {list(self.needs)}"
            )

    @property
    def text(self) -> str:
        """The choices where they differ from the default, in words: ``lowrank:4, sees all``."""
        parts = [self.expert]
        if self.sees == "all":
            parts.append(f"sees {', '.join(self.needs) or 'all'}")
        parts += [f"base's {part}" for part in ("norm", "resampling") if getattr(self, part) == "base"]
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; `from_json` reads them back."""
        return asdict(self) | {"needs": list(self.needs)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AdditionSpec:
        """Read the values that `to_json` returns."""
        return cls(
            expert=str(values["expert"]),
            sees=cast(Literal["own", "all"], values["sees"]),
            norm=cast(Literal["own", "base"], values["norm"]),
            resampling=cast(Literal["own", "base"], values["resampling"]),
            needs=tuple(values["needs"]),
        )
