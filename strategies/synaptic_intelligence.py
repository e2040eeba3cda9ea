"""Synaptic intelligence: a penalty by how much each parameter's path lowered the loss (Zenke et al., 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from repmode_cl.config import StrategyConfig
from repmode_cl.errors import ConfigError
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.regularization import RegularizationStrategy

__all__ = ["SynapticIntelligence"]


class SynapticIntelligence(RegularizationStrategy):
    """Importance is the loss that a parameter's steps took away, divided by the square of its displacement.

    ``omega_i = sum over steps of -g_i * delta_i``, with the gradient g of the loss without the penalty and the
    step delta that the optimiser made of it, and ``Omega_i += max(omega_i, 0) / (displacement_i^2 + damping)``. Both
    end at the validated state that the experience ends with.

    Parameters
    ----------
    damping
        Bounds the importance of a parameter that hardly moved (the publication's xi); by default 0.001, as there for
        image data.

    Notes
    -----
    It needs the path of the base too, so it trains its own base.
    """

    shares_base: ClassVar[bool] = False  # a base that another strategy trained has left no path
    default_strength: ClassVar[float] = 1.0
    #: Bounds the importance of a parameter that hardly moved (the publication's xi, for its image data).
    damping: float = 1e-3

    def __init__(self, *, damping: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if damping is not None and damping <= 0:
            raise ConfigError(f"damping is {damping}: it divides, and must be more than 0")
        if damping is not None:
            self.damping = damping
        if not self.selects_state:
            raise ConfigError(
                "a plugin selects the state that an experience ends with, so that the path to it is not known: train "
                "synaptic intelligence without it"
            )
        self._start: dict[str, Tensor] = {}
        self._path: dict[str, Tensor] = {}
        self._best: dict[str, Tensor] = {}  # the path up to the best validated state
        self._gradient: dict[str, Tensor] = {}
        # The first listener: a checkpoint, which is a later one, holds what this one records.
        self.on_validation.append(self._record_best)

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the strength of the penalty, and the damping."""
        damping = {} if options.damping is None else {"damping": options.damping}
        return super().own_options(options) | damping

    def check_adoption(self, number: int) -> None:
        """Refuse: the importances of an experience are those of the path of its training."""
        raise ConfigError(
            "synaptic intelligence measures importances while it trains, so that it cannot take over an experience: "
            "train it"
        )

    def before_experience(self, number: int) -> None:
        """Start a path."""
        shared = {name: p.detach() for name, p in self.shared().items()}
        self._start = {name: tensor.clone() for name, tensor in shared.items()}
        self._path = {name: torch.zeros_like(tensor) for name, tensor in shared.items()}
        self._best = {}

    def adjust_gradients(self) -> None:
        """Record the gradient of the loss without the penalty, then add that of the penalty."""
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        self._gradient = {
            name: p.grad.detach().float() / scale for name, p in self.shared().items() if p.grad is not None
        }
        super().adjust_gradients()

    def optimizer_step(self) -> None:
        """Update the weights, and add the loss that each step took away to its path."""
        shared = self.shared()
        before = {name: shared[name].detach().clone() for name in self._gradient}
        super().optimizer_step()
        with torch.no_grad():
            for name, gradient in self._gradient.items():
                step = shared[name] - before[name]
                # A step that a scaler skipped, because its gradient overflowed, does not count.
                self._path[name] -= torch.where(step == 0, 0, gradient * step)
        self._gradient = {}

    def _record_best(self, _: StructureStrategy) -> None:
        if self.selection.step == self.progress.step:
            self._best = {name: tensor.clone() for name, tensor in self._path.items()}

    def importance_of(self, number: int) -> Mapping[str, Tensor]:
        """Return the loss that each parameter's path took away, divided by the square of its displacement."""
        path = self._best or self._path
        importance = {}
        with torch.no_grad():
            for name, parameter in self.shared().items():
                displacement = parameter - self._start[name]
                importance[name] = path[name].clamp_min(0) / (displacement.square() + self.damping)
        self._start, self._path, self._best = {}, {}, {}
        return importance

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return importances, anchor, and the path so far."""
        tensors, values = super().extra_state()
        for prefix, part in self._parts().items():
            tensors |= {f"{prefix}{name}": tensor for name, tensor in part.items()}
        return tensors, values

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Load them."""
        super().load_extra_state(tensors, values)
        for prefix, part in self._parts().items():
            part |= self._part(tensors, prefix)

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        return {"start.": self._start, "path.": self._path, "best.": self._best}
