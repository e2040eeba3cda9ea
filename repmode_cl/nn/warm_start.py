"""Warm start of an added structure: initial weights from the mode of another structure, instead of random ones.

The paper starts from random weights (section 4.4). A mode is one kernel for each block, and an addition that sees the
same experts can start near it: with the other structure's gate rows, and with a fresh expert that approximates the
other's kernel. Where the other structure is itself an addition, its own tensors are copied as far as they fit.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.nn.convolution import centre_taps
from repmode_cl.nn.experts import AvgExpert, ConvExpert, Expert, LowRankExpert
from repmode_cl.nn.gatrep import fuse_kernels
from repmode_cl.nn.mode_block import UNSEEN_SHARE, ModeAddition, ModeBlock, logit_for_share
from repmode_cl.nn.per_structure_layers import StructureNorm
from repmode_cl.nn.repmode_unet import RepModeUNet

__all__ = ["FreshExpert", "warm_start"]

#: Start of the addition's own expert where the other structure has none of its kind to copy: as it was drawn at random,
#: as zero, or as the centre of the other structure's fused kernel.
FreshExpert = Literal["drawn", "zero", "kernel"]

#: Defaults of `warm_start`.
DEFAULT_EXPERT: FreshExpert = "kernel"
DEFAULT_SHARE: float | None = None


def warm_start(
    network: RepModeUNet,
    name: str,
    other: str,
    *,
    source: RepModeUNet | None = None,
    expert: FreshExpert = DEFAULT_EXPERT,
    share: float | None = DEFAULT_SHARE,
) -> tuple[str, ...]:
    """Set the initial weights of the fresh addition `name` from the mode of the structure `other`.

    Parameters
    ----------
    network
        The network with `name`, untrained. Only the tensors that `name` owns change.
    name
        An addition of `network`.
    other
        A structure of `source`.
    source
        A network with the same base that has `other`; `network` itself by default. It may have an earlier version
        of `name`, which can then be `other`.
    expert
        Start of the fresh expert where `other` has none of its kind to copy: ``drawn`` at random as it is,
        ``zero``, or ``kernel``, the centre of the fused kernel of `other` (for a low-rank expert the best
        approximation of its rank, a truncated singular value decomposition).
    share
        Share of the softmax, in each output channel, of such an expert, above 0 and below 1; None leaves its logit as
        it was drawn. An expert outside the softmax has none.

    Returns
    -------
    tuple of str
        What was copied, in words: ``gate rows``, ``expert``, ``centre of its kernels``, ``norms``,
        ``resampling layers``.

    Raises
    ------
    UnknownStructureError
        If `name` is no addition of `network`, or `source` does not know `other`.
    ModelError
        If the two networks differ in their architecture or their base structures.
    ValueError
        If `share` is not above 0 and below 1.

    Notes
    -----
    A gate row is copied logit by logit for each expert that both see, so that the softmax (paper, eq. 2) weighs them
    among themselves as it does for `other`; an expert that only the addition sees takes its share from all of them
    alike. Where everything is copied (an addition of the same specification) the mode is that of `other`, bit for bit.

    An expert outside the softmax starts as the best approximation of what the mix of the others leaves of the kernel of
    `other`. For a structure of the base that is nothing: the addition begins as that mode.
    """
    source = source or network
    if name not in network.additions:
        raise UnknownStructureError(name, network.additions, "the additions of this network")
    if other not in source.structures:
        raise UnknownStructureError(other, source.structures)
    if (network.architecture, network.base_structures) != (source.architecture, source.base_structures):
        raise ModelError(f"{name!r} cannot start from {other!r} of another base")
    if share is not None and not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, not {share}")
    copied: dict[str, None] = {"gate rows": None}  # a set in order
    source_blocks, source_layers = dict(source.named_mode_blocks()), dict(source.named_resampling())
    with torch.no_grad():
        for block_name, block in network.named_mode_blocks():
            source_block = source_blocks[block_name]
            if expert_copied := _warm_start_block(block, source_block, name, other, expert, share):
                copied[expert_copied] = None
            if block.norm is not None and _copy_norm(
                block.norm, cast(StructureNorm, source_block.norm), name, other
            ):
                copied["norms"] = None
        for layer_name, layer in network.named_resampling():
            source_layer = source_layers[layer_name]
            if _copy_norm(layer.norm, source_layer.norm, name, other):
                copied["norms"] = None
            if name in layer.own and other in source_layer.own:
                layer.own[name].load_state_dict(source_layer.own[other].state_dict())
                copied["resampling layers"] = None
    return tuple(copied)


def _copy_norm(norm: StructureNorm, source: StructureNorm, name: str, other: str) -> bool:
    """Copy an addition's norm, and return whether there is one; a fresh norm is a copy of the base's anyway."""
    if name not in norm.own or other not in source.own:
        return False
    norm.own[name].load_state_dict(source.own[other].state_dict())
    return True


def _warm_start_block(
    block: ModeBlock,
    source: ModeBlock,
    name: str,
    other: str,
    expert_start: FreshExpert,
    share: float | None,
) -> str | None:
    """Set gate row and expert in one block; return what the fresh expert got, in words, or None."""
    if not block.gated:
        return None
    visible, gate = block.visible(name)
    source_experts, source_gate = source.visible(other)
    # One outside the softmax has no logit.
    logits = {label: row for (label, _), row in zip(source_experts, source_gate, strict=False)}
    own = block.addition(name)
    expert, outside = own.expert, own.outside and own.expert is not None
    source_expert = dict(source_experts).get(f"of {other}")
    # A fresh expert is the last one.
    shared = [label for label, _ in (visible if expert is None else visible[:-1])]
    copied_rows = [row for row, label in enumerate(shared) if label in logits]
    for row in copied_rows:
        gate[row] = logits[shared[row]]
    expert_copied = None
    if expert is not None and not outside:
        # An expert of `other` that the addition sees anyway is not needed twice.
        fits = f"of {other}" in logits and f"of {other}" not in shared
        if fits and source_expert is not None and _same_shapes(expert, source_expert):
            expert.load_state_dict(source_expert.state_dict())
            gate[-1] = logits[f"of {other}"]
            copied_rows.append(len(shared))
            expert_copied = "expert"
        else:
            if expert_start != "drawn":
                _approximate_kernel(expert, source.kernel(other) if expert_start == "kernel" else None)
            if share is not None:
                gate[-1] = logit_for_share(share, gate[copied_rows], block.gating)
            expert_copied = "centre of its kernels" if expert_start == "kernel" else None
    for row, label in enumerate(shared):
        if label not in logits:
            gate[row] = logit_for_share(UNSEEN_SHARE, gate[copied_rows], block.gating)
    if expert is not None and outside and expert_start == "kernel":
        experts = [e for _, e in visible[:-1]]
        expert_copied = _warm_start_outside(own, experts, source, other)
    return expert_copied


def _warm_start_outside(own: ModeAddition, shared: list[Expert], source: ModeBlock, other: str) -> str | None:
    """Set an expert outside the softmax, after the gate row; return what it got, in words, or None."""
    theirs = source.addition(other) if other in source.own else None
    expert = cast(Expert, own.expert)
    if (
        theirs is not None
        and theirs.outside
        and theirs.expert is not None
        and _same_shapes(expert, theirs.expert)
        and (own.scale is None) == (theirs.scale is None)
        and len(theirs.gate) == len(own.gate)
    ):
        expert.load_state_dict(theirs.expert.state_dict())
        if own.scale is not None and theirs.scale is not None:
            own.scale.copy_(theirs.scale)
        return "expert"
    kernel, mix = source.kernel(other), fuse_kernels(shared, own.gate, gating=source.gating)
    rest = kernel.new_zeros(max(kernel, mix, key=Tensor.numel).shape)
    centre_taps(rest, kernel.shape[2:]).copy_(kernel)
    centre_taps(rest, mix.shape[2:]).sub_(mix)
    if not bool(rest.any()):
        expert.set_to_zero()
        return None
    _approximate_kernel(expert, rest)
    if own.scale is not None:
        own.scale.fill_(1)
    return "centre of its kernels"


def _same_shapes(first: Expert, second: Expert) -> bool:
    shapes = [[weight.shape for weight in expert.weights()] for expert in (first, second)]
    return type(first) is type(second) and shapes[0] == shapes[1]


def _approximate_kernel(expert: Expert, kernel: Tensor | None) -> None:
    """Make `expert` as near to `kernel` (C_out, C_in, K, K, K) as it can be; zero where that is None."""
    expert.set_to_zero()
    if kernel is None:
        return
    if isinstance(expert, LowRankExpert):
        _set_low_rank(expert, centre_taps(kernel, [3] * 3))
    elif isinstance(expert, ConvExpert):
        centre_taps(expert.weight, kernel.shape[2:]).copy_(centre_taps(kernel, expert.weight.shape[2:]))
    elif isinstance(expert, AvgExpert):
        # The same number in all taps: their mean is nearest.
        centre = centre_taps(kernel, [expert.kernel_size] * 3)
        expert.weight.copy_(centre.sum((2, 3, 4), keepdim=True))
    else:
        raise TypeError(f"{type(expert).__name__} cannot start from a kernel")


def _set_low_rank(expert: LowRankExpert, kernel: Tensor) -> None:
    """Set both factors to the kernel's truncated singular value decomposition (Eckart and Young, 1936)."""
    padded = torch.zeros((*kernel.shape[:2], 3, 3, 3), dtype=torch.float64, device=kernel.device)
    centre_taps(padded, kernel.shape[2:]).copy_(kernel)
    flat = padded.flatten(1)
    # Decomposed is the small square matrix, not the wide one: at the paper's width that has 27,648 columns.
    values, vectors = torch.linalg.eigh(flat @ flat.T)
    rank = min(expert.mix.shape[1], len(values))
    vectors = vectors[:, -rank:].flip(1)
    # Square roots of the singular values: both factors share them.
    roots = values[-rank:].flip(0).clamp_min(0).sqrt().sqrt()
    # Ranks beyond the kernel's own stay as they were drawn, mixed with 0.
    useful = roots > roots[0] * 1e-6
    expert.mix.zero_()
    expert.mix[:, :rank] = (vectors * roots * useful).to(expert.mix.dtype)
    spatial = (vectors.T @ flat)[useful] / roots[useful, None]
    expert.spatial[:rank][useful] = spatial.reshape(-1, *expert.spatial.shape[1:]).to(expert.spatial.dtype)
