"""Optimiser (Adam, in the fastest form that torch has) and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["keep_parameter_layout", "make_adam", "make_schedule"]

#: One cycle: part of the steps that the rate climbs, and its start and end relative to its peak.
_CLIMB, _START, _END = 0.3, 0.04, 1e-3

#: Devices whose fused Adam updates all parameters in one pass over memory.
_FUSED = frozenset({"cpu", "cuda"})


def make_adam(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    groups: Mapping[str, tuple[float, Sequence[nn.Parameter]]] | None = None,
) -> torch.optim.Adam:
    """Return Adam (paper, section 4.1) over `parameters`, fused where torch has that, else one tensor list at a time.

    Parameters
    ----------
    parameters
        Only the trained parameters: an optimiser may move all that it holds.
    learning_rate, weight_decay
        As of `torch.optim.Adam`.
    groups
        Name -> rate and parameters of those of `parameters` that have another rate. They are groups of the optimiser
        under their names, after that of the others, which is left out where it is empty.

    Raises
    ------
    ValueError
        If a group is empty.

    Notes
    -----
    The form depends only on the parameters' devices and types, so that a training that resumes on the same kind of
    device uses the same arithmetic.
    """
    trained = list(parameters)
    fused = all(_fusable(parameter) for parameter in trained)
    optimizer = torch.optim.Adam(
        _parameter_groups(trained, groups),
        lr=learning_rate,
        weight_decay=weight_decay,
        fused=fused,
        foreach=None if fused else True,
    )
    keep_parameter_layout(optimizer)
    return optimizer


def _parameter_groups(
    trained: list[nn.Parameter], groups: Mapping[str, tuple[float, Sequence[nn.Parameter]]] | None
) -> Any:
    """Return what an optimiser takes: the parameters, or a list of groups."""
    if not groups:
        return trained
    if empty := [name for name, (_, members) in groups.items() if not members]:
        raise ValueError(f"the group {empty[0]!r} has no parameters")
    grouped = {id(parameter) for _, members in groups.values() for parameter in members}
    rest = [parameter for parameter in trained if id(parameter) not in grouped]
    named = [{"params": list(members), "lr": rate, "name": name} for name, (rate, members) in groups.items()]
    return [{"params": rest, "name": "rest"}, *named] if rest else named


def keep_parameter_layout(optimizer: Optimizer) -> None:
    """Make `optimizer` bring a state that it loads into the memory order of its parameters."""
    optimizer.register_load_state_dict_post_hook(_lay_out_as_parameters)


def _fusable(parameter: Tensor) -> bool:
    return parameter.device.type in _FUSED and parameter.is_floating_point()


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Bring loaded moments into the memory order of their parameters.

    Fused Adam walks parameter, gradient and moments as flat memory and checks no strides: moments in another order
    (kernels are channels-last, files are not) would be applied to the wrong weights, silently.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


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
