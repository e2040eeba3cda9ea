"""GatRep (paper, section 3.4): gate rows and the experts they see become one convolution kernel each.

This is all that a RepMode network costs in addition to a plain one, so it is one autograd function: for the backward
pass it stores only the parameters themselves and nothing computed from them, and it reads each kernel's gradient
once for all experts of one size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from repmode_cl.nn.convolution import centre_taps
from repmode_cl.nn.experts import Expert

__all__ = [
    "Gating",
    "Outside",
    "add_expert",
    "fuse_kernels",
    "fuse_rows",
    "fuse_channels",
    "mixing_weights",
    "weigh_kernels",
]

#: Most elements of a product that is summed at once: the scratch memory of an inner product of large kernels.
_SCRATCH = 1 << 22

V = TypeVar("V")

#: Taps of a kernel, (z, y, x).
Size = tuple[int, int, int]


#: What makes weights of a gate row: the softmax over its experts, or the sigmoid of each.
Gating = Literal["softmax", "sigmoid"]

#: Weight (C_out,) of an expert outside the softmax, or 1 where it has no factor.
Outside = Tensor | float


def mixing_weights(logits: Tensor, outside: Outside | None = None, gating: Gating = "softmax") -> Tensor:
    """Return the weight of each expert in the fused kernel, (T, C_out).

    Parameters
    ----------
    logits
        The gate row, (T, C_out), or (T - 1, C_out) where the last expert stands outside the softmax.
    outside
        Weight (C_out,) of an expert outside the softmax, or 1; None where there is none.
    gating
        ``softmax`` (paper, eq. 2) or ``sigmoid`` (Table 2).
    """
    shares = torch.softmax(logits, 0) if gating == "softmax" else torch.sigmoid(logits)
    if outside is None:
        return shares
    last = outside if isinstance(outside, Tensor) else logits.new_full(logits.shape[1:], outside)
    return torch.cat([shares, last[None]])


def fuse_kernels(
    experts: Sequence[Expert],
    logits: Tensor,
    dtype: torch.dtype | None = None,
    outside: Outside | None = None,
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
        Weight (C_out,) of the last expert, or 1, if it stands outside the softmax: `logits` then has no entry for it.
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
    outside: Outside | None = None,
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
    groups = [expert.weights() for expert in experts]
    weights: list[Tensor] = [weight for group in groups for weight in group]
    logits: Sequence[Tensor] = rows
    factors = [outside] if isinstance(outside, Tensor) else []
    if dtype is not None:
        weights, logits, factors = ([one.to(dtype) for one in part] for part in (weights, logits, factors))
    sizes = _kernel_sizes(experts, max_taps)
    if torch.compiler.is_compiling():
        # The compiler decides itself what is stored for the backward pass, and that of torch 2.11 loses the gradients
        # of a function which it cannot trace to its end.
        with torch.autocast(logits[0].device.type, enabled=False):
            taps = _crop_taps(_expert_taps(experts, _grouped(weights, tuple(map(len, groups)))), sizes)
            weight = factors[0] if factors else outside
            return tuple(
                [_merge_traceable(sizes, taps, mixing_weights(row, weight, gating)) for row in logits]
            )
    layout = _Layout(
        tuple(experts),
        sizes,
        tuple(map(len, groups)),
        len(logits),
        len(factors),
        outside is not None and not factors,
        gating,
    )
    apply = cast(Callable[..., tuple[Tensor, ...]], _FuseKernels.apply)
    return apply(layout, *logits, *factors, *weights)


def weigh_kernels(experts: Sequence[Expert], weights: Tensor, size: int) -> Tensor:
    """Return the weighted sum of experts, without gradient.

    Parameters
    ----------
    experts
        At least one.
    weights
        Weight of each, (T, C_out): no softmax is taken.
    size
        Edge K of the result, at least that of the largest expert; beyond that it is zero.

    Returns
    -------
    Tensor
        (C_out, C_in, K, K, K), channels-last.
    """
    with torch.no_grad():
        sizes = _kernel_sizes(experts, None)
        taps = _expert_taps(experts, [expert.weights() for expert in experts])
        fused = _merge(sizes, taps, _per_channel(weights))
        if fused.shape[2] == size:
            return fused
        padded = fused.new_zeros((*fused.shape[:2], size, size, size))
        padded = padded.contiguous(memory_format=torch.channels_last_3d)
        centre_taps(padded, fused.shape[2:]).copy_(fused)
        return padded


def add_expert(
    mix: Tensor, expert: Expert | None, share: Tensor | None, max_taps: Sequence[int] | None = None
) -> Tensor:
    """Add one expert to a kernel that is fused already and takes no gradient.

    Parameters
    ----------
    mix
        Sum of all other experts, (C_out, C_in, K, K, K), K at least the expert's.
    expert
        The expert; None adds nothing.
    share
        Its weight, (C_out,), without gradient; None is 1.
    max_taps
        Most taps (z, y, x) of the result, odd numbers; the others are left out. ``None`` is all.

    Returns
    -------
    Tensor
        The kernel, of which only the expert's weights take a gradient: that of the kernel, without any inner product.
    """
    if max_taps is not None:
        mix = centre_taps(mix, max_taps)
    if expert is None:
        return mix
    with _without_autocast(mix.device.type):
        tap = expert.taps(*expert.weights())
        [size] = _kernel_sizes([expert], mix.shape[2:])
        margins = [(whole - own) // 2 for whole, own in zip(mix.shape[2:], size, strict=True)]
        if tap.shape[2] == expert.kernel_size:
            tap = centre_taps(tap, size)
        elif any(margins):  # one number for all taps; without margins it is broadcast
            tap = tap.expand(*tap.shape[:2], *size)
        if any(margins):
            z, y, x = margins
            tap = functional.pad(tap, (x, x, y, y, z, z))
        return mix + tap if share is None else torch.addcmul(mix, tap, share[:, None, None, None, None])


def fuse_channels(
    experts: Sequence[Expert],
    logits: Tensor,
    channels: slice,
    dtype: torch.dtype,
    outside: Outside | None = None,
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
        if isinstance(outside, Tensor):
            outside = outside[channels].to(dtype)
        shares = mixing_weights(logits[:, channels].to(dtype), outside, gating)
        return _merge(_kernel_sizes(experts, None), taps, _per_channel(shares))


class _Layout(NamedTuple):
    """Arguments of `_FuseKernels` other than tensors, and the places of its tensors.

    Attributes
    ----------
    experts, sizes
        The experts, and the taps used of each.
    counts
        Weights of each expert.
    rows, factors
        Gate rows; factors, 1 where the last expert has one and stands outside the softmax, else 0.
    unscaled
        Whether the last expert stands outside the softmax without a factor.
    gating
        As of `mixing_weights`.
    """

    experts: tuple[Expert, ...]
    sizes: tuple[Size, ...]
    counts: tuple[int, ...]
    rows: int
    factors: int
    unscaled: bool
    gating: Gating

    def split(self, values: Sequence[V]) -> tuple[Sequence[V], Sequence[V], list[Sequence[V]]]:
        """Return the values of the rows, of the factors, and of each expert's weights, which follow each other."""
        first = self.rows + self.factors
        return values[: self.rows], values[self.rows : first], _grouped(values[first:], self.counts)

    def per_channel(self, shares: Tensor, factors: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the weight (C_out, 1, 1, 1, 1) of each expert, None for 1; `shares` are those of the softmax."""
        if factors:
            shares = torch.cat([shares, factors[0][None]])
        found: list[Tensor | None] = list(_per_channel(shares))
        return [*found, None] if self.unscaled else found


class _FuseKernels(torch.autograd.Function):
    """``apply(layout, *rows, *factors, *weights)`` -> one kernel for each row."""

    @staticmethod
    def forward(ctx: Any, layout: _Layout, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return one kernel for each of the first tensors, the gate rows."""
        ctx.layout = layout
        rows, factors, weights = layout.split(tensors)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        with _without_autocast(tensors[0].device.type):
            taps = _crop_taps(_expert_taps(layout.experts, weights), layout.sizes)
            return tuple(
                [
                    _merge(
                        layout.sizes,
                        taps,
                        layout.per_channel(mixing_weights(row, None, layout.gating), factors),
                    )
                    for row in rows
                ]
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Turn the kernels' gradients into those of rows and weights; frozen weights cost nothing."""
        layout: _Layout = ctx.layout
        saved = ctx.saved_tensors  # read only once: activation checkpointing allows no second time
        rows, factors, weights = layout.split(saved)
        rows_needed, factors_needed, needed = layout.split(ctx.needs_input_grad[1:])
        row_grads: list[Tensor | None] = [None] * len(rows)
        factor_grads: list[Tensor | None] = [None] * len(factors)
        tap_grads: list[Tensor | None] = [None] * len(weights)
        learning = [any(own) for own in needed]
        with _without_autocast(rows[0].device.type):
            full_taps = _expert_taps(layout.experts, weights)
            taps = _crop_taps(full_taps, layout.sizes)
            _, uniform = _passes(layout.sizes, _single(taps))
            for s, (row, grad) in enumerate(zip(rows, grads, strict=True)):
                if grad is None:
                    continue
                shares = mixing_weights(row, None, layout.gating)
                gated = len(shares)
                scaled = layout.per_channel(shares, factors) if any(learning) else []
                crops = _GradientCrops(grad)
                products = []
                for t, tap in enumerate(taps):
                    wanted = rows_needed[s] if t < gated else any(factors_needed)
                    if not wanted and not learning[t]:
                        continue
                    part = crops.of(layout.sizes[t], summed=uniform[t])
                    if wanted:
                        products.append(_inner_products(tap, part))
                    if learning[t]:
                        tap_grads[t] = _add_scaled(tap_grads[t], part, scaled[t])
                if any(factors_needed):
                    own = products.pop()
                    factor_grads[0] = own if factor_grads[0] is None else factor_grads[0] + own
                if rows_needed[s]:
                    share_grads = torch.stack(products)
                    if layout.gating == "softmax":
                        row_grads[s] = shares * (share_grads - (shares * share_grads).sum(0))
                    else:
                        row_grads[s] = shares * (1 - shares) * share_grads
            weight_grads: list[Tensor | None] = []
            for expert, own_weights, own_needed, grad, tap in zip(
                layout.experts, weights, needed, tap_grads, full_taps, strict=True
            ):
                if grad is None:
                    weight_grads += [None] * len(own_weights)
                    continue
                computed = expert.weight_gradients(_pad_gradient(grad, tap), *own_weights)
                weight_grads += [
                    g if learns else None for g, learns in zip(computed, own_needed, strict=True)
                ]
        return (None, *row_grads, *factor_grads, *weight_grads)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Return a context in which nothing is computed in half precision; entering autocast's own takes a while."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _grouped(values: Sequence[V], counts: Sequence[int]) -> list[Sequence[V]]:
    """Return each expert's part of `values`, which hold one entry for each weight of all experts."""
    groups, first = [], 0
    for count in counts:
        groups.append(values[first : first + count])
        first += count
    return groups


def _expert_taps(experts: Sequence[Expert], weights: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return each expert's kernel, (C_out, C_in, K, K, K), or (C_out, C_in, 1, 1, 1) where all taps are the same."""
    return [expert.taps(*own) for expert, own in zip(experts, weights, strict=True)]


def _kernel_sizes(experts: Sequence[Expert], max_taps: Sequence[int] | None) -> tuple[Size, ...]:
    """Return the taps (z, y, x) that are used of each expert."""
    if max_taps is None:
        return tuple([(expert.kernel_size,) * 3 for expert in experts])
    z, y, x = max_taps
    return tuple([(min(k, z), min(k, y), min(k, x)) for k in [expert.kernel_size for expert in experts]])


def _crop_taps(taps: Sequence[Tensor], sizes: Sequence[Size]) -> list[Tensor]:
    """Return the central taps of each kernel; one number that stands for all taps stays as it is."""
    return [
        tap if tap.shape[2] == 1 or tap.shape[2:] == size else centre_taps(tap, size)
        for tap, size in zip(taps, sizes, strict=True)
    ]


def _single(taps: Sequence[Tensor]) -> tuple[bool, ...]:
    """Return which of `taps` have one tap."""
    return tuple([tap.shape[2:].numel() == 1 for tap in taps])


class _Pass(NamedTuple):
    """The experts that are added to the same taps of a kernel.

    Attributes
    ----------
    size
        Those taps.
    uniform, varying
        Numbers of the experts with one number for all taps, and of the others.
    """

    size: Size
    uniform: tuple[int, ...]
    varying: tuple[int, ...]


@functools.lru_cache(maxsize=1024)
def _passes(sizes: tuple[Size, ...], single: tuple[bool, ...]) -> tuple[tuple[_Pass, ...], tuple[bool, ...]]:
    """Return the passes over a kernel, the largest first, and which experts have one number for all taps.

    `single` says whose tensor has one tap. Kept, because finding the passes takes longer than adding small kernels.
    """
    uniform = tuple(one and math.prod(size) > 1 for size, one in zip(sizes, single, strict=True))
    passes = []
    for size in sorted(set(sizes), key=math.prod, reverse=True):
        same = [number for number, own in enumerate(sizes) if own == size]
        passes.append(
            _Pass(
                size,
                tuple(number for number in same if uniform[number]),
                tuple(number for number in same if not uniform[number]),
            )
        )
    return tuple(passes), uniform


def _pad_gradient(grad: Tensor, tap: Tensor) -> Tensor:
    """Return the gradient of all taps of an expert: zero where taps were left out."""
    if grad.shape == tap.shape:
        return grad
    padded = torch.zeros_like(tap, memory_format=torch.channels_last_3d)
    centre_taps(padded, grad.shape[2:]).copy_(grad)
    return padded


def _merge(sizes: Sequence[Size], taps: Sequence[Tensor], shares: Sequence[Tensor | None]) -> Tensor:
    """Sum ``share * tap`` from the largest kernels to the smallest, each size in the centre of the one before.

    Shares are (C_out, 1, 1, 1, 1), or None for 1.
    """
    first = taps[0]
    passes, _ = _passes(sizes, _single(taps))
    largest = passes[0].size
    fused = torch.empty(
        (first.shape[0], first.shape[1], *largest),
        dtype=first.dtype,
        device=first.device,
        memory_format=torch.channels_last_3d,
    )
    for size, uniform, varying in passes:
        # Experts with the same number in all taps are summed small, and enter with the first pass over the kernel.
        offset: Tensor | None = None
        for number in uniform:
            tap = _scaled(taps[number], shares[number])
            offset = tap if offset is None else offset + tap
        centre = fused
        if size is not largest:
            centre = _centre(fused, size)
            if offset is not None:
                centre.add_(offset)
        elif varying:
            _set_scaled(centre, offset, taps[varying[0]], shares[varying[0]])
            varying = varying[1:]
        else:
            centre.copy_(cast(Tensor, offset).expand_as(centre))
        for number in varying:
            tap, share = taps[number], shares[number]
            if share is None:
                centre.add_(tap)
            else:
                centre.addcmul_(tap, share)
    return fused


def _scaled(tap: Tensor, share: Tensor | None) -> Tensor:
    return tap if share is None else tap * share


def _centre(kernel: Tensor, size: Size) -> Tensor:
    """Return `centre_taps`, whose slices take longer than a sum over a small kernel; autograd must not see it."""
    place = kernel.storage_offset()
    strides = kernel.stride()
    for axis, most in enumerate(size, start=2):
        place += (kernel.shape[axis] - most) // 2 * strides[axis]
    return kernel.as_strided((*kernel.shape[:2], *size), strides, place)


def _set_scaled(out: Tensor, offset: Tensor | None, tap: Tensor, share: Tensor | None) -> None:
    """Set `out` to ``offset + tap * share``."""
    if share is None:
        if offset is None:
            out.copy_(tap)
        else:
            torch.add(offset, tap, out=out)
    elif offset is None:
        torch.mul(tap, share, out=out)
    else:
        torch.addcmul(offset, tap, share, out=out)


def _merge_traceable(sizes: Sequence[Size], taps: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Return what `_merge` does by operations that autograd traces; summed in another order, so not the same bits."""
    largest = max(sizes, key=math.prod)
    parts: list[Tensor] = []
    for size, tap, share in zip(sizes, taps, _per_channel(shares), strict=True):
        z, y, x = ((whole - own) // 2 for whole, own in zip(largest, size, strict=True))
        parts.append(functional.pad(tap.expand(*tap.shape[:2], *size) * share, (x, x, y, y, z, z)))
    return sum(parts[1:], parts[0]).contiguous(memory_format=torch.channels_last_3d)


class _GradientCrops:
    """The parts of a kernel's gradient for each size of experts, computed once: its centre, or the sum over that."""

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad
        self._crops: dict[tuple[Size, bool], Tensor] = {}

    def of(self, size: Size, *, summed: bool) -> Tensor:
        """Return the gradient of the central `size` taps, or with `summed` their sum, (C_out, C_in, 1, 1, 1)."""
        part = self._crops.get((size, summed))
        if part is None:
            if summed:
                part = self.of(size, summed=False).sum((2, 3, 4), keepdim=True)
            else:
                whole = self.grad.shape[2:] == size
                part = self.grad if whole else _centre(self.grad, size)
                part = part.contiguous(memory_format=torch.channels_last_3d)
            self._crops[size, summed] = part
        return part


def _per_channel(shares: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of (T, C_out), each as (C_out, 1, 1, 1, 1)."""
    return shares.view(*shares.shape, 1, 1, 1, 1).unbind(0)


def _inner_products(tap: Tensor, part: Tensor) -> Tensor:
    """Return the inner product of two kernels for each output channel, (C_out,), in bounded scratch memory."""
    first, second = _flat(tap), _flat(part)
    rows = max(1, _SCRATCH // first.shape[1])
    if rows >= len(first):
        found: Tensor = torch.linalg.vecdot(first, second)
        return found
    pairs = zip(torch.split(first, rows), torch.split(second, rows), strict=True)
    return torch.cat([torch.linalg.vecdot(a, b) for a, b in pairs])


def _flat(kernel: Tensor) -> Tensor:
    """Return a kernel as (C_out, taps * C_in), in memory order, channels last: no copy is made."""
    if kernel.is_contiguous(memory_format=torch.channels_last_3d):
        columns = kernel.shape[1:].numel()
        return kernel.as_strided((len(kernel), columns), (columns, 1))
    return kernel.permute(0, 2, 3, 4, 1).flatten(1)


def _add_scaled(total: Tensor | None, part: Tensor, share: Tensor | None) -> Tensor:
    """Return ``total + part * share``; a share of None is 1."""
    if share is None:
        return part if total is None else total + part
    return part * share if total is None else total.addcmul_(part, share)
