"""What a strategy decides for itself: the hooks of `StructureStrategy` that a subclass may override.

What they decide by default is what fine-tuning does: the base's structures are learned together, then one structure
after the other, with nothing kept besides the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.errors import ConfigError
from repmode_cl.nn import RepModeUNet
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.state import TrainingProgress, architecture_of
from repmode_cl.training import budget_of

__all__ = ["REPMODE", "StrategyHooks", "Experiences", "Regrouped"]

#: Structures of each experience.
Experiences = tuple[tuple[str, ...], ...]

#: Experiences as a strategy trains them, and the step of the stream after which each is done.
Regrouped = tuple[Experiences, tuple[int, ...]]

#: Key of the base of all strategies that begin with the one RepMode network.
REPMODE = "repmode"


class StrategyHooks:
    """The hooks; see each.

    Attributes
    ----------
    joint_base
        Whether the structures of the first experience are learned together; else one network after another.
    stores_model
        Whether what is learned is kept, and verified, as a model directory: the network is then a `RepModeUNet`
        whose additions never change.
    """

    joint_base: ClassVar[bool] = True
    stores_model: ClassVar[bool] = False

    # What `StructureStrategy` has.
    network: Any
    stream: StructureStream
    training_config: TrainingConfig
    addition_learning_rate: float | None
    progress: TrainingProgress
    experience: Any

    _base_key: str | None = None
    base_learning_rate: float | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "shared_base" not in vars(cls) and not cls.__module__.startswith("repmode_cl."):
            cls.shared_base = StrategyHooks.__dict__["shared_base"]  # type: ignore[method-assign]

    # -- how it is made -----------------------------------------------------------------------------------------

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
            What it will learn, grouped as `regroup` says.
        seed
            Seed of the weights.
        **common
            What all strategies take: see `StructureStrategy`.
        """
        network = cls.make_network(config, options, stream.experiences[0], seed)
        make: Callable[..., Self] = cls
        return make(network=network, stream=stream, seed=seed, **cls.own_options(options), **common)

    @classmethod
    def make_network(
        cls, config: Config, options: StrategyConfig, base: Sequence[str], seed: int
    ) -> nn.Module:
        """Return the network that it begins with, which knows the structures `base` (if it has a joint base)."""
        return RepModeUNet(architecture_of(config), base, seed=seed)

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return what the constructor takes besides what all take; by default the configuration's ``options``."""
        return dict(options.options)

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse what this strategy cannot learn, before anything is run or written; quick.

        By default the experiences are regrouped, their steps counted and what these cost. A class that checks more does
        that too.

        Parameters
        ----------
        config, options
            The whole configuration, and the strategy's section of it.
        experiences
            Of one stream, before `regroup`.

        Raises
        ------
        ConfigError
            Saying what does not go together.
        """
        for number, names in enumerate(cls.regroup(experiences, options)[0]):
            steps = cls.steps_of(config.training, options, experiences, names, len(names))
            if steps < 1:
                raise ConfigError(
                    f"strategies: {options.name}: steps_of says {steps} for {', '.join(names)}; at least 1 is needed"
                )
            cls.cost_of_step(options, config.training, number)

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the trained base that it shares, or None where it trains one of its own.

        Strategies of equal keys begin with identical networks, and train the first experience alike to the bit. A
        class outside this package shares one only if it defines this itself: what it inherits says nothing of what
        it does otherwise.
        """
        return None

    @property
    def base_key(self) -> str | None:
        """Key of the trained base that it shares (see `shared_base`); None where it trains its own."""
        return self._base_key

    # -- what it is given ---------------------------------------------------------------------------------------

    @classmethod
    def regroup(cls, experiences: Experiences, options: StrategyConfig) -> Regrouped:
        """Return the experiences as this strategy trains them, and the step of the stream after which each is done."""
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
            The section of the configuration.
        options
            The strategy's: its `steps` are those of each experience after the base.
        experiences
            Of the stream, before `regroup`.
        structures, images
            The experience's structures, as `regroup` gives it, and its number of training images.
        """
        if options.steps is not None and not set(structures) <= set(experiences[0]):
            return options.steps
        return budget_of(training, len(structures), images).steps

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return about how long a step takes, in steps of `batch_size` patches, where so many structures are known."""
        return 1.0

    # -- what is trained, and how -------------------------------------------------------------------------------

    def grow(self, structures: Sequence[str]) -> None:
        """Make the network know `structures`, which arrive now."""
        raise TypeError(f"{type(self).__name__} does not say how its network grows")

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Make trainable what learning `structures` may change, freeze the rest, and return the parameters' names."""
        trained: frozenset[str] = self.network.train_only(structures)
        return trained

    def learning_rate(self) -> float:
        """Return the experience's peak learning rate: the training's for a joint base, else the strategy's own."""
        base = self.joint_base and int(self.experience.current_experience) == 0
        given = self.base_learning_rate if base else self.addition_learning_rate
        return self.training_config.learning_rate if given is None else given

    def before_experience(self, number: int) -> None:
        """Prepare for experience `number`, whose structures the network knows; not called where it is resumed."""

    def extend(self, batch: list[Tensor], part: int, parts: int) -> list[Tensor]:
        """Return a micro-batch with what is trained on besides, after what came.

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

    # -- what it keeps ------------------------------------------------------------------------------------------

    def after_experience(self, number: int) -> None:
        """Keep what is needed of experience `number`, which was just trained, or whose trained base was taken."""

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint must hold besides network, optimiser and progress: tensors, and a JSON value."""
        return {}, {}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `extra_state` returned; the network knows the structures of all finished experiences."""

    def costs(self) -> dict[str, float]:
        """Return what else the strategy costs now, such as ``buffer_bytes``: rows of the results."""
        return {}
