"""Early stopping of an experience: patience and time limit.

The decision depends only on what a checkpoint holds (validation figures, the best step, seconds): a training that is
interrupted ends where it would have ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from repmode_cl.config import TrainingConfig
from repmode_cl.errors import ConfigError

__all__ = ["check_patience", "idle_validations", "out_of_patience", "out_of_time", "validated_at"]


def check_patience(training: TrainingConfig, structures: Iterable[str], images: int) -> None:
    """Refuse patience for an experience that has no image to validate on.

    Raises
    ------
    ConfigError
        Naming its structures.
    """
    if training.patience is not None and not images:
        raise ConfigError(
            f"patience counts validations, but no image of {', '.join(structures)} validates: name rows with split val "
            "in the manifest, give more images, or leave patience out"
        )


def _steps(curve: Iterable[Mapping[str, Any]], experience: int) -> set[int]:
    """Return the steps of `experience` that were validated."""
    return {int(row["train_step"]) for row in curve if row["experience"] == experience}


def validated_at(curve: Iterable[Mapping[str, Any]], experience: int, step: int) -> bool:
    """Return whether the state after `step` steps was validated, on at least one image."""
    return step in _steps(curve, experience)


def idle_validations(curve: Iterable[Mapping[str, Any]], experience: int, best_step: int) -> int:
    """Return the number of validations of `experience` after the best one.

    Parameters
    ----------
    curve
        Validation figures: each names its ``experience`` and its ``train_step``.
    experience
        Number of the experience.
    best_step
        Step of the best validation; 0 if there was none, such as where every figure was NaN.
    """
    return sum(step > best_step for step in _steps(curve, experience))


def out_of_patience(training: TrainingConfig, idle: int) -> str | None:
    """Return why training stops after `idle` validations without an improvement, or None to continue."""
    if training.patience is None or idle < training.patience:
        return None
    return f"no improvement in {idle} validation{'s' if idle > 1 else ''}"


def out_of_time(training: TrainingConfig, seconds: float) -> str | None:
    """Return why training stops after `seconds` seconds, or None to continue."""
    if training.time_limit is None or seconds < training.time_limit:
        return None
    return f"the time limit of {_duration(training.time_limit)}"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{_short(seconds / size)} {unit}"
    return f"{_short(seconds)} s"


def _short(value: float) -> str:
    return f"{value:.0f}" if math.isclose(value, round(value)) else f"{value:.1f}"
