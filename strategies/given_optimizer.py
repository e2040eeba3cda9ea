"""An optimiser that the user made: it stays the same object, and holds in each experience only what is trained.

Avalanche's plugins, such as its LRSchedulerPlugin, keep the object that they were given. A strategy of this package
must not give it more than it may change: weight decay and momentum would move parameters without a gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from repmode_cl.errors import ConfigError
from repmode_cl.training.optim import keep_parameter_layout

__all__ = ["GivenOptimizer"]


class GivenOptimizer:
    """The user's optimiser, and what it was like when the strategy was made.

    Parameters
    ----------
    optimizer
        Any optimiser of torch but LBFGS, over parameters of `model`.
    model
        The network.

    Raises
    ------
    ConfigError
        If it holds a tensor that is not the model's, or computes the loss several times in a step.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        if isinstance(optimizer, LBFGS):
            raise ConfigError(
                "LBFGS computes the loss several times in a step, and this loop computes it once: take an optimizer "
                "whose step needs no closure, such as Adam or SGD"
            )
        self.optimizer = optimizer
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        #: Name of a parameter -> the number of its group.
        self._group_of: dict[str, int] = {}
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if id(parameter) not in names:
                    raise ConfigError(
                        f"the optimizer holds a tensor of shape {list(parameter.shape)} that is not the model's: make "
                        "it from model.parameters(), of the model that the strategy is given"
                    )
                self._group_of[names[id(parameter)]] = number
        self._initial = [
            {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        keep_parameter_layout(optimizer)

    @property
    def learning_rate(self) -> float:
        """Rate of the first group when the strategy was made."""
        return float(self._initial[0]["lr"])

    def restart(self, trained: Mapping[str, nn.Parameter]) -> Optimizer:
        """Clear its state, fill its groups with `trained` and nothing else, and restore rate and other options.

        A parameter stays in the group that it was given in; those that the network has grown since are in the first.
        """
        members: list[list[nn.Parameter]] = [[] for _ in self._initial]
        for name, parameter in trained.items():
            members[self._group_of.get(name, 0)].append(parameter)
        self.optimizer.state.clear()
        for group, initial, parameters in zip(
            self.optimizer.param_groups, self._initial, members, strict=True
        ):
            options: dict[str, Any] = copy.deepcopy(initial)
            group.update(options, params=parameters)
        return self.optimizer
