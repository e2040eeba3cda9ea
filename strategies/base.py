"""Base class of all strategies: Avalanche's training loop for dense regression of one named structure per image.

All strategies share the budget of steps, the patches, the selection of the best state and the schedule. A strategy
only decides how the network grows and which parameters are trained when a structure arrives.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn

from repmode_cl.config import InferenceConfig, TrainingConfig
from repmode_cl.nn.unet import checkpoint_activations
from repmode_cl.scenarios import LabelledBatches, StructureStream
from repmode_cl.strategies.evaluation import EvaluationMixin
from repmode_cl.strategies.hooks import StrategyHooks
from repmode_cl.strategies.state import TrainingProgress
from repmode_cl.training import (
    BestState,
    Budget,
    Precision,
    Ranks,
    budget_of_steps,
    count_voxels,
    make_adam,
    make_schedule,
    masked_mse,
    resolve_precision,
    sum_gradients,
    sync_batch_norms,
)
from repmode_cl.training.best_state import trained_state_names
from repmode_cl.training.checkpoint import random_state, set_random_state
from repmode_cl.training.early_stopping import (
    check_patience,
    idle_validations,
    out_of_patience,
    out_of_time,
    validated_at,
)
from repmode_cl.training.patch_loader import patch_loader
from repmode_cl.utils import stop_signals
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.progress import Task

__all__ = ["StructureStrategy"]


class _NoLogger(BaseLogger):
    """Silent logger: listeners record the figures, but Avalanche warns where the first process has no logger."""


class StructureStrategy(StrategyHooks, EvaluationMixin):
    """Base of all strategies.

    Parameters
    ----------
    network
        Network to train; `grow` extends it.
    stream
        Stream whose experiences it learns.
    training, inference, patch
        The configuration's sections, and the voxels (z, y, x) of patch and window.
    addition_learning_rate
        Learning rate of the experiences after the base (of all, for one network per structure); ``None`` stands for
        the training's.
    seed
        Seed of the weights of new structures.
    device, precision
        Resolved from `training` where they are not given.
    ranks
        Processes that train together; by default only this one. The first of them validates.

    Notes
    -----
    A subclass defines `grow`, and overrides other methods of `StrategyHooks`. After each optimiser step the functions
    in `listeners` are called with the strategy; after each validation those in `on_validation`. After a signal to stop
    (`stop_signals`), those in `on_stop` are called at the next step, and training ends with `Stopped`.

    For Avalanche's plugins an iteration is an optimiser step. Where its batch is accumulated from micro-batches, the
    hooks of forward and backward are called for each of them, with its part of the loss; from the hooks of the update
    on, `loss` is that of the joint batch.
    """

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
        ranks: Ranks | None = None,
        plugins: Sequence[Any] = (),
    ) -> None:
        device = device or resolve_device(training.device)
        self.ranks = ranks or Ranks()
        super().__init__(
            model=network,
            optimizer=None,
            criterion=masked_mse,
            train_mb_size=training.batch_size,
            train_epochs=1,  # one pass over a virtual sequence of as many patches as the budget has
            eval_mb_size=1,
            device=device,
            plugins=list(plugins),
            evaluator=EvaluationPlugin(loggers=[_NoLogger()] if self.ranks.first else []),
        )
        self.stream = stream
        self.training_config = training
        self.inference = inference or InferenceConfig()
        self.patch = tuple(int(size) for size in patch)
        self.addition_learning_rate = addition_learning_rate
        self.seed = seed
        self.precision = precision or resolve_precision(training.precision, device)
        self.progress = TrainingProgress()
        self.budget = Budget(1, 1)
        self.selection = BestState(())
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.scaler: torch.amp.GradScaler | None = None
        self.trained: frozenset[str] = frozenset()
        self.last_loss: Tensor | None = None
        #: Voxels that count in the joint batch; None where this batch is all of it.
        self._voxels: float | None = None
        self.listeners: list[Callable[[StructureStrategy], None]] = []
        self.on_validation: list[Callable[[StructureStrategy], None]] = []
        #: Called before training ends because of a signal: saves the state at this step.
        self.on_stop: list[Callable[[StructureStrategy], None]] = []
        self.progress_bar: Task | None = None
        #: Why the last experience ended: all its steps, no improvement, or the time limit.
        self.stop_reason = ""
        #: Called once, after model and optimiser of an experience exist: loads a checkpoint into them.
        self.resume: Callable[[StructureStrategy], None] | None = None
        #: Experience -> (structure, image) -> number of its patches that were trained on, replayed ones included.
        self.trained_patches: dict[int, Counter[tuple[str, str]]] = {}

    # -- Avalanche's hooks --------------------------------------------------------------------------------------

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Grow and freeze the network in training; leave it unchanged in evaluation."""
        if self.is_training:
            names = self.stream.names_of(self.experience)
            new = [name for name in names if name not in self.network.structures]
            if new:
                self.grow(new)
            self.trained = self.choose_trained(names)
        return self.model.to(self.device)

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Set up network, optimiser, schedule and selection for the experience, or load them from a checkpoint."""
        self.model = self.model_adaptation()
        checkpoint_activations(self.model, self.training_config.activation_checkpointing)
        self.make_optimizer(**kwargs)
        self.selection = BestState(trained_state_names(self.model))
        if self.resume is not None:
            resume, self.resume = self.resume, None
            resume(self)
        if not self.progress.step:
            self.trained_patches[self._experience_number] = Counter()
            self.before_experience(self._experience_number)
        self.model.train()

    def make_optimizer(self, **kwargs: Any) -> None:
        """Make a fresh optimiser of only the trainable parameters: weight decay would move any others."""
        config = self.training_config
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = make_adam(
            named.values(), learning_rate=self.learning_rate(), weight_decay=config.weight_decay
        )
        self.optimized_param_id = named
        self.scheduler = make_schedule(self.optimizer, config.schedule, self.budget.steps)
        self.scaler = self.precision.scaler()

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Load the patches in the order of the data set, from where a resumed experience stopped."""
        self.budget = self.budget_for(self._experience_number)
        start = self.progress.step * self.train_mb_size
        # Not Avalanche's data set: workers could not read it without importing Avalanche.
        loader = patch_loader(
            self.stream.patches_of(self.experience),
            batch_size=self.train_mb_size // self.training_config.accumulate,
            start=start,
            workers=self.training_config.loader_workers,
            pin_memory=self.device.type == "cuda",
            rank=self.ranks.rank,
            world=self.ranks.world,
        )
        self.dataloader = LabelledBatches(loader, self.stream.labels)

    def budget_for(self, number: int) -> Budget:
        """Return the budget of experience `number`: all the patches that its stream has."""
        steps = -(-len(self.stream.patches[number]) // self.train_mb_size)
        return budget_of_steps(self.training_config, steps, len(self.stream.images[number]))

    def forward(self) -> Tensor:
        """Predict: patches in training, whole volumes by the Gaussian sliding window in evaluation."""
        names = self.stream.names(self.mb_task_id.tolist())
        if self.is_training:
            with self.precision.autocast():
                output: Tensor = self.model(self.mb_x, names)
            return output
        return self._predict_whole(names[0])

    def criterion(self) -> Tensor:
        """Return the mean squared error over the voxels that count, or this part's share of that of the joint batch."""
        return masked_mse(self.mb_output, self.mb_y.to(self.mb_output.device), count=self._voxels)

    def training_epoch(self, **kwargs: Any) -> None:
        """Run the experience's steps: mixed precision, clipping, schedule, validation and selection."""
        names = self.stream.experiences[self._experience_number]
        validation = self.stream.val[self._experience_number]
        check_patience(self.training_config, names, len(validation.dataset))
        reason = None
        due = self.progress.step and self.budget.validates(self.progress.step) and len(validation.dataset)
        if due and not self._validated:
            self._validate_or_stop()  # a signal stopped training between this step and its validation
        with sync_batch_norms(self.model, self.ranks):
            began, began_cpu = time.perf_counter(), time.process_time()
            for parts in _grouped(self.dataloader, self.training_config.accumulate):
                # Checked before a step and not after it: training that resumes may have to end at once.
                if (reason := self._reason_to_stop()) is not None:
                    break
                self._train_step(parts, **kwargs)
                self._count_patches()
                self.progress.step += 1
                self.progress.seconds += time.perf_counter() - began
                self.progress.cpu_seconds += time.process_time() - began_cpu
                self.last_loss = self.loss.detach()
                self._after_training_iteration(**kwargs)
                for listener in self.listeners:
                    listener(self)
                if self.progress_bar is not None:
                    self.progress_bar.advance()
                self._check_stop()
                if self.budget.validates(self.progress.step):
                    self._validate_or_stop()
                # Recording and validating are not training.
                began, began_cpu = time.perf_counter(), time.process_time()
            if reason is not None and not self._validated:
                self._validate_or_stop()
        self._voxels = None
        self.stop_reason = reason or f"all {self.budget.steps} steps"
        self.selection.restore(self.model)

    @property
    def _validated(self) -> bool:
        return validated_at(self.progress.curve, self._experience_number, self.progress.step)

    def _validate_or_stop(self) -> None:
        """Validate; a signal meanwhile ends that, and the validation is repeated when training is resumed."""
        before = random_state()
        try:
            self._validate()
        except stop_signals.Stopped as stopped:
            set_random_state(before)
            self._stop(stopped.number)

    def _check_stop(self) -> None:
        """End training if a signal asks for it, in all processes at the same step."""
        requested = stop_signals.requested()
        if any(self.ranks.total([requested is not None])):
            self._stop(requested or signal.SIGTERM)  # another process got it

    def _stop(self, number: int) -> NoReturn:
        for listener in self.on_stop:
            listener(self)
        raise stop_signals.Stopped(number, f"step {self.progress.step} is saved" if self.on_stop else "")

    def _count_patches(self) -> None:
        """Count the images of this step's patches, those of all processes."""
        patches, first = self.stream.patches[self._experience_number], self.progress.step * self.train_mb_size
        samples = (
            patches.sample_of(item) for item in range(first, min(first + self.train_mb_size, len(patches)))
        )
        self.trained_patches.setdefault(self._experience_number, Counter()).update(
            (sample.structure, sample.image_id) for sample in samples
        )

    @property
    def _experience_number(self) -> int:
        return int(self.experience.current_experience)

    def _reason_to_stop(self) -> str | None:
        """Return why training stops here, or None to continue; all processes decide the same."""
        config, progress = self.training_config, self.progress
        if config.patience is not None:
            idle = idle_validations(progress.curve, self._experience_number, self.selection.step)
            if (reason := out_of_patience(config, idle)) is not None:
                return reason
        if config.time_limit is None:
            return None
        # The clocks of processes differ: that of the first one decides.
        return self.ranks.from_first(lambda: out_of_time(config, progress.seconds))

    def _train_step(self, parts: Sequence[Any], **kwargs: Any) -> None:
        """Make one optimiser step of a joint batch: `parts` are its micro-batches, or this process's shares of them."""
        parts = [self.extend(part, number, len(parts)) for number, part in enumerate(parts)]
        if len(parts) > 1 or self.ranks.world > 1:
            # The count of the whole batch, so that each voxel has the same weight in whichever part it lies.
            [self._voxels] = self.ranks.total([sum(count_voxels(part[1]) for part in parts)])
        else:
            self._voxels = None
        losses: list[Tensor] = []
        for number, self.mbatch in enumerate(parts):
            self._unpack_minibatch()
            if number == 0:
                self._before_training_iteration(**kwargs)
                self.optimizer.zero_grad(set_to_none=True)
            self._before_forward(**kwargs)
            self.mb_output = self.forward()
            self._after_forward(**kwargs)
            self.loss = self.criterion()
            self._before_backward(**kwargs)
            self.backward()
            self._after_backward(**kwargs)
            losses.append(self.loss.detach())
        if len(losses) > 1:
            self.loss = torch.stack(losses).sum()
        self.loss = sum_gradients(self.optimized_param_id.values(), self.loss, self.ranks)
        self.adjust_gradients()
        self._before_update(**kwargs)
        self.optimizer_step()
        self._after_update(**kwargs)

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


def _grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield `size` batches at a time; the last group may be smaller."""
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
