"""Settings of a training by Avalanche's argument names, resolved into the sections that a configuration has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from repmode_cl.config import InferenceConfig, TrainingConfig
from repmode_cl.errors import ConfigError

__all__ = ["TrainingSettings", "resolve_training"]

#: Patches of an optimiser step, and passes over an experience's patches, where neither arguments nor sections say.
_BATCH, _EPOCHS = 8, 1


@dataclass(frozen=True)
class TrainingSettings:
    """Resolved settings of a strategy.

    Attributes
    ----------
    training, inference
        The sections of a configuration that the arguments stand for.
    epochs
        Passes over the patches of an experience; each pass cuts other patches.
    steps
        Optimiser steps that every experience must have by its patches; None where the arguments name no number.
    from_sections
        Whether the sections were given, whose budget the stream's patches must match.
    peval_mode
        What periodic evaluation counts: ``epoch`` or ``iteration``.
    """

    training: TrainingConfig
    inference: InferenceConfig
    epochs: int
    steps: int | None
    from_sections: bool
    peval_mode: str


def resolve_training(
    *,
    training: TrainingConfig | None,
    inference: InferenceConfig | None,
    sizes: Mapping[str, int | None],
    optimizer: Optimizer | None,
    device: torch.device | str | None,
    peval_mode: str | None,
) -> TrainingSettings:
    """Resolve arguments and sections, which say the same in two ways, into one.

    Parameters
    ----------
    training, inference
        Sections of a configuration, or None.
    sizes
        ``train_mb_size``, ``train_epochs``, ``train_steps``, ``eval_mb_size``; None where they are not given.
    optimizer
        The optimiser that was given, whose rate stands in the settings.
    device
        Where it trains; None takes that of `training`.
    peval_mode
        None counts iterations where steps are given, else epochs.

    Raises
    ------
    ConfigError
        If a number is below 1, or a section and an argument say the same thing twice.
    """
    given = {name: value for name, value in sizes.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}: give a whole number of at least 1")
    if peval_mode not in (None, "epoch", "iteration", "experience"):
        raise ConfigError(f"peval_mode is {peval_mode!r}: give epoch or iteration")
    if "train_epochs" in given and "train_steps" in given:
        raise ConfigError("give either train_epochs or train_steps, not both")
    if inference is not None and "eval_mb_size" in given:
        raise ConfigError(
            "give either eval_mb_size or the section inference, whose batch_size it is, not both"
        )
    if inference is None:
        inference = (
            InferenceConfig(batch_size=given["eval_mb_size"])
            if "eval_mb_size" in given
            else InferenceConfig()
        )
    steps, epochs = given.get("train_steps"), given.get("train_epochs", _EPOCHS)
    if training is not None:
        twice = [name for name in ("train_mb_size", "train_epochs", "train_steps") if name in given]
        if twice:
            raise ConfigError(
                f"{', '.join(twice)} and the section training are given: batch size and budget stand in that section; "
                "give one of the two"
            )
        repeated = training.epochs if training.last_batch == "short" else None
        return TrainingSettings(training, inference, repeated or 1, None, True, peval_mode or "epoch")
    values: dict[str, Any] = {"batch_size": given.get("train_mb_size", _BATCH)}
    values |= {"steps": steps} if steps is not None else {"epochs": epochs}
    if device is not None:
        values["device"] = str(device)
    if optimizer is not None and (rate := float(optimizer.param_groups[0]["lr"])) > 0:
        values["learning_rate"] = rate  # one that warms up from zero has its own
    training = TrainingConfig(**values)
    mode = peval_mode or ("iteration" if steps is not None else "epoch")
    return TrainingSettings(training, inference, 1 if steps is not None else epochs, steps, False, mode)
