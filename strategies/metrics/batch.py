"""Figures of the batch that a strategy has just predicted: of its voxels together, and of each image."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.metrics import error_metrics, image_metrics
from repmode_cl.scenarios import structure_labels

__all__ = ["Unit", "VoxelSums", "batch_sums", "forget_batch", "batch_images"]

T = TypeVar("T")


class Unit(NamedTuple):
    """Unit that is learned, forgotten and averaged over: a task of an experience of an evaluated stream."""

    stream: str
    """Name of the evaluated stream: training's and testing's figures are never mixed."""
    experience: int
    """Number of the experience that was evaluated."""
    label: int | None
    """Task label; None where the benchmark has none."""
    named: bool
    """True if the label stands for a structure, which may come again in another experience."""

    @property
    def key(self) -> tuple[object, ...]:
        """Identity of this unit: the same for a structure wherever it is evaluated."""
        return (self.stream, self.label) if self.named else (self.stream, self.experience, self.label)


@dataclass(frozen=True)
class VoxelSums:
    """Moments of voxels, in float64, that can be merged: centred, so that no digits cancel.

    Attributes
    ----------
    count
        Voxels that count.
    mean_p, mean_y
        Means of prediction and target.
    squares_p, squares_y, products
        Sums of the squared deviations from these means, and of their products.
    squared_error, absolute_error
        Sums over the differences of prediction and target.
    low_p, high_p, low_y, high_y
        Ranges. The sum of squares of equal numbers can round to something above zero; a range cannot.
    """

    count: float = 0.0
    mean_p: float = 0.0
    mean_y: float = 0.0
    squares_p: float = 0.0
    squares_y: float = 0.0
    products: float = 0.0
    squared_error: float = 0.0
    absolute_error: float = 0.0
    low_p: float = math.inf
    high_p: float = -math.inf
    low_y: float = math.inf
    high_y: float = -math.inf

    def merged(self, other: VoxelSums) -> VoxelSums:
        """Return the moments of the voxels of both (Chan, Golub and LeVeque, The American Statistician 1983)."""
        if not other.count or not self.count:
            return self if self.count else other
        count = self.count + other.count
        p, y = other.mean_p - self.mean_p, other.mean_y - self.mean_y
        weight = self.count * other.count / count
        return VoxelSums(
            count,
            self.mean_p + p * other.count / count,
            self.mean_y + y * other.count / count,
            self.squares_p + other.squares_p + p * p * weight,
            self.squares_y + other.squares_y + y * y * weight,
            self.products + other.products + p * y * weight,
            self.squared_error + other.squared_error,
            self.absolute_error + other.absolute_error,
            min(self.low_p, other.low_p),
            max(self.high_p, other.high_p),
            min(self.low_y, other.low_y),
            max(self.high_y, other.high_y),
        )

    def metric(self, name: str) -> float:
        """Return one of the four metrics; NaN where it is undefined, or a voxel is not finite."""
        if not self.count or not math.isfinite(self.squares_p + self.squares_y + self.squared_error):
            return math.nan
        if name == "mse":
            return self.squared_error / self.count
        if name == "mae":
            return self.absolute_error / self.count
        if self.low_y == self.high_y or self.squares_y == 0.0:
            return math.nan
        if name == "r2":
            return 1.0 - self.squared_error / self.squares_y
        if self.low_p == self.high_p or self.squares_p == 0.0:
            return math.nan
        r = self.products / (math.sqrt(self.squares_p) * math.sqrt(self.squares_y))
        return min(1.0, max(-1.0, r))  # rounding can step outside


#: Kind of figure -> the output and target that it was last computed from, and the figure. Several metrics of one
#: evaluator ask for the same figures of large volumes.
_latest: dict[str, tuple[weakref.ref[Tensor], weakref.ref[Tensor], Any]] = {}


def forget_batch() -> None:
    """Forget the figures of the last batch; for before each forward pass, which may write into the same memory."""
    _latest.clear()


def _once(kind: str, output: Tensor, target: Tensor, compute: Callable[[], T]) -> T:
    kept = _latest.get(kind)
    if kept is not None and kept[0]() is output and kept[1]() is target:
        figure: T = kept[2]
        return figure
    figure = compute()
    _latest[kind] = (weakref.ref(output), weakref.ref(target), figure)
    return figure


def batch_sums(strategy: Any) -> VoxelSums:
    """Return the moments of the voxels that count in the strategy's batch."""
    output, target = _pair(strategy)
    return _once("sums", output, target, lambda: _sums(strategy, output, target))


def batch_images(strategy: Any, metric: str) -> list[tuple[Unit, float]]:
    """Return for each image of the strategy's batch what it belongs to, and its metric.

    Raises
    ------
    ImageError
        If the metric is undefined for an image; see `repmode_cl.metrics.image_metrics`.
    """
    output, target = _pair(strategy)
    # Errors are defined for a target that is the same everywhere, R2 and correlation are not.
    kind = "errors" if metric in ("mse", "mae") else "images"
    compute = error_metrics if kind == "errors" else image_metrics

    def figures() -> list[dict[str, float]]:
        images = []
        for item in range(len(target)):
            try:
                images.append(compute(*_arrays(strategy, output[item : item + 1], target[item : item + 1])))
            except ImageError as error:
                raise ImageError(f"{_place(strategy)}, image {item} of the batch: {error}") from error
        return images

    values = [image[metric] for image in _once(kind, output, target, figures)]
    return list(zip(_units(strategy, len(target)), values, strict=True))


def _pair(strategy: Any) -> tuple[Tensor, Tensor]:
    output, target = strategy.mb_output, strategy.mb_y
    for what, value in (("the model's output", output), ("the target", target)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise RepmodeError(
                f"{_place(strategy)}: {what} is {found}, and metrics of regression need floating-point tensors; "
                "for classes use Avalanche's own metrics"
            )
    return output, target


def _split(strategy: Any, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the target proper and which of its voxels count, both of the output's shape."""
    if target.shape == output.shape:
        return target, None
    single = target.dim() == output.dim() >= 3 and output.shape[1] == 1 and target.shape[1] == 2
    if not single or (len(target), *target.shape[2:]) != (len(output), *output.shape[2:]):
        raise RepmodeError(
            f"{_place(strategy)}: the model's output has shape {tuple(output.shape)}, the target "
            f"{tuple(target.shape)}: they must be equal, or the target have a second channel, its mask"
        )
    weight = target[:, 1:]
    if not bool(((weight == 0) | (weight == 1)).all()):
        raise RepmodeError(
            f"{_place(strategy)}: the output has one channel, so the second one of the target is its mask, but it "
            "holds other values than 0 and 1: let the model predict two channels, or pass a mask"
        )
    return target[:, :1], weight != 0


def _sums(strategy: Any, output: Tensor, target: Tensor) -> VoxelSums:
    output, target = output.detach(), target.detach().to(output.device)
    truth, counts = _split(strategy, output, target)
    if output.device.type == "mps":  # has no float64
        output, truth, counts = output.cpu(), truth.cpu(), None if counts is None else counts.cpu()
    predicted = output.double().flatten() if counts is None else output[counts].double()
    truth = truth.double().flatten() if counts is None else truth[counts].double()
    if not len(truth):
        return VoxelSums()
    means = predicted.mean(), truth.mean()
    p, y, error = predicted - means[0], truth - means[1], predicted - truth
    values = torch.stack(
        [
            *means, p.dot(p), y.dot(y), p.dot(y), error.dot(error), error.abs().sum(),
            *predicted.aminmax(), *truth.aminmax(),
        ]
    )  # fmt: skip
    return VoxelSums(float(len(truth)), *values.tolist())


def _arrays(strategy: Any, output: Tensor, target: Tensor) -> tuple[Any, Any, Any]:
    truth, counts = _split(strategy, output, target.to(output.device))
    return _array(output), _array(truth), None if counts is None else _array(counts)


def _array(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:  # numpy has none
        tensor = tensor.float()
    return tensor.detach().cpu().numpy()


def _units(strategy: Any, number: int) -> list[Unit]:
    """Return what each of the `number` images of the batch belongs to."""
    experience = strategy.experience
    labels = getattr(experience, "task_labels", None)
    # Without task labels, the last element of a batch is something else.
    if not labels:
        each: list[int | None] = [None] * number
    elif len(labels) == 1:
        each = [int(labels[0])] * number
    else:
        each = [int(label) for label in strategy.mb_task_id]
    named = structure_labels(experience) is not None
    stream, place = str(experience.origin_stream.name), int(experience.current_experience)
    return [Unit(stream, place, label, named) for label in each]


def _place(strategy: Any) -> str:
    experience = strategy.experience
    return f"{experience.origin_stream.name} stream, experience {experience.current_experience}"
