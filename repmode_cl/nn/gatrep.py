"""GatRep (paper, section 3.4): gate rows and the experts they see become one convolution kernel each.

This is all that a RepMode network costs in addition to a plain one, so it is one autograd function: for the backward
pass it stores only the parameters themselves and nothing computed from them, and it reads each kernel's gradient
once for all experts of one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from repmode_cl.nn.convolution import centre_taps
from repmode_cl.nn.experts import Expert

__all__ = ["Gating", "fuse_kernels", "fuse_rows", "fuse_channels", "mixing_weights"]

#: Most elements of a product that is summed at once: the scratch memory of an inner product of large kernels.
_SCRATCH = 1 << 22

V = TypeVar("V")

#: Taps of a kernel, (z, y, x).
Size = tuple[int, int, int]

#: What makes weights of a gate row: the softmax over its experts, or the sigmoid of each.
Gating = Literal["softmax", "sigmoid"]


def mixing_weights(logits: Tensor, outside: Tensor | None = None, gating: Gating = "softmax") -> Tensor:
    """Return the weight of each expert in the fused kernel, (T, C_out).

    Parameters
    ----------
    logits
        The gate row, (T, C_out), or (T - 1, C_out) where the last expert stands outside the softmax.
    outside
        Weight (C_out,) of an expert outside the softmax; None where there is none.
    gating
        ``softmax`` (paper, eq. 2) or ``sigmoid`` (Table 2).
    """
    shares = torch.softmax(logits, 0) if gating == "softmax" else torch.sigmoid(logits)
    return shares if outside is None else torch.cat([shares, outside[None]])


def fuse_kernels(
    experts: Sequence[Expert],
    logits: Tensor,
    dtype: torch.dtype | None = None,
    outside: Tensor | None = None,
    gating: Gating = "softmax",
) -> Tensor:
    """Merge `experts` into one kernel with the softmax of `logits` (paper, eq. 2 and 6).

    Parameters
    ----------
    experts
        The T experts that the gate row sees, in the order of its rows.
    logits
        The gate row, (T, C_out).
    dtype
        Precision to compute in, ``None`` for the parameters' own.
    outside
        Weight (C_out,) of the last expert, if it stands outside the softmax: `logits` then has no entry for it.
    gating
        As of `mixing_weights`.

    Returns
    -------
    Tensor
        ``sum_t softmax(logits)_t * Pad(W_t, K)``, (C_out, C_in, K, K, K) with K the largest expert's, channels-last.
    """
    return fuse_rows(experts, [logits], dtype, outside=outside, gating=gating)[0]


def fuse_rows(
    experts: Sequence[Expert],
    rows: Sequence[Tensor],
    dtype: torch.dtype | None = None,
    max_taps: Sequence[int] | None = None,
    outside: Tensor | None = None,
    gating: Gating = "softmax",
) -> tuple[Tensor, ...]:
    """Merge the same experts into one kernel for each of several gate rows, as a mixed batch needs.

    Parameters
    ----------
    experts
        The T experts that the rows see, in the order of their entries.
    rows
        Gate rows, (T, C_out) each.
    dtype
        Precision to compute in, ``None`` for the parameters' own.
    max_taps
        Most taps (z, y, x) of a kernel, odd numbers; the others are left out. ``None`` is all.
    outside, gating
        As of `fuse_kernels`, the same for all rows.

    Returns
    -------
    tuple of Tensor
        The kernel of each row; see `fuse_kernels`. Gradients of experts are summed over the rows in place, so that
        S structures in a batch need one gradient of each expert and not S.

    Raises
    ------
    ValueError
        If there is no expert, or a row has another number of entries.

    Notes
    -----
    Autograd stores only the experts' weights and the rows. torch refuses a second derivative.
    Under autocast everything is computed in the parameters' precision: a convolution rounds the finished kernel.
    """
    if not experts:
        raise ValueError("at least one expert is needed")
    gated = len(experts) - (outside is not None)
    for row in rows:
        if row.shape[0] != gated:
            within = "" if outside is None else " within the softmax"
            raise ValueError(f"the gate row has {row.shape[0]} entries for {gated} experts{within}")
    weights = [weight.to(dtype) for expert in experts for weight in expert.weights()]
    logits = [row.to(dtype) for row in rows]
    factors = [] if outside is None else [outside.to(dtype)]
    sizes = _kernel_sizes(experts, max_taps)
    if torch.compiler.is_compiling():
        # The compiler decides itself what is stored for the backward pass, and that of torch 2.11 loses the gradients
        # of a function which it cannot trace to its end.
        with torch.autocast(logits[0].device.type, enabled=False):
            taps = _crop_taps(_expert_taps(experts, weights), sizes)
            return tuple([_merge_traceable(sizes, taps, _shares(row, factors, gating)) for row in logits])
    apply = cast(Callable[..., tuple[Tensor, ...]], _FuseKernels.apply)
    return apply(tuple(experts), sizes, (len(logits), len(factors)), gating, *logits, *factors, *weights)


def fuse_channels(
    experts: Sequence[Expert],
    logits: Tensor,
    channels: slice,
    dtype: torch.dtype,
    outside: Tensor | None = None,
    gating: Gating = "softmax",
) -> Tensor:
    """Return `fuse_kernels` for only some output channels, without gradients: the rest is never computed.

    Parameters
    ----------
    experts, logits, dtype, outside, gating
        As of `fuse_kernels`.
    channels
        Which of the C_out output channels.

    Returns
    -------
    Tensor
        (channels, C_in, K, K, K), channels-last.
    """
    with torch.no_grad():
        taps = [
            expert.taps(*(weight.to(dtype) for weight in expert.channel_weights(channels)))
            for expert in experts
        ]
        factors = [] if outside is None else [outside[channels].to(dtype)]
        shares = _shares(logits[:, channels].to(dtype), factors, gating)
        return _merge(_kernel_sizes(experts, None), taps, shares)


class _FuseKernels(torch.autograd.Function):
    """``apply(experts, sizes, (S, F), gating, *rows, *factors, *weights)`` -> S kernels.

    `sizes` are the taps used of each expert; there are S rows, and F is 1 where the last expert has a factor and stands
    outside the softmax, else 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        experts: tuple[Expert, ...],
        sizes: tuple[Size, ...],
        counts: tuple[int, int],
        gating: Gating,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return one kernel for each of the first tensors, the gate rows."""
        ctx.experts, ctx.sizes, ctx.counts, ctx.gating = experts, sizes, counts, gating
        rows, factors, weights = _split(tensors, counts)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        with torch.autocast(tensors[0].device.type, enabled=False):
            taps = _crop_taps(_expert_taps(experts, weights), sizes)
            return tuple(_merge(sizes, taps, _shares(row, factors, gating)) for row in rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Turn the kernels' gradients into those of rows and weights; frozen weights cost nothing."""
        experts: tuple[Expert, ...] = ctx.experts
        saved = ctx.saved_tensors  # read only once: activation checkpointing allows no second time
        rows, factors, weights = _split(saved, ctx.counts)
        rows_needed, factors_needed, needed = _split(ctx.needs_input_grad[4:], ctx.counts)
        row_grads: list[Tensor | None] = [None] * len(rows)
        factor_grads: list[Tensor | None] = [None] * len(factors)
        tap_grads: list[Tensor | None] = [None] * len(experts)
        learning = _need_gradients(experts, needed)
        with torch.autocast(rows[0].device.type, enabled=False):
            full_taps = _expert_taps(experts, weights)
            taps = _crop_taps(full_taps, ctx.sizes)
            for s, (row, grad) in enumerate(zip(rows, grads, strict=True)):
                if grad is None:
                    continue
                shares = _shares(row, factors, ctx.gating)
                crops = _GradientCrops(grad)
                products = []
                for t, (size, tap) in enumerate(zip(ctx.sizes, taps, strict=True)):
                    part = crops.of(size, summed=_is_uniform(tap, size))
                    if rows_needed[s] or any(factors_needed):
                        products.append(_inner_products(tap, part))
                    if learning[t]:
                        tap_grads[t] = _add_scaled(tap_grads[t], part, _per_channel(shares[t]))
                if any(factors_needed):
                    own = products[-1]
                    factor_grads[0] = own if factor_grads[0] is None else factor_grads[0] + own
                if rows_needed[s]:
                    shares = shares[: len(row)]
                    share_grads = torch.stack(products[: len(row)])
                    if ctx.gating == "softmax":
                        row_grads[s] = shares * (share_grads - (shares * share_grads).sum(0))
                    else:
                        row_grads[s] = shares * (1 - shares) * share_grads
            tap_grads = [
                g if g is None else _pad_gradient(g, tap) for g, tap in zip(tap_grads, full_taps, strict=True)
            ]
            weight_grads = _weight_gradients(experts, weights, tap_grads, needed)
        return (None, None, None, None, *row_grads, *factor_grads, *weight_grads)


def _shares(row: Tensor, factors: Sequence[Tensor], gating: Gating) -> Tensor:
    """Return `mixing_weights` of a row, where `factors` hold the weight of an expert outside the softmax or nothing."""
    return mixing_weights(row, factors[0] if factors else None, gating)


def _split(values: Sequence[V], counts: tuple[int, int]) -> tuple[Sequence[V], Sequence[V], Sequence[V]]:
    """Return the values of the rows, of the factors and of the weights, which follow each other."""
    rows, factors = counts
    return values[:rows], values[rows : rows + factors], values[rows + factors :]


def _group_by_expert(experts: Sequence[Expert], values: Sequence[V]) -> Iterator[tuple[Expert, Sequence[V]]]:
    """Yield each expert with its part of `values`, which hold one entry for each weight of all experts."""
    first = 0
    for expert in experts:
        count = len(expert.weights())
        yield expert, values[first : first + count]
        first += count


def _expert_taps(experts: Sequence[Expert], weights: Sequence[Tensor]) -> list[Tensor]:
    """Return each expert's kernel, (C_out, C_in, K, K, K), or (C_out, C_in, 1, 1, 1) where all taps are the same."""
    return [expert.taps(*own) for expert, own in _group_by_expert(experts, weights)]


def _need_gradients(experts: Sequence[Expert], needed: Sequence[bool]) -> list[bool]:
    """Return, for each expert, whether any of its weights takes a gradient."""
    return [any(own) for _, own in _group_by_expert(experts, needed)]


def _kernel_sizes(experts: Sequence[Expert], max_taps: Sequence[int] | None) -> tuple[Size, ...]:
    """Return the taps (z, y, x) that are used of each expert."""
    sizes = []
    for expert in experts:
        z, y, x = (min(expert.kernel_size, most) for most in max_taps or [expert.kernel_size] * 3)
        sizes.append((z, y, x))
    return tuple(sizes)


def _crop_taps(taps: Sequence[Tensor], sizes: Sequence[Size]) -> list[Tensor]:
    """Return the central taps of each kernel; one number that stands for all taps stays as it is."""
    return [
        tap if tap.shape[2:].numel() == 1 else centre_taps(tap, size)
        for tap, size in zip(taps, sizes, strict=True)
    ]


def _is_uniform(tap: Tensor, size: Size) -> bool:
    """Return whether `tap` is one number that stands for all of `size` taps."""
    return tap.shape[2:].numel() < math.prod(size)


def _pad_gradient(grad: Tensor, tap: Tensor) -> Tensor:
    """Return the gradient of all taps of an expert: zero where taps were left out."""
    if grad.shape == tap.shape:
        return grad
    padded = torch.zeros_like(tap, memory_format=torch.channels_last_3d)
    centre_taps(padded, grad.shape[2:]).copy_(grad)
    return padded


def _merge(sizes: Sequence[Size], taps: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Sum ``share * tap`` from the largest kernels to the smallest, each size in the centre of the one before."""
    c_out, c_in = taps[0].shape[:2]
    distinct = sorted(set(sizes), key=math.prod, reverse=True)
    fused = torch.empty(
        (c_out, c_in, *distinct[0]),
        dtype=taps[0].dtype,
        device=taps[0].device,
        memory_format=torch.channels_last_3d,
    )
    for size in distinct:
        centre = centre_taps(fused, size)
        same = [
            (tap, _per_channel(share))
            for own_size, tap, share in zip(sizes, taps, shares, strict=True)
            if own_size == size
        ]
        varying = [pair for pair in same if not _is_uniform(pair[0], size)]
        # Experts with the same number in all taps are summed small, and enter with the first pass over the kernel.
        uniform = [tap * share for tap, share in same if _is_uniform(tap, size)]
        offset = sum(uniform[1:], uniform[0]) if uniform else None
        if size == distinct[0]:
            if not varying:
                centre.copy_(cast(Tensor, offset).expand_as(centre))
            elif offset is None:
                torch.mul(*varying[0], out=centre)
            else:
                torch.addcmul(offset, *varying[0], out=centre)
            varying = varying[1:]
        elif offset is not None:
            centre.add_(offset)
        for tap, share in varying:
            centre.addcmul_(tap, share)
    return fused


def _merge_traceable(sizes: Sequence[Size], taps: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Return what `_merge` does by operations that autograd traces; summed in another order, so not the same bits."""
    largest = max(sizes, key=math.prod)
    parts: list[Tensor] = []
    for size, tap, share in zip(sizes, taps, shares, strict=True):
        z, y, x = ((whole - own) // 2 for whole, own in zip(largest, size, strict=True))
        parts.append(
            functional.pad(tap.expand(*tap.shape[:2], *size) * _per_channel(share), (x, x, y, y, z, z))
        )
    return sum(parts[1:], parts[0]).contiguous(memory_format=torch.channels_last_3d)


class _GradientCrops:
    """The parts of a kernel's gradient for each size of experts, computed once: its centre, or the sum over that."""

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad
        self._crops: dict[tuple[Size, bool], Tensor] = {}

    def of(self, size: Size, *, summed: bool) -> Tensor:
        """Return the gradient of the central `size` taps, or with `summed` their sum, (C_out, C_in, 1, 1, 1)."""
        if (size, summed) not in self._crops:
            if summed:
                part = self.of(size, summed=False).sum((2, 3, 4), keepdim=True)
            else:
                part = centre_taps(self.grad, size).contiguous(memory_format=torch.channels_last_3d)
            self._crops[size, summed] = part
        return self._crops[size, summed]


def _per_channel(share: Tensor) -> Tensor:
    """Reshape (C_out,) -> (C_out, 1, 1, 1, 1)."""
    return share[:, None, None, None, None]


def _inner_products(tap: Tensor, part: Tensor) -> Tensor:
    """Return the inner product of two kernels for each output channel, (C_out,), in bounded scratch memory."""
    # In memory order, channels last: no copy is made.
    first, second = (x.permute(0, 2, 3, 4, 1).flatten(1) for x in (tap, part))
    rows = max(1, _SCRATCH // first.shape[1])
    pairs = zip(torch.split(first, rows), torch.split(second, rows), strict=True)
    products: list[Tensor] = [torch.linalg.vecdot(a, b) for a, b in pairs]
    return products[0] if len(products) == 1 else torch.cat(products)


def _add_scaled(total: Tensor | None, part: Tensor, share: Tensor) -> Tensor:
    """Add ``part * share`` to `total` in place."""
    return part * share if total is None else total.addcmul_(part, share)


def _weight_gradients(
    experts: Sequence[Expert],
    weights: Sequence[Tensor],
    tap_grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradient of each weight of each expert, None where it takes none."""
    grads: list[Tensor | None] = []
    per_expert = zip(
        _group_by_expert(experts, weights), _group_by_expert(experts, needed), tap_grads, strict=True
    )
    for (expert, own), (_, learning), grad in per_expert:
        computed = [None] * len(own) if grad is None else expert.weight_gradients(grad, *own)
        grads += [g if learns else None for g, learns in zip(computed, learning, strict=True)]
    return grads
