"""Hooks of `StructureStrategy`: the methods that a strategy may override.

By default they do what fine-tuning does: the base's structures are learned together, then one structure after the
other, with no state besides the network.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.errors import ConfigError
from repmode_cl.nn import RepModeUNet
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.constructor_options import (
    RecordedOptions,
    check_option_values,
    constructor_arguments,
    refuse_unknown_keywords,
)
from repmode_cl.strategies.state import TrainingProgress, architecture_of
from repmode_cl.training import budget_of

__all__ = ["StrategyHooks", "Experiences", "Regrouped", "REPMODE"]

#: Structures of each experience.
Experiences = tuple[tuple[str, ...], ...]

#: Experiences as a strategy trains them, and the step of the stream that each completes.
Regrouped = tuple[Experiences, tuple[int, ...]]

#: Key of the base of all strategies that start with the one RepMode network.
REPMODE = "repmode"


class StrategyHooks:
    """Methods and attributes by which strategies differ.

    Attributes
    ----------
    joint_base
        Whether the structures of the first experience are learned together; otherwise one network after another.
    stores_model
        Whether the network is stored and verified as a model directory; it is a `RepModeUNet` then, whose additions
        never change.
    distributes
        Whether several processes can train together: whether each of them computes its share of what the strategy
        adds to a batch. Networks with a decoder for each structure cannot be trained so either.
    predicts_unseen
        Whether it predicts a structure before that is learned. The networks of this package have no output for one by
        design, so forward transfer in the sense of figures before training is not defined for them.
    network_class
        Class that the network must be of, because another one would be trained by another method; None takes any.
    checkpointed
        Whether a checkpoint holds all its state; where not, an interrupted trial starts again.
    shares_base
        Whether the class trains its base as every strategy of the same `shared_base` key does, to the bit. It counts
        only where the class itself declares it, as its own method `shared_base` does too: what a subclass changes
        may change its base.
    """

    joint_base: ClassVar[bool] = True
    stores_model: ClassVar[bool] = False
    predicts_unseen: ClassVar[bool] = False
    distributes: ClassVar[bool] = True
    checkpointed: ClassVar[bool] = True
    network_class: ClassVar[type[nn.Module] | None] = None
    shares_base: ClassVar[bool] = False
    #: Strength of a penalty or of distillation where the configuration gives none; None without such an option.
    default_strength: ClassVar[float | None] = None

    # Attributes that `StructureStrategy` sets.
    network: Any
    training_config: TrainingConfig
    addition_learning_rate: float | None
    progress: TrainingProgress
    experience: Any

    #: Class whose constructor's keywords all strategies share: `StructureStrategy`, which sets it.
    _common_base: ClassVar[type]
    _base_key: str | None = None
    _stream: StructureStream | None = None
    base_learning_rate: float | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the constructor name the nearest keyword where it is given an unknown one; Avalanche's names none."""
        super().__init_subclass__(**kwargs)
        initialise: Callable[..., None] = cls.__init__

        @functools.wraps(initialise)
        def checked(self: StrategyHooks, *args: Any, **given: Any) -> None:
            refuse_unknown_keywords(type(self), self._common_base, given)
            if cls.__module__.startswith(f"{__package__}."):
                check_option_values(type(self), given)
            initialise(self, *args, **given)

        cls.__init__ = checked  # type: ignore[assignment, method-assign]

    @property
    def stream(self) -> StructureStream:
        """Stream whose experiences it learns.

        Raises
        ------
        ConfigError
            If it was given none, and no experience yet.
        """
        if self._stream is None:
            raise ConfigError(
                f"{type(self).__name__} has no benchmark yet: train or evaluate one of its experiences first, or give "
                "the strategy stream=benchmark"
            )
        return self._stream

    # -- construction -------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls, config: Config, options: StrategyConfig, stream: StructureStream, seed: int, **common: Any
    ) -> Self:
        """Make the strategy with a fresh network.

        Parameters
        ----------
        config
            The whole configuration.
        options
            The strategy's section of it.
        stream
            Stream to learn, in the experiences that `regroup` returns.
        seed
            Seed of the weights.
        **common
            Arguments of all strategies: see `StructureStrategy`.
        """
        given = options.options
        fresh = given.fresh() if isinstance(given, RecordedOptions) else RecordedOptions(given)
        options = options.model_copy(update={"options": fresh})
        network = cls.make_network(config, options, stream.experiences[0], seed)
        make: Callable[..., Self] = cls
        arguments = constructor_arguments(cls, cls._common_base, options)
        # A class of before, which names the deprecated argument, hands it on.
        named = inspect.signature(cls.__init__).parameters
        name = "network" if "network" in named and "model" not in named else "model"
        return make(**{name: network}, stream=stream, seed=seed, **arguments, **common)

    @classmethod
    def make_network(
        cls, config: Config, options: StrategyConfig, base: Sequence[str], seed: int
    ) -> nn.Module:
        """Return the initial network, which knows the structures `base` (if the strategy has a joint base)."""
        shared_bias = config.training.gate == "shared_bias"
        return RepModeUNet(architecture_of(config), base, seed=seed, shared_gate_bias=shared_bias)

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the constructor's additional arguments; by default the configuration's ``options``.

        An option that a class's own method neither returns nor reads reaches the constructor too if that names it, and
        is refused otherwise.
        """
        given = options.options
        inherited = given.inheritable if isinstance(given, RecordedOptions) else ()
        return {key: given[key] for key in given if key not in inherited}

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse a stream that this strategy cannot learn, before anything is run or written; it must be quick.

        By default `regroup`, `steps_of` and `cost_of_step` are called for all experiences. A class that checks more
        calls this too.

        Parameters
        ----------
        config, options
            The whole configuration, and the strategy's section of it.
        experiences
            Experiences of one stream, before `regroup`.

        Raises
        ------
        ConfigError
            Naming the settings that contradict each other.
        """
        for number, names in enumerate(cls.regroup(experiences, options)[0]):
            steps = cls.steps_of(config.training, options, experiences, names, len(names))
            if steps < 1:
                raise ConfigError(
                    f"strategies: {options.name}: steps_of says {steps} for {', '.join(names)}; at least 1 is needed"
                )
            if config.training.last_batch == "short":
                expected = budget_of(config.training, len(names), len(names)).steps
                if steps != expected:
                    raise ConfigError(
                        f"strategies: {options.name}: training.last_batch is short, which counts epochs, and this "
                        f"strategy has {steps} steps where its epochs have {expected}: make last_batch continuous"
                    )
            cls.cost_of_step(options, config.training, number)

    @classmethod
    def default_strength_of(cls, options: StrategyConfig) -> float | None:
        """Return the `strength` that null stands for; None of a strategy that has no such option."""
        return cls.default_strength

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the trained base that it shares, or None where it trains its own.

        Strategies of equal keys start with identical networks, and train the first experience the same to the bit. The
        key is used only of a class that declares `shares_base`, or that defines this method itself.
        """
        return None

    @classmethod
    def declared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the base that this class itself declares to share, or None."""
        declared = vars(cls).get("shares_base", "shared_base" in vars(cls))
        return cls.shared_base(options) if declared else None

    @property
    def base_key(self) -> str | None:
        """Key of the trained base that it shares (see `shared_base`); None where it trains its own."""
        return self._base_key

    # -- experiences and their budgets --------------------------------------------------------------------------

    @classmethod
    def learns_at_once(cls, options: StrategyConfig) -> bool:
        """Return whether it learns all structures of a stream in one experience, as joint training does."""
        return False

    @classmethod
    def regroup(cls, experiences: Experiences, options: StrategyConfig) -> Regrouped:
        """Return the experiences as this strategy trains them, and the step of the stream that each completes."""
        return experiences, tuple(range(len(experiences)))

    @classmethod
    def steps_of(
        cls,
        training: TrainingConfig,
        options: StrategyConfig,
        experiences: Experiences,
        structures: Sequence[str],
        images: int,
    ) -> int:
        """Return the optimiser steps of one experience.

        Parameters
        ----------
        training
            The training section of the configuration.
        options
            The strategy's section: its `steps` are those of each experience after the base.
        experiences
            Experiences of the stream, before `regroup`.
        structures, images
            Structures of the experience, as `regroup` returns it, and its number of training images.
        """
        if options.steps is not None and not set(structures) <= set(experiences[0]):
            return options.steps
        return budget_of(training, len(structures), images).steps

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return the cost of a step with so many earlier structures, in plain steps of `batch_size` patches."""
        return 1.0

    # -- training -----------------------------------------------------------------------------------------------

    def check_stream(self, stream: StructureStream) -> None:
        """Refuse a stream that this strategy cannot learn; called once, when it gets its stream."""

    def check_adoption(self, number: int) -> None:
        """Refuse to take over experience `number` from a network that has learned it elsewhere."""

    def grow(self, structures: Sequence[str]) -> None:
        """Add `structures`, which arrive now, to the network."""
        raise TypeError(f"{type(self).__name__} does not define grow")

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Make only the parameters trainable that learning `structures` may change, and return their names."""
        trained: frozenset[str] = self.network.train_only(structures)
        return trained

    def learning_rate(self) -> float:
        """Return the experience's peak learning rate: the training's for a joint base, else the strategy's own."""
        return self.learning_rate_of(int(self.experience.current_experience))

    def learning_rate_of(self, number: int) -> float:
        """Return the peak learning rate of experience `number`."""
        base = self.joint_base and number == 0
        rate = self.base_learning_rate if base else self.addition_learning_rate
        return self.training_config.learning_rate if rate is None else rate

    def group_rates_of(self, number: int) -> dict[str, float]:
        """Return the peak learning rate of each group of parameters in experience `number`; empty where all have one.

        The groups are those of `RepModeUNet.owned_groups`.
        """
        return {}

    def weight_decay(self) -> float:
        """Return the experience's weight decay, by default the training's."""
        return self.training_config.weight_decay

    def before_experience(self, number: int) -> None:
        """Prepare for experience `number`, whose structures the network knows; `train` calls it unless it resumes."""

    def extend(self, batch: list[Tensor], part: int, parts: int) -> list[Tensor]:
        """Return a micro-batch with additional patches, such as replayed ones, appended.

        Parameters
        ----------
        batch
            Signals (N, 1, z, y, x), targets (N, 1 or 2, z, y, x) and task labels (N,), on the CPU.
        part, parts
            Number of this micro-batch among those of the optimiser step.
        """
        return batch

    def adjust_gradients(self) -> None:
        """Change the gradients of the whole batch, which a `scaler` may have scaled, before they are clipped."""

    # -- state --------------------------------------------------------------------------------------------------

    def after_experience(self, number: int) -> None:
        """Store state of experience `number`, which was just trained, or adopted; `train` calls it."""

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return state for a checkpoint besides network, optimiser and progress: tensors, and a JSON value."""
        return {}, {}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Load what `extra_state` returned; the network knows the structures of all finished experiences."""

    def costs(self) -> dict[str, float]:
        """Return additional costs at this step, such as ``buffer_bytes``: rows of the results."""
        return {}
