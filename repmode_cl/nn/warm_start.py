"""What an added structure may start with instead of chance: the mode of a structure that is known already.

The paper starts from chance (section 4.4). A mode is one kernel for each block, and an addition that sees the
same experts can begin near it: with the known structure's gate rows, and with an expert of its own that says what
those say already. Where the known structure is itself an addition, what it owns is taken over as far as it fits.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.nn.experts import AvgExpert, ConvExpert, Expert, LowRankExpert
from repmode_cl.nn.mode_block import ModeBlock
from repmode_cl.nn.per_structure_layers import StructureNorm, StructureResampling
from repmode_cl.nn.repmode_unet import RepModeUNet

__all__ = ["FreshExpert", "begin_from"]

#: What the addition's own expert starts as, where it cannot take over the known structure's: as it was drawn, as
#: nothing, or as the centre of the known structure's fused kernel.
FreshExpert = Literal["drawn", "zero", "kernel"]

#: What `begin_from` does unless it is told otherwise.
EXPERT: FreshExpert = "kernel"
SHARE: float | None = None

#: Share of the softmax that each expert gets which the addition sees and the known structure does not.
_UNSEEN = 0.02


def begin_from(
    network: RepModeUNet,
    name: str,
    other: str,
    *,
    source: RepModeUNet | None = None,
    expert: FreshExpert = EXPERT,
    share: float | None = SHARE,
) -> tuple[str, ...]:
    """Let the fresh addition `name` start from the mode of the known structure `other`.

    Parameters
    ----------
    network
        Holds `name`, untrained. Nothing but what `name` owns changes.
    name
        An addition.
    other
        A structure of `source`.
    source
        A network of the same base that holds `other`; `network` itself where not given. It may hold an earlier
        version of `name`, which can then be `other`.
    expert
        What the own expert starts as where `other` has none of its kind to take over: ``drawn`` at random as it
        is, ``zero``, or ``kernel``, the centre of the fused kernel of `other` (for a low-rank expert the best
        approximation of its rank, a truncated singular value decomposition).
    share
        Share of the softmax, in each output channel, that such an expert starts with, above 0 and below 1; None
        leaves its logit as it was drawn.

    Returns
    -------
    tuple of str
        What was taken over, in words: ``gate rows``, ``expert``, ``centre of its kernels``, ``norms``,
        ``resampling layers``.

    Raises
    ------
    UnknownStructureError
        If `name` is no addition of `network`, or `source` does not know `other`.
    ModelError
        If the two networks differ in their architecture or their base structures.
    ValueError
        If `share` is none.

    Notes
    -----
    A gate row is copied logit by logit for each expert that both see, so that the softmax (paper, eq. 2) weighs them
    among themselves as it does for `other`; an expert that only the addition sees takes its share from all of them
    alike. Where everything is copied (an addition of the same specification) the mode is that of `other`, bit for bit.
    """
    source = source or network
    if name not in network.additions:
        raise UnknownStructureError(name, network.additions, "the additions of this network")
    if other not in source.structures:
        raise UnknownStructureError(other, source.structures)
    if (network.architecture, network.base_structures) != (source.architecture, source.base_structures):
        raise ModelError(f"{name!r} cannot start from {other!r} of another base")
    if share is not None and not 0 < share < 1:
        raise ValueError(f"share is above 0 and below 1, not {share}")
    taken: dict[str, None] = {"gate rows": None}
    with torch.no_grad():
        for block_name, block in network.named_mode_blocks():
            there = cast(ModeBlock, source.get_submodule(block_name))
            if (found := _begin_block(block, there, name, other, expert, share)) is not None:
                taken[found] = None
            if block.norm is not None and _copy_norm(
                block.norm, cast(StructureNorm, there.norm), name, other
            ):
                taken["norms"] = None
        for site_name, layer in network.named_resampling():
            site = cast(StructureResampling, layer)
            from_ = cast(StructureResampling, source.get_submodule(site_name))
            if _copy_norm(site.norm, from_.norm, name, other):
                taken["norms"] = None
            if name in site.own and other in from_.own:
                site.own[name].load_state_dict(from_.own[other].state_dict())
                taken["resampling layers"] = None
    return tuple(taken)


def _copy_norm(here: StructureNorm, there: StructureNorm, name: str, other: str) -> bool:
    """Copy an addition's norm; that of the base an own copy starts from anyway."""
    if name not in here.own or other not in there.own:
        return False
    here.own[name].load_state_dict(there.own[other].state_dict())
    return True


def _begin_block(
    block: ModeBlock, source: ModeBlock, name: str, other: str, kind: FreshExpert, share: float | None
) -> str | None:
    """Set gate row and expert in one block; say what the own expert took over, if anything."""
    seen, gate = block.visible(name)
    known, row = source.visible(other)
    logits = {label: row[place] for place, (label, _) in enumerate(known)}
    theirs, mine = dict(known).get(f"of {other}"), block.addition(name).expert
    labels = [label for label, _ in seen[:-1]] if mine is not None else [label for label, _ in seen]
    said = None
    copied = [place for place, label in enumerate(labels) if label in logits]
    for place in copied:
        gate[place] = logits[labels[place]]
    if mine is not None:
        # An expert of `other` that the addition sees anyway is not needed twice.
        if theirs is not None and f"of {other}" not in labels and _alike(mine, theirs):
            mine.load_state_dict(theirs.state_dict())
            gate[-1] = logits[f"of {other}"]
            copied.append(len(labels))
            said = "expert"
        else:
            if kind != "drawn":
                _set(mine, source.kernel(other) if kind == "kernel" else None)
            if share is not None:
                gate[-1] = _logit_of(share, gate[copied])
            said = "centre of its kernels" if kind == "kernel" else None
    for place, label in enumerate(labels):
        if label not in logits:
            gate[place] = _logit_of(_UNSEEN, gate[copied])
    return said


def _logit_of(share: float, others: Tensor) -> Tensor:
    """Return the logit (C_out,) that has `share` of a softmax beside `others` (T, C_out)."""
    return torch.logsumexp(others, 0) + math.log(share / (1 - share))


def _alike(mine: Expert, theirs: Expert) -> bool:
    return type(mine) is type(theirs) and [w.shape for w in mine.weights()] == [
        w.shape for w in theirs.weights()
    ]


def _set(expert: Expert, kernel: Tensor | None) -> None:
    """Let `expert` come as near to `kernel` (C_out, C_in, K, K, K) as it can; to nothing where that is None."""
    if isinstance(expert, LowRankExpert):
        if kernel is None:
            expert.mix.zero_()  # and not the other factor too, which would then never take a gradient
        else:
            _truncate(expert, _centre(kernel, 3))
    elif isinstance(expert, ConvExpert):
        expert.weight.zero_()
        if kernel is not None:
            size = min(expert.kernel_size, kernel.shape[-1])
            _centre(expert.weight, size).copy_(_centre(kernel, size))
    elif isinstance(expert, AvgExpert):
        expert.weight.zero_()
        if kernel is not None:
            # The same number in all taps: their mean is nearest.
            inside = _centre(kernel, min(expert.kernel_size, kernel.shape[-1]))
            expert.weight.copy_(inside.sum((2, 3, 4), keepdim=True))
    else:
        raise TypeError(f"{type(expert).__name__} cannot start from a kernel")


def _truncate(expert: LowRankExpert, kernel: Tensor) -> None:
    """Set both factors to the kernel's truncated singular value decomposition (Eckart and Young, 1936)."""
    whole = torch.zeros((*kernel.shape[:2], 3, 3, 3), dtype=torch.float64, device=kernel.device)
    _centre(whole, kernel.shape[-1]).copy_(kernel)
    flat = whole.flatten(1)
    # Of the small square instead of the wide matrix: at the paper's width that has 27,648 columns.
    values, vectors = torch.linalg.eigh(flat @ flat.T)
    rank = min(expert.mix.shape[1], len(values))
    vectors = vectors[:, -rank:].flip(1)
    roots = (
        values[-rank:].flip(0).clamp_min(0).sqrt().sqrt()
    )  # of the singular values, shared by both factors
    useful = (
        roots > roots[0] * 1e-6
    )  # what is beyond the kernel's own rank stays as it was drawn, mixed with 0
    expert.mix.zero_()
    expert.mix[:, :rank] = (vectors * roots * useful).to(expert.mix.dtype)
    spatial = (vectors.T @ flat)[useful] / roots[useful, None]
    expert.spatial[:rank][useful] = spatial.reshape(-1, *expert.spatial.shape[1:]).to(expert.spatial.dtype)


def _centre(kernel: Tensor, size: int) -> Tensor:
    """Return the central `size` taps on each axis, or all where there are fewer; a view."""
    margin = max(0, (kernel.shape[-1] - size) // 2)
    inside = slice(margin, kernel.shape[-1] - margin)
    return kernel[:, :, inside, inside, inside]
