"""Activation checkpointing: a stage's activations are computed again in the backward pass, not stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed", "frozen_statistics", "mark_for_compiler"]


#: torch's checkpoint, marked for its compiler, once `mark_for_compiler` was called.
_torch_checkpoint: Callable[..., Any] = checkpoint


def mark_for_compiler() -> None:
    """Keep torch's compiler out of checkpoints: it gives up on those that are given contexts.

    This is called when checkpointing is switched on and not at import: it loads the compiler, which takes seconds.
    """
    global _torch_checkpoint
    if _torch_checkpoint is checkpoint:
        _torch_checkpoint = cast(Callable[..., Any], cast(Any, torch.compiler).disable(checkpoint))


def checkpointed(stage: Callable[..., Tensor], modules: Iterable[nn.Module], *inputs: Tensor) -> Tensor:
    """Compute ``stage(*inputs)``, storing only `inputs` for the backward pass.

    Parameters
    ----------
    stage
        The function to compute, now and once more in the backward pass.
    modules
        The modules that it uses: the running statistics of their batch norms are updated the first time only.
    *inputs
        Tensors; anything else that `stage` needs is part of it already.

    Returns
    -------
    Tensor
        The result of `stage`. Output, gradients and running statistics are the same bits as without checkpointing.
    """
    norms = [norm for module in modules for norm in module.modules() if isinstance(norm, nn.BatchNorm3d)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(norms)

    # Nothing here draws random numbers, so no generator's state needs to be stored.
    return cast(
        Tensor,
        _torch_checkpoint(stage, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts),
    )


@contextmanager
def frozen_statistics(norms: Iterable[nn.BatchNorm3d]) -> Iterator[None]:
    """Update copies of the running statistics within this context, and drop the copies at its end.

    Copies, because a recomputation must save exactly as many tensors as the first computation did, and because
    autograd would take statistics that were reset in place for modified ones.
    """
    saved = [
        (norm, name, buffer)
        for norm in norms
        if norm.training
        for name, buffer in norm.named_buffers(recurse=False)
    ]
    for norm, name, buffer in saved:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in saved:
            setattr(norm, name, buffer)
