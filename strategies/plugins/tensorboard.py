"""TensorBoard events of one run: what it did step by step, what its predictions look like, and what it was made with.

Every tag counts the optimiser steps of the whole stream, so that the figures of a structure stand where it was trained
and evaluated, and a run that goes on after an interruption can take back what it had written beyond its checkpoint.
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
    """TensorBoard events of one run.

    Tags: ``train/mse`` and ``train/learning_rate``, ``val/<structure>/<metric>`` while it learns,
    ``test/<structure>/<metric>`` and the picture ``slices/<structure>`` (signal, truth, prediction: one fixed slice
    of the first test image) after each experience, and ``final/<metric>`` with the hyper-parameters in the end.

    Parameters
    ----------
    folder
        Where to; nothing is written before `begin`.
    every
        Steps between two values of the training loss.
    """

    def __init__(self, folder: Path, every: int = 10) -> None:
        self._folder, self._every = folder, every
        self._open: SummaryWriter | None = None
        self._seen = 0

    def begin(self, strategy: StructureStrategy) -> None:
        """Go on where the strategy stands; whatever was written of later steps counts no more."""
        at = self._step(strategy)
        self._seen = len(strategy.progress.curve)
        # Of an interrupted run there may be events after its checkpoint; they are going to be written again.
        self._open = SummaryWriter(str(self._folder), purge_step=at + 1 if at else 0)

    @property
    def _writer(self) -> SummaryWriter:
        if self._open is None:
            raise ValueError("no events before `begin`")
        return self._open

    def _step(
        self, strategy: StructureStrategy, experience: int | None = None, step: int | None = None
    ) -> int:
        """Return a step of the whole stream; by default the one at which the strategy stands."""
        number = strategy.progress.experience if experience is None else experience
        before: int = sum(strategy.budget_for(k).steps for k in range(number))
        return before + (strategy.progress.step if step is None else step)

    def after_step(self, strategy: StructureStrategy) -> None:
        """Write the training loss now and then."""
        at = self._step(strategy)
        if at % self._every == 0 and strategy.last_loss is not None:
            self._writer.add_scalar("train/mse", float(strategy.last_loss), at)
            self._writer.add_scalar("train/learning_rate", strategy.optimizer.param_groups[0]["lr"], at)

    def after_validation(self, strategy: StructureStrategy) -> None:
        """Write what was validated since the last time; of a base that was taken, its own steps."""
        for row in strategy.progress.curve[self._seen :]:
            at = self._step(strategy, row["experience"], row["train_step"])
            self._writer.add_scalar(f"val/{row['structure']}/{row['metric']}", row["value"], at)
        self._seen = len(strategy.progress.curve)
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
        """Write the hyper-parameters beside the means of the last step's figures over all structures."""
        measured = [row for row in rows if row.metric in HIGHER_IS_BETTER]
        last = max((row.step for row in measured), default=0)
        finals = {
            f"final/{metric}": mean_or_nan(
                row.value for row in measured if (row.step, row.metric) == (last, metric)
            )
            for metric in dict.fromkeys(row.metric for row in measured)
        }
        # One step later than all else: a run that ends twice takes back the first.
        at = self._step(strategy) + 1
        if self._writer.file_writer is not None:
            for summary in hparams(dict(parameters), dict.fromkeys(finals, 0)):
                self._writer.file_writer.add_summary(summary, at)
        for tag, value in finals.items():
            self._writer.add_scalar(tag, value, at)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._open is not None:
            self._open.close()


def hyper_parameters(
    config: Config, options: StrategyConfig, seed: int, stream: str
) -> dict[str, bool | str | float]:
    """Return what TensorBoard compares runs by: the strategy's options and the settings that all share."""
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
