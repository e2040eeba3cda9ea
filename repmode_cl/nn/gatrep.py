"""GatRep (paper, section 3.4): a gate row and the experts it sees become one convolution kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repmode_cl.nn.experts import Expert

__all__ = ["fuse_kernels"]


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
        ``sum_t softmax(logits)_t * Pad(W_t, K)``, (C_out, C_in, K, K, K) with K the largest expert's.
    """
    if logits.shape[0] != len(experts):
        raise ValueError(f"the gate row has {logits.shape[0]} entries for {len(experts)} experts")
    # Autocast would round the low-rank product to half precision before the kernel exists.
    with torch.autocast(logits.device.type, enabled=False):
        gates = torch.softmax(logits.to(dtype), dim=0)[..., None, None, None, None]  # (T, C_out, 1, 1, 1, 1)
        fused: Tensor | None = None
        size = 0
        # From small to large, so that each size is padded once, with all that is smaller already summed in it.
        for kernel_size in sorted({expert.kernel_size for expert in experts}):
            same = [(gate, e) for gate, e in zip(gates, experts, strict=True) if e.kernel_size == kernel_size]
            part = sum(
                (gate * e.kernel(dtype) for gate, e in same[1:]), same[0][0] * same[0][1].kernel(dtype)
            )
            if fused is not None:
                part = part + F.pad(fused, [(kernel_size - size) // 2] * 6)
            fused, size = part.expand(*part.shape[:2], *[kernel_size] * 3), kernel_size
    if fused is None:
        raise ValueError("at least one expert is needed")
    return fused.contiguous()
