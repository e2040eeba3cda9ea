"""Synchronised batch norm: statistics over the joint batch of all processes that train together.

torch's SyncBatchNorm computes on GPUs only; this one computes wherever the processes can send tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from repmode_cl.training.distributed import Ranks

__all__ = ["SyncBatchNorm3d", "sync_batch_norms"]


@contextmanager
def sync_batch_norms(network: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Make the network's batch norms compute their statistics over the processes of `ranks`, within this context.

    Weights, biases and running statistics stay the same tensors under the same names; a single process keeps torch's
    norms.
    """
    replaced = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if ranks.world > 1 and isinstance(child, nn.BatchNorm3d)
    ]
    for parent, name, norm in replaced:
        setattr(parent, name, SyncBatchNorm3d(norm, ranks))
    try:
        yield
    finally:
        for parent, name, norm in replaced:
            norm.train(cast(nn.Module, getattr(parent, name)).training)
            setattr(parent, name, norm)


class SyncBatchNorm3d(nn.BatchNorm3d):
    """Batch norm over the batches of all processes; in evaluation mode it is torch's.

    Parameters
    ----------
    norm
        Norm whose weight, bias and running statistics it shares.
    ranks
        The processes. All must call it equally often.
    """

    def __init__(self, norm: nn.BatchNorm3d, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)
        self._ranks = ranks

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.BatchNorm3d:
        """Return a copy that no process is needed for, torch's own: fused networks copy norms to predict with them."""
        copied = nn.BatchNorm3d(
            self.num_features, self.eps, self.momentum, self.affine, self.track_running_stats
        )
        copied.weight, copied.bias = copy.deepcopy(self.weight, memo), copy.deepcopy(self.bias, memo)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(copied, name, copy.deepcopy(getattr(self, name), memo))
        return copied.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, Z, Y, X), in training by the statistics of the joint batch."""
        if not self.training:
            return super().forward(x)
        normalise = cast(Callable[..., tuple[Tensor, ...]], _Normalise.apply)
        y, mean, variance, count = normalise(x, self.weight, self.bias, self.eps, self._ranks)
        if self.running_mean is None or self.running_var is None:
            return y
        with torch.no_grad():
            batches = cast(Tensor, self.num_batches_tracked).add_(1)
            # Without a momentum they are the mean over all batches.
            momentum = 1 / float(batches) if self.momentum is None else self.momentum
            self.running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            # Running variances are unbiased, as torch's are.
            self.running_var.mul_(1 - momentum).add_(variance * (count / (count - 1)), alpha=momentum)
        return y


class _Normalise(torch.autograd.Function):
    """``apply(x, weight, bias, eps, ranks)`` -> y, and mean, variance and count of the joint batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalise by the joint statistics, combined from those of each process without cancellation (Chan et al.)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, _axes(x), correction=0)
        count = torch.full_like(mean[:1], x.numel() / x.shape[1])
        statistics = ranks.gathered(torch.cat([mean, variance, count]))
        means, variances, counts = torch.split(statistics, [len(mean), len(mean), 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        variance = ((variances + (means - mean).square()) * counts).sum(0) / total
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse, total)
        ctx.ranks, ctx.biased = ranks, bias is not None
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of this process's share; those of weight and bias are summed over processes later."""
        x, weight, mean, inverse, total = ctx.saved_tensors
        shape = (1, -1, 1, 1, 1)
        wide = grad.to(mean.dtype)
        normalised = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        bias_grad = wide.sum(_axes(x))
        weight_grad = (wide * normalised).sum(_axes(x))
        joint = ctx.ranks.gathered(torch.stack([bias_grad, weight_grad])).sum(0) / total
        scale = (inverse if weight is None else weight * inverse).view(shape)
        x_grad = (wide - joint[0].view(shape) - normalised * joint[1].view(shape)) * scale
        grads = None if weight is None else weight_grad, bias_grad if ctx.biased else None
        return x_grad.to(x.dtype), *grads, None, None


def _axes(x: Tensor) -> tuple[int, ...]:
    """Return all axes but that of the channels."""
    return (0, *range(2, x.ndim))
