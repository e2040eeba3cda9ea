"""MSE, MAE, R2 and Pearson's r as Avalanche's plugin metrics.

Of one batch or epoch of training they are computed over all its voxels together, because a patch may hold no contrast
and has no R2 then. In evaluation they are computed for each image and averaged over images, as in all tables of the
project (`repmode_cl.metrics`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import (
    default_metric_name_template,
    generic_get_metric_name,
    get_metric_name,
)

from repmode_cl.errors import RepmodeError, did_you_mean
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.strategies.metrics.batch import Unit, VoxelSums, batch_images, batch_sums, forget_batch

__all__ = [
    "RegressionMetric",
    "MinibatchRegression",
    "EpochRegression",
    "ExperienceRegression",
    "StreamRegression",
    "EvaluatedUnits",
    "checked_metric",
    "evaluation_value",
    "mse_metrics",
    "mae_metrics",
    "r2_metrics",
    "pearson_metrics",
    "TITLES",
]

#: Metric -> how its plugin metrics are called.
TITLES = {"mse": "MSE", "mae": "MAE", "r2": "R2", "pearson": "Pearson"}


def checked_metric(name: str) -> str:
    """Return `name` if there is such a metric.

    Raises
    ------
    RepmodeError
        If there is none: the message names the nearest.
    """
    if name not in HIGHER_IS_BETTER:
        nearest = did_you_mean(str(name), HIGHER_IS_BETTER)
        raise RepmodeError(f"there is no metric {name!r}: choose {', '.join(HIGHER_IS_BETTER)}{nearest}")
    return name


def evaluation_value(metric: Any, strategy: Any, unit: Unit | None, stream: str, value: float) -> MetricValue:
    """Return a value of evaluation as loggers take it, named after its unit, or after the stream as a whole."""
    about = {
        "metric_name": str(metric),
        "phase_name": "eval",
        "stream_name": stream,
        "task_label": None if unit is None else unit.label,
        "experience_id": None if unit is None else unit.experience,
    }
    name = generic_get_metric_name(default_metric_name_template, about)
    return MetricValue(metric, name, value, strategy.clock.train_iterations)


class EvaluatedUnits:
    """Values of the images of each unit, in the order of evaluation."""

    def __init__(self) -> None:
        self._values: dict[Unit, list[float]] = {}

    def add(self, images: list[tuple[Unit, float]]) -> None:
        """Add the images of a batch."""
        for unit, value in images:
            self._values.setdefault(unit, []).append(value)

    def means(self) -> dict[Unit, float]:
        """Return the mean over the images of each unit."""
        return {unit: math.fsum(values) / len(values) for unit, values in self._values.items()}

    def distinct(self) -> dict[Unit, float]:
        """Return these means with each structure once, of the first experience that shows it."""
        first: dict[tuple[object, ...], tuple[Unit, float]] = {}
        for unit, value in self.means().items():
            first.setdefault(unit.key, (unit, value))
        return dict(first.values())


class RegressionMetric(PluginMetric[float]):
    """Base of plugin metrics of regression.

    Parameters
    ----------
    metric
        ``mse``, ``mae``, ``r2`` or ``pearson``.

    Raises
    ------
    RepmodeError
        If there is no such metric.
    """

    level = ""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.metric = checked_metric(metric)
        self.reset()

    def __str__(self) -> str:
        return f"{TITLES[self.metric]}_{self.level}"

    @abstractmethod
    def reset(self) -> None:
        """Forget what was measured."""

    @abstractmethod
    def result(self) -> float:
        """Return the value so far; NaN where there is none."""

    def before_forward(self, strategy: Any) -> None:
        """Forget the figures of the last batch."""
        forget_batch()

    def before_eval_forward(self, strategy: Any) -> None:
        """Forget the figures of the last batch."""
        forget_batch()


class _OfTraining(RegressionMetric):
    """Of the voxels of training batches together.

    Counted after each forward pass and not after each step: with accumulated gradients a step has several.
    """

    def reset(self) -> None:
        self.sums = VoxelSums()

    def result(self) -> float:
        return self.sums.metric(self.metric)

    def after_forward(self, strategy: Any) -> None:
        """Count the voxels of the batch."""
        self.sums = self.sums.merged(batch_sums(strategy))

    def _package(self, strategy: Any) -> list[MetricValue]:
        name = get_metric_name(self, strategy)
        return [MetricValue(self, name, self.result(), strategy.clock.train_iterations)]


class MinibatchRegression(_OfTraining):
    """Metric of each training step: over the voxels of its batch; where several processes train, of this one's share.

    NaN where it is undefined: R2 and Pearson's r of a batch without contrast, all of one that is masked out.
    """

    level = "MB"

    def before_training_iteration(self, strategy: Any) -> None:
        """Start a batch."""
        self.reset()

    def after_training_iteration(self, strategy: Any) -> list[MetricValue]:
        """Return the value of the batch."""
        return self._package(strategy)


class EpochRegression(_OfTraining):
    """Metric of each training epoch: over the voxels of all its batches, as predicted while weights were changing."""

    level = "Epoch"

    def before_training_epoch(self, strategy: Any) -> None:
        """Start an epoch."""
        self.reset()

    def after_training_epoch(self, strategy: Any) -> list[MetricValue]:
        """Return the value of the epoch."""
        return self._package(strategy)


class _OfEvaluation(RegressionMetric):
    """Of each evaluated image, averaged over images."""

    def reset(self) -> None:
        self.evaluated = EvaluatedUnits()

    def result(self) -> float:
        """Return the mean over all units that were evaluated; NaN where there is none."""
        values = self.evaluated.distinct().values()
        return math.fsum(values) / len(values) if values else math.nan

    def after_eval_iteration(self, strategy: Any) -> None:
        """Measure the images of the batch."""
        self.evaluated.add(batch_images(strategy, self.metric))


class ExperienceRegression(_OfEvaluation):
    """Metric of each evaluated experience, one value for each of its tasks: the mean over that task's images."""

    level = "Exp"

    def before_eval_exp(self, strategy: Any) -> None:
        """Start an experience."""
        self.reset()

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Return the values of the experience."""
        return [
            evaluation_value(self, strategy, unit, unit.stream, value)
            for unit, value in self.evaluated.means().items()
        ]


class StreamRegression(_OfEvaluation):
    """Metric of each evaluated stream: the mean over its experiences and their tasks, each counting the same."""

    level = "StreamMean"

    def before_eval(self, strategy: Any) -> None:
        """Start a stream."""
        self.reset()

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Return the value of each stream."""
        return stream_means(self, strategy, self.evaluated.distinct())


def stream_means(metric: Any, strategy: Any, values: dict[Unit, float]) -> list[MetricValue]:
    """Return the mean of the values of each stream, as loggers take it."""
    streams: dict[str, list[float]] = {}
    for unit, value in values.items():
        streams.setdefault(unit.stream, []).append(value)
    return [
        evaluation_value(metric, strategy, None, stream, math.fsum(each) / len(each))
        for stream, each in streams.items()
    ]


def _chosen(metric: str, levels: dict[type[RegressionMetric], bool]) -> list[RegressionMetric]:
    chosen = [kind(metric) for kind, wanted in levels.items() if wanted]
    if not chosen:
        raise RepmodeError(
            f"{metric}_metrics measures nothing: set minibatch, epoch, experience or stream to True"
        )
    return chosen


def mse_metrics(
    *, minibatch: bool = False, epoch: bool = False, experience: bool = False, stream: bool = False
) -> list[RegressionMetric]:
    """Make plugin metrics of the mean squared error, for Avalanche's `EvaluationPlugin`.

    Parameters
    ----------
    minibatch, epoch
        Over the voxels of each training batch, and of each training epoch.
    experience
        For each evaluated experience and task: the mean over its images.
    stream
        For each evaluation: the mean over the experiences (and tasks) that were evaluated.

    Raises
    ------
    RepmodeError
        If nothing is chosen.

    Notes
    -----
    Targets have the shape of the model's output, or a second channel that is a mask of 0 and 1, as in the streams of
    `repmode_cl.scenarios`: masked voxels do not count.
    """
    return _chosen("mse", _levels(minibatch, epoch, experience, stream))


def mae_metrics(
    *, minibatch: bool = False, epoch: bool = False, experience: bool = False, stream: bool = False
) -> list[RegressionMetric]:
    """Make plugin metrics of the mean absolute error; see `mse_metrics`."""
    return _chosen("mae", _levels(minibatch, epoch, experience, stream))


def r2_metrics(
    *, minibatch: bool = False, epoch: bool = False, experience: bool = False, stream: bool = False
) -> list[RegressionMetric]:
    """Make plugin metrics of R2, the coefficient of determination; see `mse_metrics`.

    It is 1 - MSE / variance of the target, and negative where the target's mean would predict better. An evaluated
    image without contrast has none, and is an `ImageError`.
    """
    return _chosen("r2", _levels(minibatch, epoch, experience, stream))


def pearson_metrics(
    *, minibatch: bool = False, epoch: bool = False, experience: bool = False, stream: bool = False
) -> list[RegressionMetric]:
    """Make plugin metrics of Pearson's correlation; see `mse_metrics`.

    An evaluated image without contrast has none, and is an `ImageError`; a constant prediction gives NaN.
    """
    return _chosen("pearson", _levels(minibatch, epoch, experience, stream))


def _levels(
    minibatch: bool, epoch: bool, experience: bool, stream: bool
) -> dict[type[RegressionMetric], bool]:
    return {
        MinibatchRegression: minibatch,
        EpochRegression: epoch,
        ExperienceRegression: experience,
        StreamRegression: stream,
    }
