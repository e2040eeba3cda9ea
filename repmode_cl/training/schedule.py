"""Learning-rate schedules, made afresh for each experience's optimiser."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["make_schedule"]

#: One cycle: part of the steps that the rate climbs, and what it starts from and ends at, relative to its peak.
_CLIMB, _START, _END = 0.3, 0.04, 1e-3


def make_schedule(optimizer: Optimizer, kind: str, steps: int) -> LambdaLR:
    """Return a schedule to be stepped after each optimiser step.

    Parameters
    ----------
    optimizer
        Its learning rate is the schedule's peak.
    kind
        ``constant``; ``cosine`` (from the peak to 0); ``one_cycle`` (a climb over the first 30% of the steps,
        then a cosine down).
    steps
        Optimiser steps of the experience.
    """

    def cosine(start: float, end: float, part: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * min(part, 1.0))) / 2

    def factor(step: int) -> float:
        if kind == "constant":
            return 1.0
        part = step / max(steps - 1, 1)
        if kind == "cosine":
            return cosine(1.0, 0.0, part)
        if kind == "one_cycle":
            return (
                cosine(_START, 1.0, part / _CLIMB)
                if part < _CLIMB
                else cosine(1.0, _END, (part - _CLIMB) / (1 - _CLIMB))
            )
        raise ValueError(f"schedule is constant, cosine or one_cycle, not {kind!r}")

    return LambdaLR(optimizer, factor)
