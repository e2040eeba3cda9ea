"""What every strategy shares: Avalanche's training loop for dense regression of one named structure per image.

One step budget, the same patches, the same selection and schedule for all; a strategy says only what grows and
what is trained when a structure arrives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from repmode_cl.scenarios import StructureStream
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from repmode_cl.config import InferenceConfig, TrainingConfig
from repmode_cl.devices import resolve_device
from repmode_cl.evaluation.metrics import image_metrics, mean_metrics
from repmode_cl.inference.predict import sliding_window
from repmode_cl.progress import Task
from repmode_cl.training import (
    Budget,
    Precision,
    Selection,
    budget_of,
    make_schedule,
    masked_mse,
    resolve_precision,
)
from repmode_cl.training.selection import changing_names

__all__ = ["Evaluation", "Progress", "StructureNetwork", "StructureStrategy"]


class StructureNetwork(Protocol):
    """A network that predicts structures by name: RepMode's, or one plain network for each."""

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures that it knows."""

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Freeze all but what training `structures` may change, and return those parameters' names."""

    def fuse(self, structure: str) -> nn.Module:
        """Return the plain network that predicts `structure`, in evaluation mode."""


class _NoLogger(BaseLogger):
    """Avalanche warns of an evaluator without a logger; figures are recorded by listeners here."""


@dataclass
class Progress:
    """Where training stands within an experience; everything that a checkpoint must bring back."""

    experience: int = 0
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Validation figures: experience, structure, train_step, metric, value."""


#: Structure -> metric -> mean over its images.
Evaluation = dict[str, dict[str, float]]


class StructureStrategy(SupervisedTemplate):
    """Base of all strategies.

    Parameters
    ----------
    network
        What is trained; grown by `grow`.
    stream
        The stream whose experiences it is given.
    training, inference, patch
        The configuration's sections, and the voxels (z, y, x) of patch and window.
    addition_learning_rate
        Learning rate of what comes after the base (all, for one network per structure); ``None`` takes the
        training's.
    seed
        Seed of weights that a new structure brings.
    device, precision
        Resolved here where they are not given.

    Notes
    -----
    A subclass defines `grow`. After each optimiser step the functions in `listeners` are called with the
    strategy; after each validation those in `on_validation`.
    """

    #: Whether the structures of a joint first experience are learned together; else one network after another.
    joint_base = True

    def __init__(
        self,
        *,
        network: nn.Module,
        stream: StructureStream,
        training: TrainingConfig,
        patch: Sequence[int],
        inference: InferenceConfig | None = None,
        addition_learning_rate: float | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        precision: Precision | None = None,
        plugins: Sequence[Any] = (),
    ) -> None:
        device = device or resolve_device(training.device)
        super().__init__(
            model=network,
            optimizer=None,
            criterion=masked_mse,
            train_mb_size=training.batch_size,
            train_epochs=1,  # one pass over a virtual sequence of as many patches as the budget has
            eval_mb_size=1,
            device=device,
            plugins=list(plugins),
            evaluator=EvaluationPlugin(loggers=[_NoLogger()]),
        )
        self.stream = stream
        self.training_config = training
        self.inference = inference or InferenceConfig()
        self.patch = tuple(int(size) for size in patch)
        self.addition_learning_rate = addition_learning_rate
        self.seed = seed
        self.precision = precision or resolve_precision(training.precision, device)
        self.progress = Progress()
        self.budget = Budget(1, 1)
        self.selection = Selection(())
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.scaler: torch.amp.GradScaler | None = None
        self.trained: frozenset[str] = frozenset()
        self.last_loss: Tensor | None = None
        self.listeners: list[Callable[[StructureStrategy], None]] = []
        self.on_validation: list[Callable[[StructureStrategy], None]] = []
        self.bar: Task | None = None
        #: Called once, after model and optimiser of an experience exist: how a checkpoint comes back.
        self.resume: Callable[[StructureStrategy], None] | None = None

    # -- what a strategy decides --------------------------------------------------------------------------------

    def grow(self, structures: Sequence[str]) -> None:
        """Make the network know `structures`, which arrive now."""
        raise TypeError(f"{type(self).__name__} does not say how its network grows")

    # -- Avalanche's hooks --------------------------------------------------------------------------------------

    @property
    def network(self) -> Any:
        """The network, as what it is: a `StructureNetwork`."""
        return self.model

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Grow and freeze in training; in evaluation leave the network alone."""
        if self.is_training:
            names = self.stream.names_of(self.experience)
            new = [name for name in names if name not in self.network.structures]
            if new:
                self.grow(new)
            self.trained = self.network.train_only(names)
        return self.model.to(self.device)

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Set up network, optimiser, schedule and selection for the experience, or take them from a checkpoint."""
        self.model = self.model_adaptation()
        self.make_optimizer(**kwargs)
        self.selection = Selection(changing_names(self.model))
        if self.resume is not None:
            resume, self.resume = self.resume, None
            resume(self)
        self.model.train()

    def make_optimizer(self, **kwargs: Any) -> None:
        """Make a fresh optimiser of what is trainable alone: one that held the rest would move it (weight decay)."""
        config = self.training_config
        base = self.joint_base and int(self.experience.current_experience) == 0
        rate = config.learning_rate if base else self.addition_learning_rate or config.learning_rate
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.Adam(
            list(named.values()), lr=rate, weight_decay=config.weight_decay, fused=self.device.type == "cuda"
        )
        self.optimized_param_id = named
        self.scheduler = make_schedule(self.optimizer, config.schedule, self.budget.steps)
        self.scaler = self.precision.scaler()

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Load the patches in their own order, from where a resumed experience stopped."""
        dataset = self.adapted_dataset
        names = self.stream.names_of(self.experience)
        self.budget = budget_of(self.training_config, len(names), self._images())
        start = self.progress.step * self.train_mb_size
        self.dataloader = DataLoader(
            Subset(dataset, range(start, len(dataset))), batch_size=self.train_mb_size
        )

    def _images(self) -> int:
        return len(self.stream.samples_of(self.experience))

    def forward(self) -> Tensor:
        """Predict: patches in training, whole volumes by the Gaussian sliding window in evaluation."""
        names = self.stream.names(self.mb_task_id.tolist())
        if self.is_training:
            with self.precision.autocast():
                output: Tensor = self.model(self.mb_x, names)
            return output
        if names[0] not in self._plain:
            self._plain[names[0]] = self.network.fuse(names[0])
        return torch.from_numpy(self._slide(self._plain[names[0]], self.mb_x[0, 0]))[None, None]

    def criterion(self) -> Tensor:
        """Return the mean squared error over the voxels that count."""
        return masked_mse(self.mb_output, self.mb_y.to(self.mb_output.device))

    def training_epoch(self, **kwargs: Any) -> None:
        """Run the experience's steps: mixed precision, clipping, schedule, validation and selection."""
        began = time.perf_counter()
        for self.mbatch in self.dataloader:  # noqa: B020 - Avalanche's way to hand the batch to plugins
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self.optimizer.zero_grad(set_to_none=True)
            self._before_forward(**kwargs)
            self.mb_output = self.forward()
            self._after_forward(**kwargs)
            self.loss = self.criterion()
            self._before_backward(**kwargs)
            self.backward()
            self._after_backward(**kwargs)
            self._before_update(**kwargs)
            self.optimizer_step()
            self._after_update(**kwargs)
            self.progress.step += 1
            self.progress.seconds += time.perf_counter() - began
            self.last_loss = self.loss.detach()
            self._after_training_iteration(**kwargs)
            for listener in self.listeners:
                listener(self)
            if self.bar is not None:
                self.bar.advance()
            if self.budget.validates(self.progress.step):
                self._validate()
            began = time.perf_counter()  # recording and validating are not training
        self.selection.restore(self.model)

    def backward(self) -> None:
        """Run the backward pass, scaled where the precision needs it."""
        (self.loss if self.scaler is None else self.scaler.scale(self.loss)).backward()

    def optimizer_step(self) -> None:
        """Clip where configured, and update weights and learning rate."""
        clip = self.training_config.gradient_clip
        if clip is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.optimized_param_id.values(), clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()

    # -- validating and evaluating ------------------------------------------------------------------------------

    def _validate(self) -> None:
        number = int(self.experience.current_experience)
        figures = self.evaluate([self.stream.val[number]])
        for structure, metrics in figures.items():
            for metric, value in metrics.items():
                self.progress.curve.append(
                    {
                        "experience": number,
                        "structure": structure,
                        "train_step": self.progress.step,
                        "metric": metric,
                        "value": value,
                    }
                )
        if figures:
            mse = sum(metrics["mse"] for metrics in figures.values()) / len(figures)
            self.selection.offer(self.model, self.progress.step, mse)
        for listener in self.on_validation:
            listener(self)

    def evaluate(self, experiences: Iterable[Any]) -> Evaluation:
        """Predict every volume of `experiences` and return each structure's mean metrics (paper, section 4.1)."""
        self._figures: dict[str, list[dict[str, float]]] = {}
        self._plain: dict[str, nn.Module] = {}  # fused once per evaluation, not once per volume
        self.eval([experience for experience in experiences if len(experience.dataset)])
        self._plain = {}
        self.model.train(
            self.is_training
        )  # Avalanche restores modes layer by layer; frozen norms are ours to keep
        return {name: mean_metrics(images) for name, images in self._figures.items()}

    def _after_eval_iteration(self, **kwargs: Any) -> None:
        target = self.mb_y[0].cpu().numpy()
        mask = target[1] > 0 if len(target) > 1 else None
        found = image_metrics(self.mb_output[0, 0].numpy(), target[0], mask)
        [name] = self.stream.names(self.mb_task_id.tolist())
        self._figures.setdefault(name, []).append(found)
        super()._after_eval_iteration(**kwargs)

    def predict(self, volume: Tensor, structure: str) -> Any:
        """Predict one whole volume (Z, Y, X), z-scored, in float32; returns an array of that shape."""
        return self._slide(self.network.fuse(structure), volume)

    def _slide(self, plain: nn.Module, volume: Tensor) -> Any:
        return sliding_window(
            plain,
            volume,
            window=self.patch,
            overlap=self.inference.overlap,
            batch_size=self.inference.batch_size,
            device=self.device,
        )
