"""Forgetting, backward and forward transfer of any metric of regression, as Avalanche's plugin metrics.

Signs are those of `repmode_cl.evaluation`, for metrics of either direction: forgetting above 0 is worse, transfer above
0 is better. Nothing is padded with zeros or clipped.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from avalanche.evaluation.metric_results import MetricValue

from repmode_cl.errors import RepmodeError, did_you_mean
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.strategies.metrics.batch import Unit, batch_images
from repmode_cl.strategies.metrics.regression import (
    TITLES,
    EvaluatedUnits,
    RegressionMetric,
    checked_metric,
    evaluation_value,
    stream_means,
)

__all__ = ["TransferMetric", "forgetting_of", "bwt_of", "forward_transfer_of", "DEFINITIONS"]

#: Definitions of forgetting: from the best value since a task was learned (Chaudhry et al., ECCV 2018), or from the one
#: just after that (the negative of Gem's backward transfer).
DEFINITIONS = ("from_best", "from_learning")


@dataclass
class _History:
    """Record of what was trained, and of each unit's value after each training.

    Row 0 is before any training, row k after the k-th experience that was trained.
    """

    trained: list[tuple[int, frozenset[int]]] = field(default_factory=list)
    rows: dict[int, dict[tuple[object, ...], float]] = field(default_factory=dict)
    training: bool = False
    knows_what_it_predicts: bool = False
    """True if what is evaluated is known: a model that was loaded, or given a trained base, was not seen training."""

    def begin(self, experience: Any) -> None:
        labels = getattr(experience, "task_labels", None) or ()
        self.trained.append((int(experience.current_experience), frozenset(int(label) for label in labels)))
        self.training = True

    def learned(self, unit: Unit) -> list[int]:
        """Return the rows from which on a unit was known: those after the trainings that taught it."""
        taught = [
            number
            for number, (experience, labels) in enumerate(self.trained, start=1)
            if (unit.label in labels if unit.named else unit.experience == experience)
        ]
        if not taught and self.knows_what_it_predicts:
            return sorted(row for row, values in self.rows.items() if unit.key in values)[:1]
        return taught

    def value(self, row: int, unit: Unit) -> float:
        return self.rows.get(row, {}).get(unit.key, math.nan)

    def keep(self, unit: Unit, value: float) -> None:
        """Keep a value; not of the middle of a training, which is no row."""
        if not self.training:
            self.rows.setdefault(len(self.trained), {})[unit.key] = value


class TransferMetric(RegressionMetric):
    """Base of metrics that compare evaluations after several trainings.

    Parameters
    ----------
    metric
        ``mse``, ``mae``, ``r2`` or ``pearson``.
    per_stream
        Report the mean over the experiences and tasks instead of each.
    """

    title = ""
    suffix = ""

    def __init__(self, metric: str, *, per_stream: bool) -> None:
        self.per_stream = per_stream
        super().__init__(metric)
        self.sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0

    def __str__(self) -> str:
        # Avalanche's CSVLogger finds its column "forgetting" by the beginning of the name.
        level = "StreamMean" if self.per_stream else "Experience"
        return f"{level}{self.title}_{TITLES[self.metric]}{self.suffix}"

    def reset(self) -> None:
        """Forget the evaluation, and all earlier ones."""
        self.history = _History()
        self._restart()

    def _restart(self) -> None:
        self.values: dict[Unit, float] = {}
        self._seen: set[tuple[object, ...]] = set()
        self.evaluated = EvaluatedUnits()

    def result(self) -> float:
        """Return the mean over the units of the last evaluation that have a value; NaN where none has."""
        return math.fsum(self.values.values()) / len(self.values) if self.values else math.nan

    @abstractmethod
    def of_unit(self, unit: Unit, value: float) -> float | None:
        """Return the measure of a unit whose value now is `value`; None where there is nothing to compare."""

    def before_training_exp(self, strategy: Any) -> None:
        """Note what is trained."""
        self.history.begin(strategy.experience)

    def after_training_exp(self, strategy: Any) -> None:
        """Note that the training is complete: evaluations from here on are of its result."""
        self.history.training = False

    def before_eval(self, strategy: Any) -> None:
        """Start an evaluation."""
        self._restart()
        self.history.knows_what_it_predicts = not getattr(strategy, "predicts_unseen", True)

    def before_eval_exp(self, strategy: Any) -> None:
        """Start an experience."""
        self.evaluated = EvaluatedUnits()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Measure the images of the batch."""
        self.evaluated.add(batch_images(strategy, self.metric))

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Keep the experience's values, and return the measures of its units."""
        reported = []
        for unit, value in self.evaluated.means().items():
            if unit.key in self._seen:  # a structure that came again: its first experience counts
                continue
            self._seen.add(unit.key)
            measure = self.of_unit(unit, value)
            self.history.keep(unit, value)
            if measure is not None:
                self.values[unit] = measure
                reported.append(evaluation_value(self, strategy, unit, unit.stream, measure))
        return [] if self.per_stream else reported

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Return the mean of each stream."""
        return stream_means(self, strategy, self.values) if self.per_stream else []


class Forgetting(TransferMetric):
    """Loss of a task since it was (last) learned; above 0 is worse."""

    title = "Forgetting"

    def __init__(self, metric: str, *, per_stream: bool, definition: str) -> None:
        self.definition = definition
        self.suffix = f"_{definition}"
        super().__init__(metric, per_stream=per_stream)

    def of_unit(self, unit: Unit, value: float) -> float | None:
        """Return the best earlier value or the one just after learning, minus the present one."""
        trained, learned = len(self.history.trained), self.history.learned(unit)
        if not learned or learned[-1] == trained:  # unknown, or no time to be forgotten
            return None
        until = learned[-1] + 1 if self.definition == "from_learning" else trained
        earlier = [self.sign * self.history.value(row, unit) for row in range(learned[-1], until)]
        known = [each for each in earlier if not math.isnan(each)]
        return max(known) - self.sign * value if known else math.nan


class BackwardTransfer(TransferMetric):
    """Gain of a task by later learning, since it was (last) learned; above 0 is better."""

    title = "BWT"

    def of_unit(self, unit: Unit, value: float) -> float | None:
        """Return the present value, minus the one just after learning."""
        learned = self.history.learned(unit)
        if not learned or learned[-1] == len(self.history.trained):
            return None
        return self.sign * (value - self.history.value(learned[-1], unit))


class ForwardTransfer(TransferMetric):
    """Gain of a task by earlier learning, before it was learned; above 0 is better."""

    title = "ForwardTransfer"

    def of_unit(self, unit: Unit, value: float) -> float | None:
        """Return the value just before the task was first learned, minus the one before any training."""
        learned = self.history.learned(unit)
        if not learned or learned[0] == 1:
            return None
        return self.sign * (self.history.value(learned[0] - 1, unit) - self.history.value(0, unit))

    def before_training_exp(self, strategy: Any) -> None:
        """Refuse a strategy that cannot be measured, before time is spent on training it."""
        self._check_predicts_unknown(strategy)
        if not self.history.trained and not self.history.rows:
            raise RepmodeError(
                f"{self}: forward transfer starts from the untrained model, and nothing was evaluated before this "
                "training: call strategy.eval(benchmark.test_stream) first"
            )
        super().before_training_exp(strategy)

    def before_eval(self, strategy: Any) -> None:
        """Refuse a strategy that cannot be measured."""
        self._check_predicts_unknown(strategy)
        super().before_eval(strategy)

    def _check_predicts_unknown(self, strategy: Any) -> None:
        if not getattr(strategy, "predicts_unseen", True):
            raise RepmodeError(
                f"{self}: this forward transfer evaluates a task before it is learned, and {type(strategy).__name__} "
                "predicts no structure that it does not know, by design: leave it out, or compare with a separate "
                "network for each structure (multi_net, repmode_cl.evaluation.forward_transfer)"
            )


def _levels(what: str, experience: bool, stream: bool) -> list[bool]:
    chosen = [per_stream for per_stream, wanted in ((False, experience), (True, stream)) if wanted]
    if not chosen:
        raise RepmodeError(f"{what} measures nothing: set experience or stream to True")
    return chosen


def forgetting_of(
    metric: str, *, experience: bool = False, stream: bool = False, definition: str = "from_best"
) -> Sequence[TransferMetric]:
    """Make plugin metrics of the forgetting of a metric, for Avalanche's `EvaluationPlugin`.

    Parameters
    ----------
    metric
        ``mse``, ``mae``, ``r2`` or ``pearson``; above 0 is worse whichever direction it has.
    experience
        For each evaluated experience and task. One that was learned last has none yet, and one that is not learned
        has none.
    stream
        For each evaluation: the mean of those.
    definition
        ``from_best``: the best value of all evaluations from just after the task was learned to the one before this,
        minus the present value (Chaudhry et al., "Riemannian walk for incremental learning", ECCV 2018).
        ``from_learning``: the value just after it was learned, minus the present one.

    Raises
    ------
    RepmodeError
        If there is no such metric or definition, or nothing is chosen.

    Notes
    -----
    Values are compared as they are after an experience was trained; evaluations in the middle of a training are
    compared with them, and not kept. NaN where a task was not evaluated after it was learned.

    A task is an experience's task label. In the streams of `repmode_cl.scenarios` it is a structure, which may come
    again: its forgetting starts again then. In other benchmarks each experience is taken as a task apart.
    """
    checked_metric(metric)
    if definition not in DEFINITIONS:
        raise RepmodeError(
            f"there is no definition {definition!r} of forgetting: choose {' or '.join(DEFINITIONS)}"
            f"{did_you_mean(str(definition), DEFINITIONS)}"
        )
    levels = _levels("forgetting_of", experience, stream)
    return [Forgetting(metric, per_stream=per_stream, definition=definition) for per_stream in levels]


def bwt_of(metric: str, *, experience: bool = False, stream: bool = False) -> Sequence[TransferMetric]:
    """Make plugin metrics of backward transfer: the present value of a task, minus the one just after it was learned.

    Above 0 is better, whichever direction the metric has (Lopez-Paz and Ranzato, "Gradient episodic memory", NeurIPS
    2017). It is the negative of ``forgetting_of(metric, definition="from_learning")``, which see for the parameters.

    Raises
    ------
    RepmodeError
        If there is no such metric, or nothing is chosen.
    """
    checked_metric(metric)
    return [BackwardTransfer(metric, per_stream=each) for each in _levels("bwt_of", experience, stream)]


def forward_transfer_of(
    metric: str, *, experience: bool = False, stream: bool = False
) -> Sequence[TransferMetric]:
    """Make plugin metrics of forward transfer: what a task gained from the experiences before its own.

    That is its value in the last evaluation before it was learned, minus that of the untrained model; above 0 is
    better, whichever direction the metric has (Lopez-Paz and Ranzato, "Gradient episodic memory", NeurIPS 2017). It is
    reported from the first evaluation after the task was learned on; the task of the first experience has none.

    Evaluate all of the stream before the first training and after each. NaN where one of both was not evaluated.

    Parameters
    ----------
    metric, experience, stream
        As for `forgetting_of`.

    Raises
    ------
    RepmodeError
        If there is no such metric, or nothing is chosen. When it is used: if nothing was evaluated before the first
        training, or the strategy is one of `repmode_cl`, which predict no structure that they do not know;
        `repmode_cl.evaluation.forward_transfer` is the measure for those.
    """
    checked_metric(metric)
    levels = _levels("forward_transfer_of", experience, stream)
    return [ForwardTransfer(metric, per_stream=per_stream) for per_stream in levels]
