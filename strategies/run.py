"""One strategy learns one stream with one seed: train, evaluate, store, record; interrupted anywhere, it goes on.

A run's state is its checkpoint, with every figure so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from repmode_cl.scenarios import stream_of_samples
from repmode_cl.strategies.base import Progress, StructureStrategy
from repmode_cl.strategies.build import STRATEGIES, build_strategy
from repmode_cl.strategies.checkpoints import StrategyCheckpoint
from repmode_cl.strategies.recording import (
    Events,
    parameter_bytes,
    write_curve,
    write_gates,
    write_predictions,
)

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.errors import ModelError
from repmode_cl.evaluation.metrics import HIGHER_IS_BETTER
from repmode_cl.evaluation.results import BASE, Result
from repmode_cl.nn import RepModeUNet
from repmode_cl.progress import task
from repmode_cl.store import Model
from repmode_cl.training import Precision, budget_of, has_checkpoint, load_checkpoint, save_checkpoint

__all__ = ["StrategyRun"]


class StrategyRun:
    """One strategy with one seed.

    Parameters
    ----------
    config
        The run's configuration.
    strategy
        Its section for this strategy.
    seed
        Seed of weights, patches and order.
    samples
        Prepared images of all structures.
    experiences
        Structures of each step.
    folder
        The run's folder; this one's is ``<title>/seed-<n>`` below it.
    precision
        What the run's precision was resolved to; ``None`` resolves it here.
    """

    def __init__(
        self,
        config: Config,
        strategy: StrategyConfig,
        seed: int,
        samples: list[Sample],
        experiences: tuple[tuple[str, ...], ...],
        folder: Path,
        precision: Precision | None = None,
    ) -> None:
        self.config, self.options, self.seed, self.steps = config, strategy, seed, experiences
        self.title = strategy.title
        self.run_folder = folder
        self.folder = folder / self.title / f"seed-{seed}"
        joint = STRATEGIES[strategy.name].joint_base
        # Without a joint base, a first step of several structures is as many experiences.
        groups = experiences if joint else tuple((name,) for names in experiences for name in names)
        self.step_of = {
            group: step
            for step, names in enumerate(experiences)
            for group in groups
            if set(group) <= set(names)
        }
        self.samples = samples
        self.stream = stream_of_samples(
            samples,
            groups,
            patch=config.patch.size,
            count=self._patches,
            seed=seed,
            flips=config.patch.flips,
            batch=config.training.batch_size // config.training.accumulate,
            structures_per_batch=config.training.structures_per_batch,
            labels={name: label for label, name in enumerate(n for names in experiences for n in names)},
        )
        self.strategy: StructureStrategy = build_strategy(
            config, strategy, self.stream, seed, precision=precision
        )
        self.rows: list[Result] = []
        self.checkpoint = StrategyCheckpoint(
            self.folder / "checkpoint", lambda: [list(row) for row in self.rows]
        )
        self.bit_identical: bool | None = None

    def _patches(self, structures: tuple[str, ...], images: int) -> int:
        return (
            budget_of(self.config.training, len(structures), images).steps * self.config.training.batch_size
        )

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self) -> list[Result]:
        """Learn the whole stream, from the last checkpoint if there is one, and return every figure."""
        self.folder.mkdir(parents=True, exist_ok=True)
        events = Events(self.folder / "tensorboard")
        try:
            rows = self.checkpoint.resume(self.strategy)
            self.rows = [Result(*row) for row in rows or ()]
            done = (
                sum(self._budget(k) for k in range(self.strategy.progress.experience))
                + self.strategy.progress.step
            )
            events.resumed(done, len(self.strategy.progress.curve))
            self.strategy.listeners += [events.after_step, self.checkpoint.after_step]
            self.strategy.on_validation += [events.after_validation, self.checkpoint.save]
            for number in range(self.strategy.progress.experience, len(self.stream.experiences)):
                self._learn(number, events)
            self._finish()
        finally:
            events.close()
        return self.rows

    def _learn(self, number: int, events: Events) -> None:
        names = self.stream.experiences[number]
        step = self.step_of[names]
        known = set(self.strategy.network.state_dict()) if number else set()
        progress = self.strategy.progress
        if number == 0 and not progress.step and self._take_base():
            known = set()
        else:
            what = f"{self.title} seed {self.seed}: {' + '.join(names)}"
            with task(what, total=self._budget(number)) as bar:
                bar.update(completed=progress.step)
                self.strategy.bar = bar
                self.strategy.train(self.stream.train[number], eval_streams=[])
                self.strategy.bar = None
        self._cost(names, step, [n for n in self.strategy.network.state_dict() if n not in known])
        if (
            number + 1 == len(self.stream.experiences)
            or self.step_of[self.stream.experiences[number + 1]] > step
        ):
            with task(f"{self.title} seed {self.seed}: evaluating after step {step}"):
                figures = self.strategy.evaluate(self.stream.test[k] for k in range(number + 1))
            events.after_experience(step, figures)
            for structure, metrics in figures.items():
                self.rows += [self._row(step, structure, metric, value) for metric, value in metrics.items()]
        self._store(names)
        if number == 0:
            self._give_base()
        self.strategy.progress = Progress(number + 1, 0, 0.0, self.strategy.progress.curve)
        # Before the checkpoint, which says that this experience is done.
        write_curve(self.folder / "learning.csv", self._curve())
        self.checkpoint.save(self.strategy)

    def _finish(self) -> None:
        write_predictions(self.folder / "predictions", self.strategy, self.stream)
        network = self.strategy.network
        if isinstance(network, RepModeUNet):
            write_gates(self.folder / "gates.json", network)
        if self.options.name == "experts_frozen":
            report = Model.open(self.folder / "model").verify()
            if not report.ok:
                raise ModelError(
                    f"{self.folder / 'model'}: a stored structure changed during the run: {report}"
                )
            self.bit_identical = report.bit_identical and not self._drift()

    def _drift(self) -> bool:
        """Tell whether any figure of a structure changed after it was learned."""
        first: dict[tuple[str, str], str] = {}
        rows = [row for row in self.rows if row.metric in HIGHER_IS_BETTER]
        # As text, because NaN (a constant prediction's correlation) is not equal to itself.
        return any(
            first.setdefault((row.structure, row.metric), repr(row.value)) != repr(row.value) for row in rows
        )

    def _budget(self, number: int) -> int:
        images = len(self.stream.images[number])
        return budget_of(self.config.training, len(self.stream.experiences[number]), images).steps

    # -- figures ------------------------------------------------------------------------------------------------

    def _row(self, step: int, structure: str, metric: str, value: float) -> Result:
        return Result(self.title, self.seed, step, structure, metric, float(value))

    def _cost(self, names: tuple[str, ...], step: int, added: list[str]) -> None:
        parameters, size = parameter_bytes(self.strategy.network, added)
        structure = names[0] if len(names) == 1 else BASE
        for metric, value in {
            "train_seconds": self.strategy.progress.seconds,
            "added_parameters": parameters,
            "added_bytes": size,
            "steps": self.strategy.progress.step,
        }.items():
            self.rows.append(self._row(step, structure, metric, value))

    def _curve(self) -> list[dict[str, Any]]:
        steps = [self.step_of[names] for names in self.stream.experiences]
        return [{**row, "experience": steps[row["experience"]]} for row in self.strategy.progress.curve]

    # -- storing ------------------------------------------------------------------------------------------------

    def _store(self, names: tuple[str, ...]) -> None:
        """Keep the model of our own strategy as users' models are kept; storing checks that nothing old changed."""
        if self.options.name != "experts_frozen":
            return
        path = self.folder / "model"
        network = self.strategy.network
        images = [sample for sample in self.samples if sample.structure in names]
        provenance = provenance_of(self.config, self.options, self.seed, images, self.strategy.precision)
        metrics: dict[str, dict[str, float]] = {
            row.structure: {} for row in self.rows if row.structure in names
        }
        for row in self.rows:
            # A figure that is not finite (the correlation of a constant prediction) says nothing of a model.
            if row.structure in names and row.metric in HIGHER_IS_BETTER and math.isfinite(row.value):
                metrics[row.structure][row.metric] = row.value
        if not (path / "registry.json").exists():
            create_model(path, network, self.config, provenance, metrics)
            return
        model = Model.open(path)
        for name in names:
            if name not in model.structures:
                model.add(name, network, provenance=provenance, metrics=metrics.get(name, {}))

    # -- a base that strategies share ---------------------------------------------------------------------------

    @property
    def _base_folder(self) -> Path:
        return self.run_folder / "base" / f"seed-{self.seed}"

    def _take_base(self) -> bool:
        """Take the trained base of a strategy that begins identically (same network, seed and patches)."""
        if not STRATEGIES[self.options.name].joint_base or not has_checkpoint(self._base_folder):
            return False
        tensors, state = load_checkpoint(self._base_folder)
        self.strategy.network.load_state_dict(tensors)
        self.strategy.progress = Progress(**state["progress"])
        self.strategy.budget = budget_of(
            self.config.training, len(self.stream.experiences[0]), len(self.stream.images[0])
        )
        self.strategy.network.eval()
        return True

    def _give_base(self) -> None:
        if STRATEGIES[self.options.name].joint_base and not has_checkpoint(self._base_folder):
            state = {"progress": asdict(self.strategy.progress)}
            save_checkpoint(self._base_folder, tensors=self.strategy.network.state_dict(), state=state)


def provenance_of(
    config: Config, options: StrategyConfig, seed: int, images: Sequence[Sample], precision: Precision
) -> dict[str, Any]:
    """Return what a model keeps of how a structure was learned; `add` takes its defaults from it."""
    return {
        "config": config.name,
        "seed": seed,
        "training": config.training.model_dump(mode="json"),
        # What the settings, which may be "auto", came to.
        "precision": precision.format,
        "device": precision.device,
        "flips": config.patch.model_dump(mode="json")["flips"],
        "addition": options.model_dump(mode="json", include={"learning_rate"}),
        "images": digest_of(*sorted({sample.image_id for sample in images})).hex(),
    }


def create_model(
    path: Path, network: RepModeUNet, config: Config, provenance: dict[str, Any], metrics: dict[str, Any]
) -> Model:
    """Write the model directory of a network trained as `config` says."""
    preprocessing = config.data.preprocessing
    return Model.create(
        path,
        network,
        voxel_size=preprocessing.voxel_size,
        preprocessing={"normalisation": "z-score per image", "order": preprocessing.order},
        inference={
            "window": list(config.patch.size),
            "overlap": config.inference.overlap,
            "batch": config.inference.batch_size,
        },
        provenance=provenance,
        metrics=metrics,
    )
