"""One trial: a strategy learns a stream with one seed (train, evaluate, store, record) and resumes after a stop.

The state of a trial is its checkpoint, which holds every figure so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from repmode_cl.benchmark.artifacts import write_gate_weights, write_predictions
from repmode_cl.benchmark.shared_base import SharedBase, base_folder
from repmode_cl.benchmark.trials import BaseTrial, base_stream
from repmode_cl.benchmark.worker_context import WorkerContext
from repmode_cl.config import Config
from repmode_cl.errors import ModelError
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.model import Model
from repmode_cl.nn import RepModeUNet
from repmode_cl.results.gates import GATES
from repmode_cl.results.learning_curves import CURVE, write_curve
from repmode_cl.results.results_table import BASE, Result
from repmode_cl.results.trial_record import Trial
from repmode_cl.scenarios import PatchSampling, stream_of_samples, task_labels
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.extensions import close_loggers, make_extensions
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint
from repmode_cl.strategies.plugins.model_export import create_model, provenance_of, training_facts
from repmode_cl.strategies.plugins.peak_memory import PeakMemory
from repmode_cl.strategies.plugins.tensorboard import TensorBoardLogger, hyper_parameters
from repmode_cl.strategies.registry import build_strategy, strategy_class, strategy_section
from repmode_cl.training.budget import patch_count
from repmode_cl.training.checkpoint import random_state, set_random_state
from repmode_cl.training.size_check import check_last_batch
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.memory import parameter_bytes
from repmode_cl.utils.progress import report_line, task
from repmode_cl.utils.stop_signals import deferred

__all__ = ["TrialRun"]


class TrialRun:
    """Learning of one stream by one strategy with one seed.

    Parameters
    ----------
    context
        The benchmark: its configuration, streams, images and precision.
    trial
        Strategy, stream and seed to learn; a base trial only its first experience, see `learn_base`.
    """

    def __init__(self, context: WorkerContext, trial: Trial | BaseTrial) -> None:
        config = context.config
        [options] = [one for one in config.strategies if one.title == trial.title]
        self.config, self.options, self.seed = config, options, trial.seed
        self.title = trial.title
        self.trial = Trial(trial.title, trial.stream, trial.seed)
        self.folder = context.folder / self.trial.folder
        kind, section = strategy_class(options), strategy_section(options)
        training = config.training
        stream = context.streams[trial.stream]
        groups, self.done_after = kind.regroup(stream.experiences, section)
        depth = config.of_strategy(options).network.depth

        def patches(structures: tuple[str, ...], images: int) -> int:
            steps = kind.steps_of(training, section, stream.experiences, structures, images)
            count = patch_count(training, steps, images)
            check_last_batch(training, config.patch.size, depth, count)
            return count

        self.samples = context.samples
        self.stream = stream_of_samples(
            context.samples,
            groups,
            PatchSampling.of_config(config),
            count=patches,
            seed=trial.seed,
            labels=task_labels(stream.experiences),
            images_each=stream.images,
            arrivals=stream.experiences,
        )
        self.memory = PeakMemory(resolve_device(training.device))  # before there is a network
        self.strategy: StructureStrategy = build_strategy(
            config,
            options,
            self.stream,
            trial.seed,
            precision=context.precision,
            **make_extensions(config, self.folder / "loggers", str(self.trial)),
        )
        self.uncheckpointed = _uncheckpointed(config, self.strategy)
        key = self.strategy.base_key
        self.base: SharedBase | None = None
        if key is not None:
            first = base_stream(context.streams, trial.stream)
            self.base = SharedBase(context.folder / base_folder(key, first, trial.seed))
        self.rows: list[Result] = []
        self.bit_identical: bool | None = None

    # -- learning -----------------------------------------------------------------------------------------------

    def run(self) -> list[Result]:
        """Learn the whole stream, from the last checkpoint if there is one, and return every figure."""
        with self._resumed(self.folder) as (logger, checkpoint):
            for number in range(self.strategy.progress.experience, len(self.stream.experiences)):
                self._learn(number, logger, checkpoint)
            self._finish()
            parameters = hyper_parameters(
                self.config.of_strategy(self.options), self.options, self.seed, self.trial.stream
            )
            logger.finished(self.strategy, parameters, self.rows)
        return self.rows

    def learn_base(self) -> None:
        """Learn only the first experience, from the last checkpoint if there is one, and store it for others."""
        if self.base is None:
            raise ValueError(f"{self.title} shares no base")
        if self.base.trained:
            return
        with self._resumed(self.base.folder / "training"):
            self._train(0)

    @contextmanager
    def _resumed(self, folder: Path) -> Iterator[tuple[TensorBoardLogger, StrategyCheckpoint]]:
        """Resume the strategy from its checkpoint in `folder`; restore the caller's random state at the end."""
        folder.mkdir(parents=True, exist_ok=True)
        before = random_state()
        began = (folder / "tensorboard").exists()
        logger = TensorBoardLogger(folder / "tensorboard")
        checkpoint = StrategyCheckpoint(folder / "checkpoint", self._checkpoint_extra)
        try:
            extra = checkpoint.resume(self.strategy)
            if extra is not None:
                self.rows = [Result(*row) for row in extra["rows"]]
                self._resume_memory(extra["memory"])
            elif began and self.uncheckpointed:
                report_line(
                    f"{self.trial}: starts again: the state of {self.uncheckpointed} is in no checkpoint",
                    always=True,
                )
            self.strategy.outside_training = self.memory.paused
            logger.begin(self.strategy)
            self.strategy.listeners.append(logger.after_step)
            self.strategy.on_validation.append(logger.after_validation)
            if not self.uncheckpointed:
                self.strategy.listeners.append(checkpoint.after_step)
                self.strategy.on_validation.append(checkpoint.save)
                self.strategy.on_stop.append(checkpoint.save)
            self.strategy.on_trained.append(self._save_base)
            yield logger, checkpoint
        finally:
            logger.close()
            close_loggers(self.strategy.evaluator.loggers if self.config.loggers else ())
            set_random_state(before)

    def _resume_memory(self, memory: int | None) -> None:
        """Continue from the peak memory before an interruption; leave it out if not all of it was measured."""
        if memory is None:
            self.memory.stop_measuring()
        if self.memory.measurable:
            self.memory.peak = memory
        else:
            self.rows = [row for row in self.rows if row.metric != "peak_memory_bytes"]

    def _checkpoint_extra(self) -> dict[str, Any]:
        return {"rows": [list(row) for row in self.rows], "memory": self.memory.update()}

    def _learn(self, number: int, logger: TensorBoardLogger, checkpoint: StrategyCheckpoint) -> None:
        strategy, step = self.strategy, self.done_after[number]
        before = set(strategy.network.state_dict()) if number else set()
        if number and isinstance(strategy.network, RepModeUNet):
            # Gates with a shared bias become the base's rows when a structure is added: these are not its own.
            before |= set(strategy.network.base_state())
        if not (number == 0 and strategy.resume is None and self._load_base()):
            self._train(number)
        self._add_costs(number, [name for name in strategy.network.state_dict() if name not in before])
        if number + 1 == len(self.stream.experiences) or self.done_after[number + 1] > step:
            measures, grid = self.config.evaluation.measures, self.config.data.preprocessing.voxel_size
            with task(f"{self.trial}: evaluating after step {step}"), strategy.measuring(measures, grid):
                figures = strategy.evaluate(self.stream.known_after(number))
            logger.after_experience(strategy, figures)
            for structure, metrics in figures.items():
                self.rows += [self._row(step, structure, metric, value) for metric, value in metrics.items()]
        self._store(number)
        strategy.finish_experience()
        self.memory.reset()
        # Before the checkpoint, which records that this experience is done.
        write_curve(self.folder / CURVE, self._curve())
        if not self.uncheckpointed:
            checkpoint.save(strategy)

    def _train(self, number: int) -> None:
        progress = self.strategy.progress
        done = progress.step if self.strategy.resume is not None else 0
        description = f"{self.trial}: {' + '.join(self.stream.experiences[number])}"
        steps = self.strategy.budget_for(number).steps
        with task(description, steps, completed=done, unit="step") as bar, self.memory:
            self.strategy.progress_bar = bar
            with deferred():
                self.strategy.train(self.stream.train[number], eval_streams=[])
            self.strategy.progress_bar = None

    def _save_base(self, strategy: StructureStrategy) -> None:
        """Store the base that was just trained, before the strategy adds to its state, for those that share it."""
        if strategy.progress.experience == 0 and self.base is not None and not self.base.trained:
            self.base.save(strategy, self.memory.peak)

    def _load_base(self) -> bool:
        """Let the strategy adopt the shared base, if it is there; what it does then is part of learning."""
        with self.memory:
            return self.base is not None and self.base.load(self.strategy, self.memory)

    def _finish(self) -> None:
        write_predictions(self.folder, self.strategy, self.stream)
        network = self.strategy.network
        if isinstance(network, RepModeUNet):
            write_gate_weights(self.folder / GATES, network)
        # There is no model where the base diverged.
        if self.strategy.stores_model and (self.folder / "model" / "registry.json").exists():
            report = Model.open(self.folder / "model").verify()
            if not report.ok:
                raise ModelError(
                    f"{self.folder / 'model'}: a stored structure changed during the run: {report}"
                )
            self.bit_identical = report.bit_identical and not self._figures_drifted()

    def _figures_drifted(self) -> bool:
        """Return whether any figure of a structure changed other than by learning that structure again."""
        learned = {
            (step, name)
            for step, names in zip(self.done_after, self.stream.experiences, strict=True)
            for name in names
        }
        last: dict[tuple[str, str], str] = {}
        for row in self.rows:
            if row.metric not in HIGHER_IS_BETTER:
                continue
            key = (row.structure, row.metric)
            # As text, because NaN (a constant prediction's correlation) is not equal to itself.
            if (row.step, row.structure) not in learned and last.get(key) != repr(row.value):
                return True
            last[key] = repr(row.value)
        return False

    # -- figures ------------------------------------------------------------------------------------------------

    def _row(self, step: int, structure: str, metric: str, value: float) -> Result:
        return Result(self.title, self.seed, step, structure, metric, float(value), self.trial.stream)

    def _add_costs(self, number: int, added: list[str]) -> None:
        names, progress = self.stream.experiences[number], self.strategy.progress
        parameters, size = parameter_bytes(self.strategy.network, added)
        structure = names[0] if len(names) == 1 else BASE
        costs = {
            "train_seconds": progress.seconds,
            "cpu_seconds": progress.cpu_seconds,
            "added_parameters": parameters,
            "added_bytes": size,
            "steps": progress.step,
            "images": len({(sample.structure, sample.image_id) for sample in self.stream.images[number]}),
            **self.strategy.costs(),
        }
        if self.memory.peak is not None:
            costs["peak_memory_bytes"] = self.memory.peak
        self.rows += [self._row(self.done_after[number], structure, metric, v) for metric, v in costs.items()]

    def _curve(self) -> list[dict[str, Any]]:
        return [
            {**row, "experience": self.done_after[row["experience"]]} for row in self.strategy.progress.curve
        ]

    # -- storing ------------------------------------------------------------------------------------------------

    def _store(self, number: int) -> None:
        """Store the model of our own strategy as users' models are stored; that checks that nothing old changed."""
        network = self.strategy.network
        # A network that diverged is no model: its figures show it, and neither it nor its successors are stored.
        if not self.strategy.stores_model or not _is_finite(network):
            return
        path, names = self.folder / "model", self.stream.experiences[number]
        held_out = [s for s in self.samples if s.structure in names and s.split != "train"]
        provenance = provenance_of(
            self.config,
            self.options,
            self.seed,
            [*self.stream.images[number], *held_out],
            self.strategy.precision,
        ) | training_facts(self.strategy, number)
        metrics: dict[str, dict[str, float]] = {name: {} for name in names}
        for row in self.rows:
            # A figure that is not finite (the correlation of a constant prediction) does not describe a model.
            if row.structure in names and row.metric in HIGHER_IS_BETTER and math.isfinite(row.value):
                metrics[row.structure][row.metric] = row.value
        if not (path / "registry.json").exists():
            create_model(path, network, self.config, provenance, metrics)
            return
        model = Model.open(path)
        for name in names:
            times = sum(name in group for group in self.stream.experiences[: number + 1])
            versions = sum(change.structure == name for change in model.history)
            # As many as its arrivals: the trial was interrupted between storing and the checkpoint.
            if name not in model.base_structures and versions < times:
                model.add(name, network, provenance=provenance, metrics=metrics[name], replace=times > 1)


def _uncheckpointed(config: Config, strategy: StructureStrategy) -> str:
    """Return whose state is in no checkpoint, in words; an empty text where all of it is."""
    parts = ["" if strategy.checkpointed else "a strategy of Avalanche"]
    parts += [f"the plugin {one.name}" for one in config.plugins]
    parts += [f"the logger {one.name}" for one in config.loggers]
    return ", ".join(filter(None, parts))


def _is_finite(network: torch.nn.Module) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())
