"""Selection by validation: an experience ends with the state of the lowest validation MSE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["BestState", "trained_state_names"]


def trained_state_names(network: nn.Module) -> tuple[str, ...]:
    """Return the state-dict names that training may change: trainable parameters, and running statistics in use.

    Statistics of a norm without a weight are always in use.
    """
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and (module.weight is None or module.weight.requires_grad):
            names += [f"{name}.{buffer}" for buffer, _ in module.named_buffers()]
    return tuple(names)


class BestState:
    """Copy of the best state of an experience.

    Parameters
    ----------
    names
        State-dict names to copy; the rest does not change.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.best = math.inf
        self.step = 0
        self.tensors: dict[str, Tensor] = {}

    def offer(self, network: nn.Module, step: int, mse: float) -> bool:
        """Copy the network's state if `mse` is the lowest so far (paper, section 4.1), and return whether it was.

        A value that is not finite is never the best.
        """
        if not mse < self.best:
            return False
        state = network.state_dict()
        self.best, self.step = mse, step
        self.tensors = {name: state[name].detach().to("cpu", copy=True) for name in self.names}
        return True

    def restore(self, network: nn.Module) -> None:
        """Load the best state into the network; without any validated state it stays unchanged."""
        state = network.state_dict()
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                state[name].copy_(tensor)

    def load(self, tensors: Mapping[str, Tensor], step: int, best: float) -> None:
        """Load the state that a checkpoint holds."""
        self.tensors, self.step, self.best = dict(tensors), step, best
