"""Base class of all strategies: Avalanche's training loop for dense regression of one named structure per image.

All strategies share the budget of steps, the patches, the selection of the best state and the schedule. A strategy
only decides how the network grows and which parameters are trained when a structure arrives.
"""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from avalanche.benchmarks import CLExperience
from avalanche.distributed.distributed_helper import DistributedHelper
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from repmode_cl.config import InferenceConfig, TrainingConfig
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.errors import ConfigError
from repmode_cl.nn.mode_block import fuse_under_autocast
from repmode_cl.nn.multi_head_unet import MultiHeadUNet
from repmode_cl.nn.unet import checkpoint_activations
from repmode_cl.scenarios import LabelledBatches, StructureStream
from repmode_cl.strategies.evaluation import EvaluationMixin
from repmode_cl.strategies.given_optimizer import GivenOptimizer
from repmode_cl.strategies.metrics.regression import r2_metrics
from repmode_cl.strategies.state import TrainingProgress
from repmode_cl.strategies.training_settings import resolve_training
from repmode_cl.training import (
    BestState,
    Budget,
    Precision,
    Ranks,
    budget_of,
    budget_of_steps,
    count_voxels,
    make_adam,
    make_schedule,
    masked_mse,
    resolve_precision,
    seed_generators,
    sum_gradients,
    sync_batch_norms,
    voxel_loss,
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

__all__ = ["SilentLogger", "StructureStrategy", "r2_evaluator"]

_log = logging.getLogger(__name__)


class SilentLogger(BaseLogger):
    """Silent logger: listeners record the figures, but Avalanche warns where the first process has no logger."""


def r2_evaluator() -> EvaluationPlugin:
    """Return an evaluator that measures R2 of each experience and of the stream, and writes no log."""
    # Of several processes only the first may have a logger.
    loggers = [SilentLogger()] if DistributedHelper.is_main_process else []
    return EvaluationPlugin(r2_metrics(experience=True, stream=True), loggers=loggers)


class StructureStrategy(EvaluationMixin):
    """Base of all strategies.

    The arguments have Avalanche's names and meaning; all but `model` have defaults. The sections of a configuration
    (`training`, `inference`) are a second way to say the same, with more settings.

    Parameters
    ----------
    model
        Network to train; `grow` extends it.
    optimizer
        Optimiser over its parameters, which stays this object: for each experience its state is cleared, its groups are
        filled with the parameters that are trained, and its initial rate is restored; the configuration's schedule is
        off. None makes Adam with the rates of `training`.
    criterion
        Loss of two tensors (number of voxels,), predictions and targets of the voxels that count; it needs
        ``reduction='mean'`` where a batch is computed in parts. None is the mean squared error.
    train_mb_size
        Patches of an optimiser step.
    train_epochs, train_steps
        Passes over the patches of an experience, each of which cuts other patches; or its number of steps, which the
        stream must have patches for. By default one pass.
    eval_mb_size
        Windows of a volume that are predicted at once; volumes are predicted one by one.
    device
        ``"cpu"``, ``"cuda"`` or a `torch.device`; by default a GPU where there is one.
    plugins
        Avalanche's plugins. One that selects the state that an experience ends with, such as its EarlyStoppingPlugin,
        switches the strategy's own selection by validation off.
    evaluator
        Avalanche's EvaluationPlugin, or a function that makes one; by default `r2_evaluator`. None measures nothing.
    eval_every, peval_mode
        Periodic evaluation in training, as in Avalanche: off at -1. It counts iterations where `train_steps` is given,
        else epochs.
    stream
        Stream whose experiences it learns; by default that of the first experience that it is given.
    training, inference
        Sections of a configuration.
    patch
        Voxels (z, y, x) of patch and window; by default the stream's.
    addition_learning_rate
        Learning rate of the experiences after the base (of all, for one network per structure); ``None`` stands for
        the training's.
    seed
        Seed of the weights of new structures, and, with its number, of each experience.
    precision
        Resolved from `training` where it is not given.
    ranks
        Processes that train together; by default only this one. The first of them validates.
    network
        Deprecated name of `model`.

    Raises
    ------
    ConfigError
        If arguments contradict one another or the stream.

    Notes
    -----
    A subclass defines `grow`, and overrides other methods of `StrategyHooks`. After each optimiser step the functions
    in `listeners` are called with the strategy; after each validation those in `on_validation`; after the last step of
    an experience, before `after_experience`, those in `on_trained`. After a signal to stop (`stop_signals`), those in
    `on_stop` are called at the next step, and training ends with `Stopped`.

    For Avalanche's plugins an iteration is an optimiser step. Where its batch is accumulated from micro-batches, the
    hooks of forward and backward are called for each of them, with its part of the loss; from the hooks of the update
    on, `loss` is that of the joint batch.
    """

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        train_mb_size: int | None = None,
        train_epochs: int | None = None,
        train_steps: int | None = None,
        eval_mb_size: int | None = None,
        device: torch.device | str | None = None,
        plugins: Sequence[Any] = (),
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None = r2_evaluator,
        eval_every: int = -1,
        peval_mode: str | None = None,
        stream: StructureStream | None = None,
        training: TrainingConfig | None = None,
        inference: InferenceConfig | None = None,
        patch: Sequence[int] | None = None,
        addition_learning_rate: float | None = None,
        seed: int = 0,
        precision: Precision | None = None,
        ranks: Ranks | None = None,
        network: nn.Module | None = None,
    ) -> None:
        model = _the_model(model, network)
        settings = resolve_training(
            training=training,
            inference=inference,
            sizes={
                "train_mb_size": train_mb_size,
                "train_epochs": train_epochs,
                "train_steps": train_steps,
                "eval_mb_size": eval_mb_size,
            },
            optimizer=optimizer,
            device=device,
            peval_mode=peval_mode,
        )
        self.training_config, self.inference = settings.training, settings.inference
        self.ranks = ranks or Ranks()
        self._settings = settings
        device = (
            device
            if isinstance(device, torch.device)
            else resolve_device(device or self.training_config.device)
        )
        self._check_criterion(criterion)
        self._check_network(model)
        self._check_ranks(model)
        if evaluator is None:
            evaluator = EvaluationPlugin(loggers=[SilentLogger()] if self.ranks.first else [])
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion or masked_mse,
            train_mb_size=self.training_config.batch_size,
            train_epochs=settings.epochs,
            eval_mb_size=self.inference.batch_size,
            device=device,
            plugins=list(plugins),
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=settings.peval_mode,
        )
        self._given_optimizer = None if optimizer is None else GivenOptimizer(optimizer, model)
        if optimizer is not None and addition_learning_rate is not None:
            raise ConfigError(
                "addition_learning_rate and an optimizer are given: the optimizer's own rate holds in all experiences; "
                "leave one out"
            )
        if optimizer is not None and self.training_config.schedule != "constant":
            _log.warning(
                "training.schedule %s is off: the given optimizer keeps its rate, or what a plugin makes of it",
                self.training_config.schedule,
            )
        self.patch = None if patch is None else tuple(int(size) for size in patch)
        self.addition_learning_rate = addition_learning_rate
        self.seed = seed
        self.precision = precision or resolve_precision(self.training_config.precision, device)
        self.progress = TrainingProgress()
        self.budget = Budget(1, 1)
        self.selection = BestState(())
        self._figures = {}
        #: Whether an experience ends with the state of the lowest validation error; plugins may select another.
        self.selects_state = not self._selecting_plugins()
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.scaler: torch.amp.GradScaler | None = None
        self.trained: frozenset[str] = frozenset()
        self.last_loss: Tensor | None = None
        #: Voxels that count in the joint batch; None where this batch is all of it.
        self._voxels: float | None = None
        self.listeners: list[Callable[[StructureStrategy], None]] = []
        self.on_validation: list[Callable[[StructureStrategy], None]] = []
        #: Called after the last step of an experience; not for a base that is adopted.
        self.on_trained: list[Callable[[StructureStrategy], None]] = []
        #: Called before training ends because of a signal: saves the state at this step.
        self.on_stop: list[Callable[[StructureStrategy], None]] = []
        self.progress_bar: Task | None = None
        #: Why the last experience ended: all its steps, no improvement, the time limit, or a plugin.
        self.stop_reason = ""
        #: Called once, after model and optimiser of an experience exist: loads a checkpoint into them.
        self.resume: Callable[[StructureStrategy], None] | None = None
        #: Experience -> (structure, image) -> number of its patches that were trained on, replayed ones included.
        self.trained_patches: dict[int, Counter[tuple[str, str]]] = {}
        #: Numbers of the experiences that were learned, or adopted.
        self.learned: set[int] = set()
        #: Whether the patches of the stream must match the budget of `training`.
        self.checks_budget = True
        #: Progress of the base that is being adopted; None while experiences are trained.
        self._adopted: TrainingProgress | None = None
        self._stepped = True
        self._own_loader: LabelledBatches | None = None
        if stream is not None:
            self.attach(stream)

    # -- learning -----------------------------------------------------------------------------------------------

    def train(
        self,
        experiences: CLExperience | Iterable[CLExperience],
        eval_streams: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Learn an experience, or each of a stream, from its first step to what follows after its last.

        Each experience is seeded by the strategy's seed and its number, so that it does not depend on what was done
        before; the caller's random numbers go on as if nothing had been trained. One that was trained before is trained
        again, from the present state of the network.

        Parameters
        ----------
        experiences
            From the benchmark's ``train_stream``.
        eval_streams
            What is evaluated where `eval_every` asks for it; ``None`` stands for the validation images of the
            structures that are known then.
        **kwargs
            Passed to all plugins.

        Returns
        -------
        dict of str to value
            The last value of each metric of `evaluator`.

        Raises
        ------
        ConfigError
            If an experience is of another benchmark or of another stream than that for training, its patches do not
            fit the budget, or it needs a base that was not learned.
        """
        chosen = self._own_experiences(experiences)
        self._check_experiences(chosen)
        if eval_streams is None:
            eval_streams = [list(self.stream.val_stream)]
        before = random_state()
        try:
            metrics: dict[str, Any] = super().train(chosen, eval_streams, **kwargs)
        finally:
            set_random_state(before)
        return metrics

    def adopt_experience(
        self, experience: CLExperience, progress: TrainingProgress | None = None
    ) -> dict[str, Any]:
        """Take over a base that is ready, such as the network of a stored model, in place of training it.

        Everything that `train` does around the steps is done: a buffer is filled, importances are computed, an old
        network is kept, and plugins are called.

        Parameters
        ----------
        experience
            The experience that the network has learned.
        progress
            Steps and seconds of its training, where they are known.

        Raises
        ------
        ConfigError
            If the network does not know its structures, or the strategy needs what only training leaves.
        """
        [experience] = self._own_experiences(experience)
        number, names = int(experience.current_experience), self.stream.names_of(experience)
        if missing := [name for name in names if name not in self.network.structures]:
            raise ConfigError(
                f"experience {number} cannot be adopted: the network does not know {', '.join(missing)}; train it"
            )
        self.check_adoption(number)
        self._adopted = progress or TrainingProgress(number)
        before = random_state()
        try:
            metrics: dict[str, Any] = super().train([experience], [])
        finally:
            self._adopted = None
            set_random_state(before)
        return metrics

    def finish_experience(self) -> None:
        """Move on to the next experience, so that a checkpoint of now says that the present one is done."""
        self.progress = TrainingProgress(self.progress.experience + 1, curve=self.progress.curve)

    def _check_experiences(self, experiences: Sequence[CLExperience]) -> None:
        """Refuse to train what cannot be trained, before anything is changed."""
        learned = set(self.learned)
        for position, experience in enumerate(experiences):
            number, stream = int(experience.current_experience), experience.origin_stream.name
            if stream != "train":
                raise ConfigError(
                    f"experience {number} is of the {stream} stream: training takes those of benchmark.train_stream"
                )
            if self.resume is not None and position == 0 and number != self.progress.experience:
                raise ConfigError(
                    f"a checkpoint in the middle of experience {self.progress.experience} is to be resumed: train that "
                    f"one first, not experience {number}"
                )
            if self.joint_base and number and 0 not in learned:
                raise ConfigError(
                    f"experience {number} comes before experience 0 was learned: train that first, or, if the network "
                    "has learned it, call adopt_experience(benchmark.train_stream[0])"
                )
            self._check_budget(number)
            learned.add(number)

    def _check_budget(self, number: int) -> None:
        """Refuse an experience whose patches make another number of steps than the settings say."""
        stream, steps = self.stream, self.budget_for(number).steps
        expected, source = self._settings.steps, f"train_steps is {self._settings.steps}"
        if self._settings.from_sections and self.checks_budget:
            names, images = stream.experiences[number], len(stream.images[number])
            expected = budget_of(self.training_config, len(names), images).steps
            source = f"the section training asks for {expected}"
        if expected not in (None, steps):
            assert expected is not None
            raise ConfigError(
                f"experience {number} ({', '.join(stream.experiences[number])}): {source} step(s), and the stream has "
                f"{len(stream.patches[number])} patches, which are {steps} step(s) of {self.train_mb_size}: make the "
                f"stream with patches={expected * self.train_mb_size}, or give train_epochs instead of steps"
            )

    def _check_ranks(self, network: nn.Module) -> None:
        """Refuse several processes where their shares of a batch cannot be put together."""
        if self.ranks.world == 1:
            return
        alone = f"train it in one process (found {self.ranks.world})"
        if not self.distributes:
            raise ConfigError(
                f"{type(self).__name__} adds earlier patches to a batch, which several processes cannot share: {alone}"
            )
        if isinstance(network, MultiHeadUNet) and network.head_kind == "decoder":
            # Norms of the joint batch are computed together: every process must call each of them.
            raise ConfigError(
                f"{type(self).__name__} gives each structure a decoder with its own batch norms, and several processes "
                f"cannot share those of a structure that is not in every share of a batch: {alone}, or take head: last"
            )

    @classmethod
    def _check_network(cls, network: nn.Module) -> None:
        """Refuse a network of another class: with the same methods it would be trained by another method."""
        wanted, found = cls.network_class, type(network)
        if wanted is not None and not isinstance(network, wanted):
            raise ConfigError(
                f"{cls.__name__} trains a {wanted.__module__}.{wanted.__qualname__}, and the model is a "
                f"{found.__name__}: make one of that class, or take another strategy"
            )
        if not hasattr(network, "structures"):
            raise ConfigError(
                f"{cls.__name__} needs a network that knows structures by name, such as repmode_cl.nn.RepModeUNet, and "
                f"{found.__name__} has no attribute structures: take one, or Avalanche's own strategies"
            )

    def _check_criterion(self, criterion: Any) -> None:
        parts = self.training_config.accumulate > 1 or self.ranks.world > 1
        if criterion is not None and parts and getattr(criterion, "reduction", None) != "mean":
            raise ConfigError(
                f"a step's batch is computed in parts (training.accumulate is {self.training_config.accumulate}, "
                f"{self.ranks.world} process(es)), and the criterion does not say reduction='mean': the losses of the "
                "parts cannot be joined; give one that is a mean over voxels, or train without parts"
            )

    def _selecting_plugins(self) -> list[str]:
        """Return the plugins that select the state which an experience ends with, and say so."""
        names = [type(plugin).__name__ for plugin in self.plugins if _selects_state(plugin)]
        if names:
            if self.training_config.patience is not None:
                raise ConfigError(
                    f"training.patience and {', '.join(names)} both stop an experience early: give one of the two"
                )
            if self.training_config.select_by != "new":
                raise ConfigError(
                    f"training.select_by is {self.training_config.select_by}, and {', '.join(names)} selects the state "
                    "that an experience ends with: give one of the two"
                )
            _log.warning(
                "%s selects the state that an experience ends with: the strategy's own selection by validation is off",
                ", ".join(names),
            )
        return names

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

    def _before_training_exp(self, **kwargs: Any) -> None:
        number = self._experience_number
        if self.resume is None:
            # So that nothing depends on what this process did before.
            seed_generators(self.seed, number)
            curve = [row for row in self.progress.curve if row["experience"] != number]
            self.progress = self._adopted or TrainingProgress(number, curve=curve)
        self._stop_training = False
        super()._before_training_exp(**kwargs)
        if self.dataloader is not self._own_loader:
            raise ConfigError(
                "a plugin has replaced the loader of patches: this strategy trains on its own, in which every patch is "
                "counted; take a strategy of this package that rehearses (Replay, AGEM, Cumulative), or use the plugin "
                "with a strategy of Avalanche"
            )

    def _after_training_exp(self, **kwargs: Any) -> None:
        number = self._experience_number
        if self._adopted is None:
            with self.outside_training():
                for listener in self.on_trained:
                    listener(self)
        # The same whether the base was trained here or adopted.
        seed_generators(self.seed, number, "after")
        began, began_cpu = time.perf_counter(), time.process_time()
        # Work after training, such as computing importances, is part of learning.
        self.after_experience(number)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.progress.seconds += time.perf_counter() - began
        self.progress.cpu_seconds += time.process_time() - began_cpu
        self.learned.add(number)
        super()._after_training_exp(**kwargs)

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Set up network, optimiser, schedule and selection for the experience, or load them from a checkpoint."""
        self.model = self.model_adaptation()
        checkpoint_activations(self.model, self.training_config.activation_checkpointing)
        fuse_under_autocast(self.model, self.training_config.fusing == "autocast")
        self.make_optimizer(**kwargs)
        self.selection = BestState(trained_state_names(self.model))
        if self.resume is not None:
            resume, self.resume = self.resume, None
            resume(self)
        else:
            if self._adopted is None:
                self.trained_patches[self._experience_number] = Counter()
            self.before_experience(self._experience_number)
        self.model.train()

    def make_optimizer(self, **kwargs: Any) -> None:
        """Make an optimiser of only the trainable parameters: weight decay would move any others.

        One that was given stays the same object, with a state as if it were new.
        """
        config = self.training_config
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimized_param_id = named
        self.scaler = self.precision.scaler()
        if self._given_optimizer is not None:
            self.optimizer, self.scheduler = self._given_optimizer.restart(named), None
            return
        self.optimizer = make_adam(
            named.values(),
            learning_rate=self.learning_rate(),
            weight_decay=self.weight_decay(),
            groups=self._rate_groups(named),
        )
        self.scheduler = make_schedule(self.optimizer, config.schedule, self.budget.steps)

    def _rate_groups(
        self, trained: Mapping[str, nn.Parameter]
    ) -> dict[str, tuple[float, list[nn.Parameter]]]:
        """Return rate and parameters of each group that has its own rate in this experience."""
        rates = self.group_rates_of(self._experience_number)
        if not rates:
            return {}
        [name] = self.stream.experiences[self._experience_number]
        members = self.network.owned_groups(name)
        return {
            group: (rate, [trained[one] for one in members[group] if one in trained])
            for group, rate in rates.items()
        }

    def learning_rate_of(self, number: int) -> float:
        """Return the peak learning rate of experience `number`; a given optimiser has the same in all."""
        if self._given_optimizer is not None:
            return self._given_optimizer.learning_rate
        return super().learning_rate_of(number)

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Load the patches in the order of the data set, from where a resumed experience stopped."""
        self.budget = self.budget_for(self._experience_number)
        self._load_epoch(self._first_epoch())

    def _first_epoch(self) -> int:
        """Return the epoch that the next step is in; the last one where all steps are done."""
        return min(self.progress.step // self._steps_of_epoch, self.train_epochs - 1)

    @property
    def _steps_of_epoch(self) -> int:
        return -(-len(self.stream.patches[self._experience_number]) // self.train_mb_size)

    def _load_epoch(self, epoch: int) -> None:
        """Load the patches of one epoch from the next step on."""
        length = len(self.stream.patches[self._experience_number])
        within = (self.progress.step - epoch * self._steps_of_epoch) * self.train_mb_size
        # Not Avalanche's data set: workers could not read it without importing Avalanche.
        loader = patch_loader(
            self.stream.patches[self._experience_number].with_length((epoch + 1) * length),
            batch_size=self.train_mb_size // self.training_config.accumulate,
            start=epoch * length + min(within, length),
            workers=self.training_config.loader_workers,
            pin_memory=self.device.type == "cuda",
            rank=self.ranks.rank,
            world=self.ranks.world,
        )
        self.dataloader = self._own_loader = LabelledBatches(loader, self.stream.labels)

    def patches_of(self, number: int) -> PatchDataset:
        """Return the patches of experience `number` in all its epochs."""
        patches = self.stream.patches[number]
        return patches.with_length(len(patches) * self.train_epochs)

    def budget_for(self, number: int) -> Budget:
        """Return the budget of experience `number`: all the patches that its stream has, in each epoch."""
        steps = self.train_epochs * -(-len(self.stream.patches[number]) // self.train_mb_size)
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
        """Return the loss of the voxels that count, or this part's share of that of the joint batch."""
        count = self._voxels if self.is_training else None
        return self.loss_of(self.mb_output, self.mb_y.to(self.mb_output.device), count=count)

    def loss_of(self, output: Tensor, target: Tensor, *, count: float | None = None) -> Tensor:
        """Return the loss of any predictions: the mean squared error, or the criterion that was given.

        The arguments are those of `repmode_cl.training.masked_mse`.
        """
        if self._criterion is masked_mse:
            return masked_mse(output, target, count=count)
        return voxel_loss(self._criterion, output, target, count=count)

    def _train_exp(self, experience: CLExperience, eval_streams: Any = None, **kwargs: Any) -> None:
        """Run the epochs of an experience, and select its best state."""
        if self._adopted is not None:
            self.stop_reason = "it was adopted"
            return
        validation = self.stream.val[self._experience_number]
        check_patience(
            self.training_config, self.stream.experiences[self._experience_number], len(validation.dataset)
        )
        due = self.progress.step and self.budget.validates(self.progress.step) and len(validation.dataset)
        if due and not self._validated:
            self._validate_or_stop()  # a signal stopped training between this step and its validation
        self.stop_reason = ""
        first = self._first_epoch()
        with sync_batch_norms(self.model, self.ranks):
            for epoch in range(first, self.train_epochs):
                if epoch > first:
                    self._load_epoch(epoch)
                self._before_training_epoch(**kwargs)
                if self._reason_to_stop() is None:
                    self.training_epoch(**kwargs)
                    self._after_training_epoch(**kwargs)
                # Checked before a step and not after it: training that resumes may have to end at once.
                if self.progress.step < self.budget.steps and (reason := self._reason_to_stop()) is not None:
                    self.stop_reason = reason
                    break
            if self.stop_reason and not self._validated:
                self._validate_or_stop()
        self._voxels = None
        self.stop_reason = self.stop_reason or f"all {self.budget.steps} steps"
        if self.selects_state:
            self.selection.restore(self.model)

    def training_epoch(self, **kwargs: Any) -> None:
        """Run the steps of an epoch: mixed precision, clipping, schedule and validation."""
        began, began_cpu = time.perf_counter(), time.process_time()
        for parts in _grouped(self.dataloader, self.training_config.accumulate):
            if self._reason_to_stop() is not None:
                break
            self._stepped = True
            self._train_step(parts, **kwargs)
            if not self._stepped:
                break
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
        number, length = self._experience_number, len(self.stream.patches[self._experience_number])
        patches = self.patches_of(number)
        epoch, within = divmod(self.progress.step, self._steps_of_epoch)
        first = epoch * length + within * self.train_mb_size
        samples = (
            patches.sample_of(item)
            for item in range(first, min(first + self.train_mb_size, (epoch + 1) * length))
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
        if any(self.ranks.total([self._stop_training])):
            return "a plugin, or another call of stop_training"
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
                if any(self.ranks.total([self._stop_training])):
                    # A plugin has put the state in place that the experience ends with: no step may follow.
                    self._stepped = False
                    return
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


StructureStrategy._common_base = StructureStrategy


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


def _the_model(model: nn.Module | None, network: nn.Module | None) -> nn.Module:
    """Return the network, by its argument or the deprecated one."""
    if network is not None:
        if model is not None:
            raise TypeError("model and network are given, which are two names of one argument: give model")
        warnings.warn("the argument network is deprecated: it is model now", DeprecationWarning, stacklevel=4)
        return network
    if model is None:
        raise TypeError("the argument model is missing: the network to train")
    return model


def _selects_state(plugin: Any) -> bool:
    """Return whether a plugin selects the state that an experience ends with; one's own says ``selects_state``."""
    return isinstance(plugin, EarlyStoppingPlugin) or bool(getattr(plugin, "selects_state", False))
