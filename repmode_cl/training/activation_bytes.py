"""What a computation keeps for its backward pass, in bytes: the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["saved_bytes"]


def saved_bytes(compute: Callable[[], Tensor], held: Iterable[Tensor] = ()) -> int:
    """Return the bytes that autograd keeps for the backward pass of what `compute` returns.

    Parameters
    ----------
    compute
        Run once, with gradients.
    held
        Tensors that are there anyway, such as the parameters: what shares their memory is not counted.

    Notes
    -----
    Storage is counted once however many tensors share it, and whole even if a view of it is kept.
    """
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    for tensor in held:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    # Only now may the graph go: as long as it lives, no address is given out twice.
    del result
    return sum(sizes.values())
