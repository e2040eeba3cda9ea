"""Strategies of the paper's task-conditioned rivals: joint training, a frozen base, or fine-tuning of everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.errors import ConfigError
from repmode_cl.nn.conditioned_unet import SLOTS, ConditionedUNet
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.hooks import Experiences, Regrouped
from repmode_cl.strategies.joint import Joint, refuse_increments
from repmode_cl.strategies.state import architecture_of

__all__ = ["ConditionedStrategy", "Mode"]

#: How the network learns a stream.
Mode = Literal["joint", "frozen", "fine_tuning"]


class ConditionedStrategy(StructureStrategy):
    """One of the paper's rivals, in one of three ways.

    Parameters
    ----------
    mode
        ``joint``: all structures of the stream in one experience, in mixed batches, with the sum of all budgets (Table
        1). ``frozen``: the base is trained jointly; each structure after it trains only what it owns, and everything
        old stays the same to the bit. ``fine_tuning``: each structure trains all that is shared, too.

    Notes
    -----
    ``frozen`` and ``fine_tuning`` share their base. A structure that returns is trained further.
    """

    #: The network.
    network_class: ClassVar[type[ConditionedUNet]]

    #: Whether that has a largest number of structures, the option ``slots``.
    has_slots: ClassVar[bool] = False

    def __init__(self, *, mode: Mode = "frozen", **kwargs: Any) -> None:
        if mode not in ("joint", "frozen", "fine_tuning"):
            raise ConfigError(f"mode is joint, frozen or fine_tuning, not {mode!r}")
        self.mode = mode
        super().__init__(**kwargs)

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return how the network learns."""
        return {"mode": options.mode}

    @classmethod
    def network_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return further arguments of the network: its slots, if it has any."""
        return {"slots": options.slots or SLOTS} if cls.has_slots else {}

    @classmethod
    def make_network(
        cls, config: Config, options: StrategyConfig, base: Sequence[str], seed: int
    ) -> nn.Module:
        """Return the network of the structures `base`."""
        make: Callable[..., ConditionedUNet] = cls.network_class
        own = cls.network_options(options)
        return make(architecture_of(config), options.kernel, base, seed=seed, **own)

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return a key of the network and its options; None for joint training, which has no base before the rest."""
        if options.mode == "joint":
            return None
        words = [f"{key}{value}" for key, value in cls.network_options(options).items()]
        return "_".join([options.name, f"k{options.kernel}", *words])

    # -- experiences --------------------------------------------------------------------------------------------

    @classmethod
    def learns_at_once(cls, options: StrategyConfig) -> bool:
        """Return whether it learns jointly."""
        return options.mode == "joint"

    @classmethod
    def regroup(cls, experiences: Experiences, options: StrategyConfig) -> Regrouped:
        """Return the experiences, or one of all structures."""
        if options.mode == "joint":
            return Joint.regroup(experiences, options)
        return super().regroup(experiences, options)

    @classmethod
    def steps_of(
        cls,
        training: TrainingConfig,
        options: StrategyConfig,
        experiences: Experiences,
        structures: Sequence[str],
        images: int,
    ) -> int:
        """Return the budget of an experience, or of joint training: the sum of all."""
        if options.mode == "joint":
            return Joint.steps_of(training, options, experiences, structures, images)
        return super().steps_of(training, options, experiences, structures, images)

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse windows of another size than the patches, where the network depends on it, and a lack of slots."""
        super().check(config, options, experiences)
        cls._check_window(options.title, config.inference.window, config.patch.size)
        structures = len({name for group in experiences for name in group})
        slots = cls.network_options(options).get("slots", structures)
        if structures > slots:
            raise ConfigError(
                f"{options.title}: the stream has {structures} structures, and the network {slots} slots: set slots: "
                f"{structures}, or more"
            )

    def check_stream(self, stream: StructureStream) -> None:
        """Refuse increments where it learns jointly, and windows of another size than the patches."""
        if self.mode == "joint":
            refuse_increments(stream)
        self._check_window(type(self).__name__, self.inference.window, stream.patch)

    @classmethod
    def _check_window(cls, name: str, window: Sequence[int] | None, patch: Sequence[int]) -> None:
        if cls.network_class.depends_on_window and window is not None and tuple(window) != tuple(patch):
            raise ConfigError(
                f"{name}: inference.window is {list(window)} and the patches have {list(patch)} voxels: weights or "
                f"norms of {cls.network_class.__name__} depend on what it is given, so that it predicts windows of the "
                "training patches' size; leave inference.window out"
            )

    def learning_rate(self) -> float:
        """Return the experience's peak rate; of joint training, the strategy's where it has one."""
        if self.mode == "joint":
            return self.addition_learning_rate or self.training_config.learning_rate
        return super().learning_rate()

    def grow(self, structures: Sequence[str]) -> None:
        """Add each structure to the frozen network, or to what is trained further."""
        add = self.network.add_structure if self.mode == "frozen" else self.network.add_base_structure
        for name in structures:
            add(name, seed=self.seed)
