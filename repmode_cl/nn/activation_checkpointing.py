"""Activation checkpointing: a stage's activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["frozen_statistics", "mark_for_compiler", "recomputed"]


#: torch's checkpoint, marked for its compiler, once `mark_for_compiler` was called.
_marked: Callable[..., Any] = checkpoint


def mark_for_compiler() -> None:
    """Have torch's compiler leave checkpoints alone: it gives up on those with contexts of their own.

    Called when checkpointing is switched on and not at import: it loads the compiler, which takes seconds.
    """
    global _marked
    if _marked is checkpoint:
        _marked = cast(Callable[..., Any], cast(Any, torch.compiler).disable(checkpoint))


def recomputed(stage: Callable[..., Tensor], modules: Iterable[nn.Module], *inputs: Tensor) -> Tensor:
    """Compute ``stage(*inputs)`` and keep nothing of it for the backward pass but `inputs`.

    Parameters
    ----------
    stage
        What is computed, now and once more in the backward pass.
    modules
        What it computes with: the running statistics of their batch norms move the first time only.
    *inputs
        Tensors; whatever else `stage` needs it brings itself.

    Returns
    -------
    Tensor
        What `stage` returns. Output, gradients and running statistics are the same to the bit as without.
    """
    norms = [norm for module in modules for norm in module.modules() if isinstance(norm, nn.BatchNorm3d)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(norms)

    # Nothing here draws random numbers, so that no state of a generator needs to be kept.
    return cast(
        Tensor,
        _marked(stage, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts),
    )


@contextmanager
def frozen_statistics(norms: Iterable[nn.BatchNorm3d]) -> Iterator[None]:
    """Let running statistics move on copies that are forgotten at the end.

    Copies, because a recomputation has to save exactly as many tensors as the first computation did, and because
    statistics that were set back in place would count as modified since.
    """
    kept = [
        (norm, name, buffer)
        for norm in norms
        if norm.training
        for name, buffer in norm.named_buffers(recurse=False)
    ]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
