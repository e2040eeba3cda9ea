"""GatRep (paper, section 3.4): gate rows and the experts they see become one convolution kernel each.

The cost of a RepMode network beside a plain one is what happens here, so it is one autograd function: it keeps
the parameters themselves for the backward pass and nothing made of them, and reads each kernel's gradient
once for all experts of a size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from repmode_cl.nn.experts import Expert

__all__ = ["fuse_channels", "fuse_kernels", "fuse_rows"]

#: Most elements of a product that is summed at once: what an inner product of large kernels takes as scratch.
_SCRATCH = 1 << 22

V = TypeVar("V")

#: Taps of a kernel, (z, y, x).
Size = tuple[int, int, int]


def fuse_kernels(experts: Sequence[Expert], logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Merge `experts` into one kernel with the softmax of `logits` (paper, eq. 2 and 6).

    Parameters
    ----------
    experts
        The T experts that the gate row sees, in the order of its rows.
    logits
        The gate row, (T, C_out).
    dtype
        Precision to compute in, ``None`` for the parameters' own.

    Returns
    -------
    Tensor
        ``sum_t softmax(logits)_t * Pad(W_t, K)``, (C_out, C_in, K, K, K) with K the largest expert's, channels-last.
    """
    return fuse_rows(experts, [logits], dtype)[0]


def fuse_rows(
    experts: Sequence[Expert],
    rows: Sequence[Tensor],
    dtype: torch.dtype | None = None,
    reach: Sequence[int] | None = None,
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
    reach
        Most taps (z, y, x) that are wanted of a kernel, odd numbers; the others are left out. ``None`` is all.

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
    What autograd keeps is the experts' weights and the rows. A second derivative is refused by torch.
    Under autocast everything is computed in the parameters' precision: a convolution rounds the finished kernel.
    """
    if not experts:
        raise ValueError("at least one expert is needed")
    for row in rows:
        if row.shape[0] != len(experts):
            raise ValueError(f"the gate row has {row.shape[0]} entries for {len(experts)} experts")
    weights = [weight.to(dtype) for expert in experts for weight in expert.weights()]
    given = [row.to(dtype) for row in rows]
    sizes = _sizes(experts, reach)
    if torch.compiler.is_compiling():
        # What is kept for the backward pass is the compiler's affair, and that of torch 2.11 loses the gradients of
        # a function which it cannot trace to its end.
        with torch.autocast(given[0].device.type, enabled=False):
            taps = _wanted(_taps(experts, weights), sizes)
            return tuple([_summed(sizes, taps, torch.softmax(row, 0)) for row in given])
    apply = cast(Callable[..., tuple[Tensor, ...]], _Fuse.apply)
    return apply(tuple(experts), sizes, len(given), *given, *weights)


def fuse_channels(experts: Sequence[Expert], logits: Tensor, channels: slice, dtype: torch.dtype) -> Tensor:
    """Return `fuse_kernels` for some output channels alone, without gradients: the rest is never made.

    Parameters
    ----------
    experts, logits, dtype
        As of `fuse_kernels`.
    channels
        Which of the C_out output channels.

    Returns
    -------
    Tensor
        (channels, C_in, K, K, K), channels-last.
    """
    with torch.no_grad():
        taps = [expert.taps(*(weight.to(dtype) for weight in expert.part(channels))) for expert in experts]
        return _merge(_sizes(experts, None), taps, torch.softmax(logits[:, channels].to(dtype), 0))


class _Fuse(torch.autograd.Function):
    """``apply(experts, sizes, S, *rows, *weights)`` -> S kernels, `sizes` being what is wanted of each expert's."""

    @staticmethod
    def forward(
        ctx: Any, experts: tuple[Expert, ...], sizes: tuple[Size, ...], count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return one kernel for each of the first `count` tensors, the gate rows."""
        ctx.experts, ctx.sizes, ctx.count = experts, sizes, count
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        with torch.autocast(tensors[0].device.type, enabled=False):
            taps = _wanted(_taps(experts, tensors[count:]), sizes)
            return tuple(_merge(sizes, taps, torch.softmax(row, 0)) for row in tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Turn the kernels' gradients into those of rows and weights; frozen ones cost nothing."""
        experts: tuple[Expert, ...] = ctx.experts
        saved = ctx.saved_tensors  # asked for once: activation checkpointing allows no second time
        rows, weights = saved[: ctx.count], saved[ctx.count :]
        needed = list(ctx.needs_input_grad[3:])
        row_grads: list[Tensor | None] = [None] * ctx.count
        tap_grads: list[Tensor | None] = [None] * len(experts)
        learns = _learning(experts, needed[ctx.count :])
        with torch.autocast(rows[0].device.type, enabled=False):
            whole = _taps(experts, weights)
            taps = _wanted(whole, ctx.sizes)
            for s, (row, grad) in enumerate(zip(rows, grads, strict=True)):
                if grad is None:
                    continue
                shares = torch.softmax(row, 0)
                parts = _Parts(grad)
                inner = []
                for t, (size, tap) in enumerate(zip(ctx.sizes, taps, strict=True)):
                    part = parts.of(size, spread=_is_spread(tap, size))
                    if needed[s]:
                        inner.append(_inner_products(tap, part))
                    if learns[t]:
                        tap_grads[t] = _add(tap_grads[t], part, _column(shares[t]))
                if needed[s]:
                    along = torch.stack(inner)
                    row_grads[s] = shares * (along - (shares * along).sum(0))
            tap_grads = [g if g is None else _grown(g, tap) for g, tap in zip(tap_grads, whole, strict=True)]
            weight_grads = _weight_gradients(experts, weights, tap_grads, needed[ctx.count :])
        return (None, None, None, *row_grads, *weight_grads)


def _by_expert(experts: Sequence[Expert], values: Sequence[V]) -> Iterator[tuple[Expert, Sequence[V]]]:
    """Yield each expert with its own of `values`, which hold one entry for each weight of all experts."""
    first = 0
    for expert in experts:
        count = len(expert.weights())
        yield expert, values[first : first + count]
        first += count


def _taps(experts: Sequence[Expert], weights: Sequence[Tensor]) -> list[Tensor]:
    """Return each expert's kernel, (C_out, C_in, K, K, K), or (C_out, C_in, 1, 1, 1) where all taps are the same."""
    return [expert.taps(*mine) for expert, mine in _by_expert(experts, weights)]


def _learning(experts: Sequence[Expert], needed: Sequence[bool]) -> list[bool]:
    """Say of each expert whether a weight of it takes a gradient."""
    return [any(mine) for _, mine in _by_expert(experts, needed)]


def _sizes(experts: Sequence[Expert], reach: Sequence[int] | None) -> tuple[Size, ...]:
    """Return the taps (z, y, x) that are wanted of each expert."""
    found = []
    for expert in experts:
        z, y, x = (min(expert.kernel_size, most) for most in reach or [expert.kernel_size] * 3)
        found.append((z, y, x))
    return tuple(found)


def _wanted(taps: Sequence[Tensor], sizes: Sequence[Size]) -> list[Tensor]:
    return [
        tap if tap.shape[2:].numel() == 1 else _centre(tap, size)
        for tap, size in zip(taps, sizes, strict=True)
    ]


def _is_spread(tap: Tensor, size: Size) -> bool:
    """Say whether `tap` is one number for all of `size` taps."""
    return tap.shape[2:].numel() < math.prod(size)


def _grown(grad: Tensor, tap: Tensor) -> Tensor:
    """Return the gradient of whole taps: zero where they were left out."""
    if grad.shape == tap.shape:
        return grad
    grown = torch.zeros_like(tap, memory_format=torch.channels_last_3d)
    _centre(grown, (grad.shape[2], grad.shape[3], grad.shape[4])).copy_(grad)
    return grown


def _merge(sizes: Sequence[Size], taps: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Add up ``share * tap``, from the largest kernels to the smallest, each size in the centre of the last."""
    c_out, c_in = taps[0].shape[:2]
    steps = sorted(set(sizes), key=math.prod, reverse=True)
    fused = torch.empty(
        (c_out, c_in, *steps[0]),
        dtype=taps[0].dtype,
        device=taps[0].device,
        memory_format=torch.channels_last_3d,
    )
    for step in steps:
        place = _centre(fused, step)
        same = [
            (tap, _column(share))
            for size, tap, share in zip(sizes, taps, shares, strict=True)
            if size == step
        ]
        full = [pair for pair in same if not _is_spread(pair[0], step)]
        # What is the same in all taps is summed small, and enters with the first pass over the large kernel.
        level = [tap * share for tap, share in same if _is_spread(tap, step)]
        spread = sum(level[1:], level[0]) if level else None
        if step == steps[0]:
            if not full:
                place.copy_(cast(Tensor, spread).expand_as(place))
            elif spread is None:
                torch.mul(*full[0], out=place)
            else:
                torch.addcmul(spread, *full[0], out=place)
            full = full[1:]
        elif spread is not None:
            place.add_(spread)
        for tap, share in full:
            place.addcmul_(tap, share)
    return fused


def _summed(sizes: Sequence[Size], taps: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Return what `_merge` does, by operations that autograd knows; added in another order, so not to the same bits."""
    edges = max(sizes, key=math.prod)
    parts: list[Tensor] = []
    for size, tap, share in zip(sizes, taps, shares, strict=True):
        z, y, x = ((whole - own) // 2 for whole, own in zip(edges, size, strict=True))
        parts.append(functional.pad(tap.expand(*tap.shape[:2], *size) * _column(share), (x, x, y, y, z, z)))
    return sum(parts[1:], parts[0]).contiguous(memory_format=torch.channels_last_3d)


class _Parts:
    """A kernel's gradient as experts of each size see it: its centre, or the sum over that; each made once."""

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad
        self._made: dict[tuple[Size, bool], Tensor] = {}

    def of(self, size: Size, *, spread: bool) -> Tensor:
        """Return the part of the central `size` taps, or with `spread` their sum, (C_out, C_in, 1, 1, 1)."""
        if (size, spread) not in self._made:
            if spread:
                part = self.of(size, spread=False).sum((2, 3, 4), keepdim=True)
            else:
                part = _centre(self.grad, size).contiguous(memory_format=torch.channels_last_3d)
            self._made[size, spread] = part
        return self._made[size, spread]


def _centre(kernel: Tensor, size: Size) -> Tensor:
    """Return the central `size` taps (z, y, x), a view."""
    margins = [(whole - wanted) // 2 for whole, wanted in zip(kernel.shape[2:], size, strict=True)]
    if not any(margins):
        return kernel
    z, y, x = (slice(margin, margin + wanted) for margin, wanted in zip(margins, size, strict=True))
    return kernel[:, :, z, y, x]


def _column(share: Tensor) -> Tensor:
    """(C_out,) -> (C_out, 1, 1, 1, 1)."""
    return share[:, None, None, None, None]


def _inner_products(tap: Tensor, part: Tensor) -> Tensor:
    """Return the inner product of two kernels for each output channel, (C_out,), in bounded scratch."""
    # In memory order, channels last: no copy is made.
    first, second = (x.permute(0, 2, 3, 4, 1).flatten(1) for x in (tap, part))
    rows = max(1, _SCRATCH // first.shape[1])
    pairs = zip(torch.split(first, rows), torch.split(second, rows), strict=True)
    products: list[Tensor] = [torch.linalg.vecdot(a, b) for a, b in pairs]
    return products[0] if len(products) == 1 else torch.cat(products)


def _add(total: Tensor | None, part: Tensor, share: Tensor) -> Tensor:
    """Add ``part * share`` to `total` in place."""
    return part * share if total is None else total.addcmul_(part, share)


def _weight_gradients(
    experts: Sequence[Expert],
    weights: Sequence[Tensor],
    tap_grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradient of each weight of each expert, None where it takes none."""
    found: list[Tensor | None] = []
    each = zip(_by_expert(experts, weights), _by_expert(experts, needed), tap_grads, strict=True)
    for (expert, mine), (_, wanted), grad in each:
        made = [None] * len(mine) if grad is None else expert.weight_gradients(grad, *mine)
        found += [g if takes else None for g, takes in zip(made, wanted, strict=True)]
    return found
