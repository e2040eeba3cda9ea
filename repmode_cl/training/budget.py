"""Budget of an experience: its steps and validations, by one rule for every strategy."""

from __future__ import annotations

from dataclasses import dataclass

from repmode_cl.config import TrainingConfig

__all__ = ["Budget", "budget_of", "budget_of_steps", "patch_count"]


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
        if training.last_batch == "short":
            steps = training.epochs * -(-images // training.batch_size)
        else:
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
        if training.last_batch == "short":
            every = training.validate_every_epochs * -(-images // training.batch_size)
        else:
            every = -(-training.validate_every_epochs * images // training.batch_size)
    else:
        every = -(-steps // 10)
    return Budget(steps, min(every, steps))


def patch_count(training: TrainingConfig, steps: int, images: int) -> int:
    """Return how many patches a stream has for an experience of these numbers of steps and training images.

    With a short last batch they are those of one epoch, which is repeated; else those of all steps.
    """
    return images if training.last_batch == "short" else steps * training.batch_size
