"""TensorBoard events of one trial: its figures step by step, slices of its predictions, and its hyper-parameters.

Every tag counts the optimiser steps of the whole stream. So the figures of a structure stand at the step where it was
trained and evaluated, and a trial that resumes can drop the events that it had written after its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.evaluation.performance_matrix import mean_or_nan
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.results.predictions import contrast
from repmode_cl.results.results_table import Result
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.state import Evaluation, Example

__all__ = ["TensorBoardLogger", "hyper_parameters"]

#: Pixels between the parts of a picture.
_GAP = 3


class TensorBoardLogger:
    """Writer of the TensorBoard events of one trial.

    Tags: ``train/mse`` and ``train/learning_rate`` (of groups with rates of their own also
    ``train/learning_rate/<group>``), ``val/<structure>/<metric>`` while it learns,
    ``test/<structure>/<metric>`` and the picture ``slices/<structure>`` (signal, truth, prediction: one fixed slice
    of the first test image) after each experience, and ``final/<metric>`` with the hyper-parameters in the end.

    Parameters
    ----------
    folder
        Folder of the events; nothing is written before `begin`.
    every
        Steps between two values of the training loss.
    """

    def __init__(self, folder: Path, every: int = 10) -> None:
        self._folder, self._every = folder, every
        self._summary_writer: SummaryWriter | None = None
        self._validations_written = 0

    def begin(self, strategy: StructureStrategy) -> None:
        """Open the file at the strategy's present step; events of later steps are dropped."""
        at = self._step(strategy)
        self._validations_written = len(strategy.progress.curve)
        # An interrupted trial may have events after its checkpoint; they will be written again.
        self._summary_writer = SummaryWriter(str(self._folder), purge_step=at + 1 if at else 0)

    @property
    def _writer(self) -> SummaryWriter:
        if self._summary_writer is None:
            raise ValueError("call `begin` before writing events")
        return self._summary_writer

    def _step(
        self, strategy: StructureStrategy, experience: int | None = None, step: int | None = None
    ) -> int:
        """Return a step of the whole stream; by default the present one."""
        number = strategy.progress.experience if experience is None else experience
        before: int = sum(strategy.budget_for(k).steps for k in range(number))
        return before + (strategy.progress.step if step is None else step)

    def after_step(self, strategy: StructureStrategy) -> None:
        """Write training loss and learning rate every so many steps."""
        at = self._step(strategy)
        if at % self._every == 0 and strategy.last_loss is not None:
            self._writer.add_scalar("train/mse", float(strategy.last_loss), at)
            groups = strategy.optimizer.param_groups
            self._writer.add_scalar("train/learning_rate", groups[0]["lr"], at)
            for group in groups if len(groups) > 1 else ():
                if "name" in group:
                    self._writer.add_scalar(f"train/learning_rate/{group['name']}", group["lr"], at)

    def after_validation(self, strategy: StructureStrategy) -> None:
        """Write the validation figures since the last call; those of a shared base at the steps of its training."""
        for row in strategy.progress.curve[self._validations_written :]:
            at = self._step(strategy, row["experience"], row["train_step"])
            self._writer.add_scalar(f"val/{row['structure']}/{row['metric']}", row["value"], at)
        self._validations_written = len(strategy.progress.curve)
        self._writer.flush()

    def after_experience(self, strategy: StructureStrategy, figures: Evaluation) -> None:
        """Write the test figures of the experience just learned, and a slice of each structure's first image."""
        at = self._step(strategy)
        for structure, metrics in figures.items():
            for metric, value in metrics.items():
                self._writer.add_scalar(f"test/{structure}/{metric}", value, at)
            if structure in strategy.examples:
                picture = _picture(strategy.examples[structure])
                self._writer.add_image(f"slices/{structure}", picture, at, dataformats="HW")
        self._writer.flush()

    def finished(
        self,
        strategy: StructureStrategy,
        parameters: Mapping[str, bool | str | float],
        rows: Iterable[Result],
    ) -> None:
        """Write the hyper-parameters, and the means of the last step's figures over all structures."""
        measured = [row for row in rows if row.metric in HIGHER_IS_BETTER]
        last = max((row.step for row in measured), default=0)
        finals = {
            f"final/{metric}": mean_or_nan(
                row.value for row in measured if (row.step, row.metric) == (last, metric)
            )
            for metric in dict.fromkeys(row.metric for row in measured)
        }
        # One step later than all else: a trial that ends twice drops the first of these.
        at = self._step(strategy) + 1
        if self._writer.file_writer is not None:
            for summary in hparams(dict(parameters), dict.fromkeys(finals, 0)):
                self._writer.file_writer.add_summary(summary, at)
        for tag, value in finals.items():
            self._writer.add_scalar(tag, value, at)
        self._writer.flush()

    def close(self) -> None:
        """Write the remaining events and close the file."""
        if self._summary_writer is not None:
            self._summary_writer.close()


def hyper_parameters(
    config: Config, options: StrategyConfig, seed: int, stream: str
) -> dict[str, bool | str | float]:
    """Return the hyper-parameters of a trial: the strategy's options and the settings that all share."""
    training, network = config.training, config.network
    parameters: dict[str, bool | str | float] = {
        "strategy": options.title,
        "seed": seed,
        "stream": stream,
        "width": network.width,
        "depth": network.depth,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
    }
    for key, value in options.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, bool | str | int | float):
            parameters[key if key != "name" else "kind"] = value
    return parameters


def _picture(example: Example) -> NDArray[np.uint8]:
    """Return signal, truth and prediction side by side; the last two with one contrast."""
    ends = contrast(example.truth, 0.5, 99.7)
    parts = [
        _grey(example.signal, *contrast(example.signal, 0.5, 99.5)),
        _grey(example.truth, *ends),
        _grey(example.prediction, *ends),
    ]
    gap = np.full((len(parts[0]), _GAP), 255, np.uint8)
    return np.concatenate([parts[0], gap, parts[1], gap, parts[2]], axis=1)


def _grey(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    scaled = np.nan_to_num((image - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    grey: NDArray[np.uint8] = (255.0 * np.clip(scaled, 0.0, 1.0) + 0.5).astype(np.uint8)
    return grey
