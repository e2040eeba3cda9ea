"""Joint training of all structures at once (the paper's RepMode, section 4.2): the upper reference."""

from __future__ import annotations

from collections.abc import Sequence

from repmode_cl.config import StrategyConfig, TrainingConfig
from repmode_cl.errors import ConfigError
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.hooks import Experiences, Regrouped
from repmode_cl.training import budget_of

__all__ = ["Joint", "refuse_increments"]


class Joint(StructureStrategy):
    """One experience of all structures of the stream, with as many steps as all its experiences have together.

    It has all images at once, which no incremental learner has; so it has figures only after the last step.
    """

    @classmethod
    def learns_at_once(cls, options: StrategyConfig) -> bool:
        """Return True."""
        return True

    @classmethod
    def regroup(cls, experiences: Experiences, options: StrategyConfig) -> Regrouped:
        """Return one experience of all structures, done after the last step."""
        return (tuple(dict.fromkeys(name for names in experiences for name in names)),), (
            len(experiences) - 1,
        )

    @classmethod
    def steps_of(
        cls,
        training: TrainingConfig,
        options: StrategyConfig,
        experiences: Experiences,
        structures: Sequence[str],
        images: int,
    ) -> int:
        """Return the sum of the budgets of all experiences.

        Raises
        ------
        ConfigError
            If the base's budget is in epochs and the others' in steps, which cannot be summed.
        """
        if training.epochs is not None:
            if options.steps is not None:
                raise ConfigError(
                    "strategy joint: steps needs training.steps, not training.epochs: its budget is the sum of all"
                )
            return budget_of(training, len(structures), images).steps  # which is linear in the images
        return sum(
            super(Joint, cls).steps_of(training, options, experiences, names, 0) for names in experiences
        )

    def check_stream(self, stream: StructureStream) -> None:
        """Refuse a stream of several experiences: it learns all structures at once."""
        refuse_increments(stream)

    def learning_rate(self) -> float:
        """Return the strategy's peak learning rate where it has one, else the training's."""
        return self.addition_learning_rate or self.training_config.learning_rate


def refuse_increments(stream: StructureStream) -> None:
    """Refuse a stream of several experiences.

    Raises
    ------
    ConfigError
        Saying how to make one of all structures.
    """
    if len(stream.experiences) > 1:
        names = ", ".join(dict.fromkeys(name for names in stream.experiences for name in names))
        raise ConfigError(
            f"joint training learns all structures in one experience, and the stream has {len(stream.experiences)}"
            f": make it with all of them as its base ({names}) and an empty order"
        )
