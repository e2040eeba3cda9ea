"""A-GEM (averaged gradient episodic memory): gradients that would harm the buffer are projected.

Chaudhry et al., ICLR 2019.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from repmode_cl.strategies.replay import RehearsalStrategy
from repmode_cl.training import count_voxels

__all__ = ["AGEM"]


class AGEM(RehearsalStrategy):
    """Fine-tuning whose gradient g is projected where its angle with the gradient r of buffered patches is obtuse.

    The step then follows ``g - (g . r) / (r . r) r``, over all parameters that the experience trains. Buffered patches
    are not trained on; they only take part in the running statistics of the norms.
    """

    shares_base: ClassVar[bool] = True

    def adjust_gradients(self) -> None:
        """Project the gradient where a step along it would increase the loss of buffered patches."""
        if not self.buffer.patches:
            return
        trained = [p for p in self.optimized_param_id.values() if p.grad is not None]
        reference = self._reference_gradient(trained)
        pairs = [
            (p.grad, r)
            for p, r in zip(trained, reference, strict=True)
            if p.grad is not None and r is not None
        ]
        product = _sum([(g * r).sum() for g, r in pairs])
        if not product < 0:  # also where a scaled gradient overflowed: the scaler skips that step
            return
        share = product / _sum([r.square().sum() for _, r in pairs])
        for g, r in pairs:
            g.sub_((share * r).to(g.dtype))

    def _reference_gradient(self, trained: list[torch.nn.Parameter]) -> list[Tensor | None]:
        """Return the gradient of the loss of this step's buffered patches, scaled as the others are."""
        total: list[Tensor | None] = [None] * len(trained)
        parts = self.training_config.accumulate
        batches = [batch for part in range(parts) if (batch := self.rehearsal_batch(part, parts))]
        # Each voxel that counts has the same weight in whichever part it lies.
        voxels = sum(count_voxels(batch[1]) for batch in batches) if len(batches) > 1 else None
        for batch in batches:
            x, y, labels = (tensor.to(self.device) for tensor in batch)
            with self.precision.autocast():
                output = self.model(x, self.stream.names(labels.tolist()))
            loss = self.loss_of(output, y, count=voxels)
            if self.scaler is not None:
                loss = self.scaler.scale(loss)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            total = [
                g if t is None else t if g is None else t + g for t, g in zip(total, gradients, strict=True)
            ]
        return total


def _sum(terms: list[Tensor]) -> Tensor:
    return torch.stack([term.float() for term in terms]).sum()
