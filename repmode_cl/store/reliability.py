"""Records by which a user can tell how far to trust a structure's predictions: of training features, and of intervals.

Both are small, are made when a structure is stored, and are optional parts of its entry. They change no prediction:
no digest of tensors covers them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repmode_cl.nn import RepModeUNet

__all__ = [
    "BlockStatistics",
    "Calibration",
    "FeatureStatistics",
    "Reliability",
    "CLAIMED_FROM",
    "feature_groups",
]

#: Fewest groups of calibration images with which a coverage is claimed.
CLAIMED_FROM = 19

#: Limits on what a pack's file may state.
_MAX_BLOCKS, _MAX_LEVELS = 256, 32
#: Groups that the channels of a block are averaged in at most: with more, statistics are larger and no better.
_GROUPS = 8


def feature_groups(channels: int) -> int:
    """Return the number of groups that the channels of a block are averaged in."""
    return min(channels, _GROUPS)


@dataclass(frozen=True)
class BlockStatistics:
    """Statistics of the output of one block of the fused network, over windows of training images.

    Parameters
    ----------
    name
        The block.
    mean, mean_spread
        Of each group of channels: mean over windows of the channels' mean in a window, and its standard deviation. Of
        G groups, channel c belongs to group c modulo G.
    spread, spread_spread
        Likewise of the channels' standard deviation in a window.
    """

    name: str
    mean: tuple[float, ...]
    mean_spread: tuple[float, ...]
    spread: tuple[float, ...]
    spread_spread: tuple[float, ...]

    def __post_init__(self) -> None:
        columns = (self.mean, self.mean_spread, self.spread, self.spread_spread)
        if len({len(column) for column in columns}) != 1 or not 1 <= len(self.mean) <= _GROUPS:
            raise ValueError(f"statistics of the block {self.name!r} are not four numbers for each group")
        if min(*self.mean_spread, *self.spread_spread) <= 0:
            raise ValueError(f"a spread over windows of the block {self.name!r} is not above 0")


@dataclass(frozen=True)
class FeatureStatistics:
    """Features of a structure's fused network on its training images, against which other images are scored.

    Parameters
    ----------
    window
        Voxels (z, y, x) of the windows.
    images, windows
        Training images, and windows of them.
    typical, limit
        Median and largest score of training images, each left out, with its group, of the statistics that it is scored
        against; None where there was only one.
    blocks
        Of each block, from input to output.
    """

    window: tuple[int, int, int]
    images: int
    windows: int
    typical: float | None
    limit: float | None
    blocks: tuple[BlockStatistics, ...]

    def __post_init__(self) -> None:
        if len(self.window) != 3 or min(*self.window, self.images, self.windows) < 1:
            raise ValueError("a window, images and windows are at least 1")
        if (self.typical is None) != (self.limit is None) or not 1 <= len(self.blocks) <= _MAX_BLOCKS:
            raise ValueError(
                "a typical score and its limit belong together, and at least one block is needed"
            )
        if self.typical is not None and self.limit is not None and not 0 < self.typical <= self.limit:
            raise ValueError(f"the typical score {self.typical} and its limit {self.limit} are not in order")

    def check_network(self, network: RepModeUNet) -> None:
        """Refuse statistics of other blocks or groups than a network has (ValueError)."""
        blocks = [(name, feature_groups(block.c_out)) for name, block in network.named_mode_blocks()]
        if [(block.name, len(block.mean)) for block in self.blocks] != blocks:
            raise ValueError("its statistics of training features are of a network with other blocks")

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; `from_json` reads them back."""
        return {
            "window": list(self.window),
            "images": self.images,
            "windows": self.windows,
            "typical": self.typical,
            "limit": self.limit,
            "blocks": [[block.name, *(list(column) for column in _columns(block))] for block in self.blocks],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FeatureStatistics:
        """Read the values that `to_json` returns; ValueError or TypeError if they are others."""
        z, y, x = (_integer(size) for size in values["window"])
        return cls(
            (z, y, x),
            _integer(values["images"]),
            _integer(values["windows"]),
            None if values["typical"] is None else _number(values["typical"]),
            None if values["limit"] is None else _number(values["limit"]),
            tuple(_block(values) for values in values["blocks"]),
        )


@dataclass(frozen=True)
class Calibration:
    """Calibration of intervals about a structure's prediction, on held-out images.

    The half-width of the interval of a voxel is ``factor * (spread + floor)``, with the spread of the predictions of
    its flipped windows.

    Parameters
    ----------
    images, split
        Held-out images, and whether they were ``test`` or ``val``.
    flips
        Axes (of z, y, x) that windows are flipped on.
    floor
        Added to the spread, in z-score units.
    factors
        Coverage and factor, both increasing.
    groups
        Groups of the images, such as fields of which they are parts: each counted equally. None of a record of before
        groups were counted, in which each image counted by itself.
    """

    images: int
    split: str
    flips: tuple[str, ...]
    floor: float
    factors: tuple[tuple[float, float], ...]
    groups: int | None = None

    def __post_init__(self) -> None:
        levels, factors = [level for level, _ in self.factors], [factor for _, factor in self.factors]
        if self.images < 1 or self.split not in ("test", "val") or not self.floor > 0:
            raise ValueError("a calibration states its images, test or val, and a floor above 0")
        if self.groups is not None and not 1 <= self.groups <= self.images:
            raise ValueError(f"{self.images} images are of 1 to {self.images} groups, not {self.groups}")
        if [axis for axis in "zyx" if axis in self.flips] != list(self.flips):
            raise ValueError(f"flips are axes of z, y, x, not {self.flips}")
        if not 1 <= len(levels) <= _MAX_LEVELS or not 0 < min(levels) <= max(levels) < 1 or min(factors) <= 0:
            raise ValueError("coverages lie between 0 and 1, and factors are above 0")
        if sorted(set(levels)) != levels or sorted(factors) != factors:
            raise ValueError("coverages and factors increase")

    @property
    def independent(self) -> int:
        """Number of what was counted equally: groups, or images where each counted by itself."""
        return self.images if self.groups is None else self.groups

    @property
    def claims(self) -> bool:
        """True if there were enough groups to claim a coverage."""
        return self.independent >= CLAIMED_FROM

    def factor(self, level: float) -> float:
        """Return the factor of a coverage; KeyError if it is none of `factors`."""
        return dict(self.factors)[level]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; `from_json` reads them back."""
        return {
            "images": self.images,
            "split": self.split,
            "flips": list(self.flips),
            "floor": self.floor,
            "factors": [list(pair) for pair in self.factors],
        } | ({} if self.groups is None else {"groups": self.groups})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """Read the values that `to_json` returns; ValueError or TypeError if they are others."""
        return cls(
            _integer(values["images"]),
            _text(values["split"]),
            tuple(_text(axis) for axis in values["flips"]),
            _number(values["floor"]),
            tuple((_number(level), _number(factor)) for level, factor in values["factors"]),
            _integer(values["groups"]) if "groups" in values else None,
        )


@dataclass(frozen=True)
class Reliability:
    """What is stored with a structure, besides its figures, so that a user can tell how far to trust it.

    Parameters
    ----------
    features
        Of its training images; None where it was stored without images.
    calibration
        Of intervals; None where no image was held out.
    """

    features: FeatureStatistics | None = None
    calibration: Calibration | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values without what is absent; `from_json` reads them back."""
        parts = {"features": self.features, "calibration": self.calibration}
        return {key: part.to_json() for key, part in parts.items() if part is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reliability:
        """Read the values that `to_json` returns; KeyError, ValueError or TypeError if they are others."""
        features, calibration = values.get("features"), values.get("calibration")
        return cls(
            None if features is None else FeatureStatistics.from_json(features),
            None if calibration is None else Calibration.from_json(calibration),
        )


def _columns(block: BlockStatistics) -> tuple[tuple[float, ...], ...]:
    return block.mean, block.mean_spread, block.spread, block.spread_spread


def _block(values: Sequence[Any]) -> BlockStatistics:
    name, *columns = values
    mean, mean_spread, spread, spread_spread = (
        tuple(_number(value) for value in column) for column in columns
    )
    return BlockStatistics(_text(name), mean, mean_spread, spread, spread_spread)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _integer(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no whole number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 64:
        raise ValueError(f"{value!r} is no short text")
    return value
