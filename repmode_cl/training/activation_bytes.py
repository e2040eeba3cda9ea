"""Bytes that a computation saves for its backward pass: the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["saved_bytes"]


def saved_bytes(compute: Callable[[], Tensor], excluded: Iterable[Tensor] = ()) -> int:
    """Return the bytes that autograd saves for the backward pass of the result of `compute`.

    Parameters
    ----------
    compute
        Run once, with gradients.
    excluded
        Tensors that exist anyway, such as the parameters: storage that they share is not counted.

    Notes
    -----
    Storage that several tensors share is counted once, and wholly even if only a view of it is saved.
    """
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    for tensor in excluded:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    # The graph is freed only now: as long as it lives, no address is used twice.
    del result
    return sum(sizes.values())
