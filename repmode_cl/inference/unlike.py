"""How unlike an image is to the training images, by the features of the network that predicts it.

At training, mean and spread of the channels of every block, averaged in groups, are taken in windows of the training
images. The deviation of a window's feature is its difference from the training windows' mean, over their standard
deviation. A window's distance is the root mean square of its deviations, over the groups of a block and then over the
blocks. For an image each deviation is first averaged over its windows: what differs between windows of one image
cancels, and what sets the whole image apart stays.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.inference.block_features import BlockFeatures
from repmode_cl.inference.windows import WindowGrid
from repmode_cl.nn.unet import UNet
from repmode_cl.store.reliability import BlockStatistics, FeatureStatistics

__all__ = [
    "ImageScore",
    "WindowScores",
    "WindowSums",
    "measure_features",
    "score_volume",
    "training_statistics",
]

#: Windows of training images that statistics are taken over, about at most: one of each image at least.
_MAX_WINDOWS = 256
#: Training images that are scored against the others at most, each by all of its windows, as a new image is: a mean
#: over fewer windows would be further away for that alone.
_MAX_SCORED = 20
#: More windows than any image has.
_ALL = 1 << 62
#: Windows computed at once while features are measured.
_BATCH = 4
#: Least spread of a feature over windows, as a part of the root mean square of its block's: a channel that is silent in
#: every training image has none.
_LEAST_SPREAD = 0.1
#: Significant digits that are stored.
_DIGITS = 4


@dataclass(frozen=True)
class ImageScore:
    """How unlike an image is to the training images.

    Attributes
    ----------
    score
        Distance of the image.
    largest
        Largest distance of a window.
    typical, limit
        Median and largest score of training images, each scored against the others; None where there was one, and
        where their windows had another size: features depend on it, by the zeros that a window's borders are padded
        with.
    other_window
        Voxels (z, y, x) of the training images' windows, where those of this image have another size.
    """

    score: float
    largest: float
    typical: float | None
    limit: float | None
    other_window: tuple[int, int, int] | None = None

    @property
    def unlike(self) -> bool | None:
        """True if it is further away than every training image; None where that is unknown."""
        # A score that is not finite is beyond every limit, and NaN compares false with all of them.
        return None if self.limit is None else not self.score <= self.limit

    @property
    def text(self) -> str:
        """In words, with the numbers."""
        if self.other_window is not None:
            size = " x ".join(map(str, self.other_window))
            return f"like the training images or not: unknown, as their windows were {size} voxels"
        if self.limit is None:
            return f"distance from the one training image {self.score:.2f}"
        like = "unlike the training images" if self.unlike else "like the training images"
        return f"{like} (distance {self.score:.2f}, theirs {self.typical:.2f}, at most {self.limit:.2f})"

    def to_json(self) -> dict[str, float | None]:
        """Return JSON values: score, largest, typical and limit."""
        return {"score": self.score, "largest": self.largest, "typical": self.typical, "limit": self.limit}

    @classmethod
    def of(cls, windows: WindowSums, statistics: FeatureStatistics, grid: WindowGrid) -> ImageScore:
        """Return the score of an image from the sums over its windows, those of `grid`."""
        score = windows.distance([len(block.mean) for block in statistics.blocks])
        if grid.size != WindowGrid(grid.shape, statistics.window, 0).size:
            return cls(score, windows.largest, None, None, statistics.window)
        return cls(score, windows.largest, statistics.typical, statistics.limit)


@dataclass
class WindowSums:
    """Sums over the windows of an image, taken window by window: the order decides the last bits.

    Attributes
    ----------
    count
        Windows.
    largest
        Largest distance of a window.
    deviations
        float64 (2, G): sum of the deviations of each feature; None before the first window.
    """

    count: int = 0
    largest: float = 0.0
    deviations: NDArray[np.float64] | None = None

    def add(self, distance: float, deviations: NDArray[np.float32]) -> None:
        """Add a window."""
        self.count += 1
        # NaN stays: it is no small distance.
        self.largest = float(np.maximum(self.largest, distance))
        own = deviations.astype(np.float64)
        with np.errstate(invalid="ignore"):
            self.deviations = own if self.deviations is None else self.deviations + own

    def distance(self, sizes: Sequence[int]) -> float:
        """Return the distance of the image, with so many groups in each block."""
        assert self.deviations is not None  # an image has a window
        squares = np.square(self.deviations / self.count).mean(axis=0)
        blocks = np.split(squares, np.cumsum(sizes)[:-1])
        return float(np.sqrt(np.mean([block.mean() for block in blocks])))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; `from_json` reads the same bits."""
        values = None
        if self.deviations is not None:
            values = [[_as_json(value) for value in row] for row in self.deviations.tolist()]
        return {"count": self.count, "largest": _as_json(self.largest), "deviations": values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> WindowSums:
        """Read the values of `to_json`."""
        sums = values["deviations"]
        deviations = (
            None if sums is None else np.array([[float(one) for one in row] for row in sums], np.float64)
        )
        return cls(values["count"], float(values["largest"]), deviations)


def _as_json(value: float) -> float | str:
    """Return a number as JSON has it, of which none is infinite or NaN: those become texts that `float` reads."""
    return value if math.isfinite(value) else repr(value)


class WindowScores:
    """A network that also scores each window against the training images; called like the network itself.

    Parameters
    ----------
    network
        A fused network.
    statistics
        Of the training images of its structure.
    device
        Of the network.

    Raises
    ------
    ModelError
        If the statistics are of another network.
    """

    def __init__(
        self, network: UNet, statistics: FeatureStatistics, device: str | torch.device = "cpu"
    ) -> None:
        self._features = BlockFeatures(network)
        blocks = tuple((block.name, len(block.mean)) for block in statistics.blocks)
        if blocks != self._features.blocks:
            raise ModelError(
                "the statistics of training features are of another network: put the model back from a copy"
            )
        self._score = _scorer(statistics.blocks, torch.device(device))
        self._pending: deque[tuple[Tensor, Tensor]] = deque()

    def __call__(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X), the network's output; the scores wait for `take`."""
        output = self._features(x)
        self._pending.append(self._score(self._features.features))
        return output

    def take(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the distances (N,) and deviations (N, 2, G) of the earliest batch that was not taken yet."""
        distances, deviations = self._pending.popleft()
        return distances.cpu().numpy(), deviations.cpu().numpy()


def _scorer(
    blocks: Sequence[BlockStatistics], device: torch.device
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function from features (N, 2, G) to distances (N,) and deviations (N, 2, G)."""
    centre = torch.tensor([[v for b in blocks for v in b.mean], [v for b in blocks for v in b.spread]])
    scale = torch.tensor(
        [[v for b in blocks for v in b.mean_spread], [v for b in blocks for v in b.spread_spread]]
    )
    sizes = [len(block.mean) for block in blocks]
    centre, scale = centre.to(device), scale.to(device)

    def score(features: Tensor) -> tuple[Tensor, Tensor]:
        deviations = (features - centre) / scale
        parts = torch.split(deviations.square().mean(dim=1), sizes, dim=1)
        distances = torch.stack([part.mean(dim=1) for part in parts], dim=1).mean(dim=1).sqrt()
        return distances, deviations

    return score


def measure_features(
    network: UNet,
    volume: NDArray[np.floating],
    *,
    window: Sequence[int],
    overlap: float,
    most: int = _MAX_WINDOWS,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Return the features of the windows of an image: float32 (windows, 2, groups), on the CPU.

    Parameters
    ----------
    network
        A fused network on `device`.
    volume
        (Z, Y, X), prepared as for training.
    window, overlap
        As of `WindowGrid`.
    most
        Windows that are measured at most, evenly chosen.
    device
        Of the network.
    """
    features = BlockFeatures(network)
    grid = WindowGrid(volume.shape, window, overlap)
    numbers = _evenly_chosen(len(grid), most)
    found = []
    for first in range(0, len(numbers), _BATCH):
        windows = [volume[grid[int(number)].slices] for number in numbers[first : first + _BATCH]]
        batch = torch.from_numpy(np.stack(windows)[:, None].astype(np.float32))
        with torch.no_grad():
            features(batch.to(device))
        found.append(features.features.cpu())
    return torch.cat(found)


def training_statistics(
    network: UNet,
    images: Mapping[Any, Sequence[NDArray[np.floating]]],
    *,
    window: Sequence[int],
    overlap: float,
    device: str | torch.device = "cpu",
) -> FeatureStatistics | None:
    """Return the statistics of a structure's training images; None where its network diverged and has none.

    Parameters
    ----------
    network
        Its fused network, on `device`.
    images
        Prepared volumes (Z, Y, X) by group: those of a group are parts of one field, and are left out together.
    window, overlap, device
        As of `measure_features`.
    """
    count = sum(len(volumes) for volumes in images.values())

    def measured(volume: NDArray[np.floating], most: int) -> Tensor:
        return measure_features(network, volume, window=window, overlap=overlap, most=most, device=device)

    most = max(1, _MAX_WINDOWS // count)
    features = [torch.cat([measured(one, most) for one in volumes]) for volumes in images.values()]
    together = torch.cat(features)
    if not bool(torch.isfinite(together).all()):
        return None
    blocks = BlockFeatures(network).blocks
    scores = []
    if len(features) > 1:
        each = max(1, _MAX_SCORED // len(features))
        sizes = [size for _, size in blocks]
        for number in _evenly_chosen(len(features), _MAX_SCORED):
            volumes = list(images.values())[number]
            statistics = _statistics(blocks, torch.cat([*features[:number], *features[number + 1 :]]))
            for place in _evenly_chosen(len(volumes), each):
                scores.append(_sums(measured(volumes[place], _ALL), statistics).distance(sizes))
    z, y, x = (int(size) for size in window)
    return FeatureStatistics(
        (z, y, x),
        count,
        len(together),
        _rounded(float(np.median(scores))) if scores else None,
        _rounded(max(scores)) if scores else None,
        _statistics(blocks, together),
    )


def _evenly_chosen(count: int, most: int) -> list[int]:
    """Return `most` of the numbers below `count` at most, the first and the last among them."""
    return [int(number) for number in np.unique(np.linspace(0, count - 1, min(most, count)).round())]


def _sums(features: Tensor, blocks: Sequence[BlockStatistics]) -> WindowSums:
    """Return the sums over windows of features (windows, 2, G)."""
    distances, deviations = _scorer(blocks, torch.device("cpu"))(features)
    sums = WindowSums()
    for distance, own in zip(distances.tolist(), deviations.numpy(), strict=True):
        sums.add(distance, own)
    return sums


def score_volume(
    network: UNet,
    volume: NDArray[np.floating],
    statistics: FeatureStatistics,
    *,
    window: Sequence[int],
    overlap: float,
    device: str | torch.device = "cpu",
) -> ImageScore:
    """Return how unlike a prepared volume (Z, Y, X) is to the training images; parameters as of `measure_features`."""
    features = measure_features(network, volume, window=window, overlap=overlap, most=_ALL, device=device)
    return ImageScore.of(
        _sums(features, statistics.blocks), statistics, WindowGrid(volume.shape, window, overlap)
    )


def _statistics(blocks: Sequence[tuple[str, int]], features: Tensor) -> tuple[BlockStatistics, ...]:
    """Return the statistics of features (windows, 2, G), rounded as they are stored."""
    centre, scale = features.double().mean(dim=0), features.double().std(dim=0, unbiased=False)
    result, first = [], 0
    for name, channels in blocks:
        part = slice(first, first + channels)
        own = scale[:, part]
        least = _LEAST_SPREAD * own.square().mean(dim=1, keepdim=True).sqrt()
        own = own.maximum(least).clamp(min=1e-6)
        columns = [centre[0, part], own[0], centre[1, part], own[1]]
        result.append(
            BlockStatistics(name, *(tuple(_rounded(v) for v in column.tolist()) for column in columns))
        )
        first += channels
    return tuple(result)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
