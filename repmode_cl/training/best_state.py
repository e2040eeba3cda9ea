"""Selection by validation: an experience ends with the state of the lowest validation MSE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["BestState", "trained_state_names"]


def trained_state_names(network: nn.Module) -> tuple[str, ...]:
    """Return the state-dict names that training may change: trainable parameters, running statistics, other buffers.

    Running statistics are those in use; statistics of a norm without a weight are always in use. Of the other buffers
    those of networks of one's own count, where a part with them is trained: nothing else is known of them.
    """
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and (module.weight is None or module.weight.requires_grad):
            names += [f"{name}.{buffer}" for buffer, _ in module.named_buffers()]
    stored = network.state_dict(keep_vars=True)
    for name, module in network.named_modules():
        # No bundled network has another buffer that changes once its best state is taken.
        if isinstance(module, _NormBase) or type(module).__module__.partition(".")[0] == "repmode_cl":
            continue
        prefix = f"{name}." if name else ""
        buffers = [f"{prefix}{one}" for one, _ in module.named_buffers(recurse=False)]
        if buffers and _in_trained_part(network, name):
            names += [one for one in buffers if one in stored]
    return tuple(names)


def _in_trained_part(network: nn.Module, name: str) -> bool:
    """Tell whether the smallest part that holds a module, and has parameters, is trained."""
    while True:
        parameters = list(network.get_submodule(name).parameters())
        if parameters or not name:
            return any(parameter.requires_grad for parameter in parameters)
        name = name.rpartition(".")[0]


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
