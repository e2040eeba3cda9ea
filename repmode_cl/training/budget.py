"""Budget of an experience: its steps and validations, by one rule for every strategy."""

from __future__ import annotations

from dataclasses import dataclass

from repmode_cl.config import TrainingConfig

__all__ = ["Budget", "budget_of", "budget_of_steps"]


@dataclass(frozen=True)
class Budget:
    """Optimiser steps of one experience.

    Attributes
    ----------
    steps
        Number of steps.
    validate_every
        Steps between validations; the last step is validated too.
    """

    steps: int
    validate_every: int

    def validates(self, step: int) -> bool:
        """Return whether a validation follows after `step` steps."""
        return step == self.steps or step % self.validate_every == 0


def budget_of(training: TrainingConfig, structures: int, images: int) -> Budget:
    """Return the budget of an experience with these numbers of structures and training images.

    With `epochs`, a step sees `batch_size` patches and an epoch one patch of each image (paper, section 4.1).
    """
    if training.epochs is not None:
        steps = -(-training.epochs * images // training.batch_size)
    elif structures > 1:
        steps = training.base_steps or structures * (training.steps or 1)
    else:
        steps = training.steps or 1
    return budget_of_steps(training, steps, images)


def budget_of_steps(training: TrainingConfig, steps: int, images: int) -> Budget:
    """Return the budget of an experience with these numbers of steps and training images."""
    if training.validate_every is not None:
        every = training.validate_every
    elif training.validate_every_epochs is not None:
        every = -(-training.validate_every_epochs * images // training.batch_size)
    else:
        every = -(-steps // 10)
    return Budget(steps, min(every, steps))
