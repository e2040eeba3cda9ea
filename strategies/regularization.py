"""Base classes of regularization strategies: a penalty on changing parameters that matter to earlier experiences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repmode_cl.config import StrategyConfig
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.strategies.fine_tuning import FineTuning
from repmode_cl.utils.memory import tensor_bytes

__all__ = ["RegularizationStrategy", "GradientImportance"]


class RegularizationStrategy(FineTuning):
    """Fine-tuning with ``strength / 2 * sum_i importance_i (theta_i - anchor_i)^2`` added to the loss.

    The importances of all experiences are summed, and the anchor is the state at the end of the last one. So do the
    publications of synaptic intelligence and memory aware synapses; of elastic weight consolidation this is the online
    form (Schwarz et al., 2018; Huszar, 2018), whose `decay` multiplies the sum of before. Gate rows have no penalty:
    each belongs to one structure.

    Parameters
    ----------
    strength
        0 is fine-tuning.
    """

    #: Strength where the configuration gives none.
    default_strength: ClassVar[float] = 1.0

    def __init__(self, *, strength: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strength = self.default_strength if strength is None else strength
        #: Factor of the importances of before when an experience's are added.
        self.decay = 1.0
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the strength of the penalty."""
        return {} if options.strength is None else {"strength": options.strength}

    def importance_of(self, number: int) -> Mapping[str, Tensor]:
        """Return how much each shared parameter matters to experience `number`, which was just learned."""
        raise TypeError(f"{type(self).__name__} does not define importance_of")

    def shared(self) -> dict[str, nn.Parameter]:
        """Return the parameters that structures share, by name; gates with a shared bias become rows with the base."""
        parameters = {n: p for n, p in self.model.named_parameters() if ".gates." not in n}
        if getattr(self.model, "shares_gate_bias", False):
            return {n: p for n, p in parameters.items() if ".task_gate." not in n}
        return parameters

    def adjust_gradients(self) -> None:
        """Add the penalty's gradient."""
        if not self.strength or not self.importance:
            return
        # Computed here: the penalty is quadratic, and not part of the loss that is divided among micro-batches.
        factor = self.strength if self.scaler is None else self.strength * self.scaler.get_scale()
        with torch.no_grad():
            for name, parameter in self.shared().items():
                if name not in self.importance or not parameter.requires_grad:
                    continue
                pull = factor * self.importance[name] * (parameter - self.anchor[name])
                parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)

    def after_experience(self, number: int) -> None:
        """Sum up the importances, and set the anchor to the present parameters."""
        for name, importance in self.importance_of(number).items():
            before = self.importance.get(name)
            self.importance[name] = importance if before is None else self.decay * before + importance
        self.anchor = {name: p.detach().clone() for name, p in self.shared().items()}

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return importances and anchor."""
        tensors = {f"importance.{name}": tensor for name, tensor in self.importance.items()}
        tensors |= {f"anchor.{name}": tensor for name, tensor in self.anchor.items()}
        return tensors, {}

    def costs(self) -> dict[str, float]:
        """Return bytes of importances and anchor."""
        stored = [*self.importance.values(), *self.anchor.values()]
        return {"kept_bytes": tensor_bytes(stored)}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Load importances and anchor."""
        self.importance = self._part(tensors, "importance.")
        self.anchor = self._part(tensors, "anchor.")

    def _part(self, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix`, in the memory order of their parameters."""
        shared, part = self.shared(), {}
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                parameter = shared[name.removeprefix(prefix)]
                part[name.removeprefix(prefix)] = torch.empty_like(
                    parameter, device=self.device, requires_grad=False
                ).copy_(tensor)
        return part


class GradientImportance(RegularizationStrategy):
    """Importance by gradients: the mean over one patch of each image, with norms in evaluation mode, in float32."""

    def importance_of(self, number: int) -> Mapping[str, Tensor]:
        """Return the mean over patches of `_importance_of_gradient` of the gradient of `_quantity`."""
        images = self.stream.images[number]
        patches = self._patch_of_each_image(number)
        shared = {name: p for name, p in self.shared().items() if p.requires_grad}
        total = {name: torch.zeros_like(p, requires_grad=False) for name, p in shared.items()}
        training = self.model.training
        self.model.to(self.device).eval()
        for item in range(len(images)):
            x, y = (tensor[None].to(self.device) for tensor in patches[item])
            output = self.model(x, [patches.structure_of(item)])
            quantities = list(self._quantities(number, item, output, y))
            for place, quantity in enumerate(quantities, start=1):
                gradients = torch.autograd.grad(
                    quantity,
                    list(shared.values()),
                    allow_unused=True,
                    retain_graph=place < len(quantities),
                )
                for name, gradient in zip(shared, gradients, strict=True):
                    if gradient is not None:
                        part = self._importance_of_gradient(gradient) / (len(images) * len(quantities))
                        total[name] += part
        self.model.train(training)
        return total

    def _patch_of_each_image(self, number: int) -> PatchDataset:
        """Return one patch of each image, however the experience's batches are composed."""
        images, trained = self.stream.images[number], self.stream.patches[number]
        return PatchDataset(
            images,
            patch=trained.patch,
            seed=trained.seed,
            length=len(images),
            flips=trained.flips,
            foreground=trained.foreground,
        )

    def _quantities(self, number: int, item: int, output: Tensor, target: Tensor) -> Iterator[Tensor]:
        """Yield the scalars over whose gradients the importance of a patch is averaged; by default `_quantity`."""
        yield self._quantity(output, target)

    def _quantity(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the scalar whose gradient gives the importance, from a patch's output and target."""
        raise TypeError(f"{type(self).__name__} does not define _quantity")

    def _importance_of_gradient(self, gradient: Tensor) -> Tensor:
        """Return importances from the gradient of `_quantity` of one patch."""
        raise TypeError(f"{type(self).__name__} does not define _importance_of_gradient")
