"""Plain variants of the MoDE block: the same experts and gates, computed without GatRep or fused for every sample.

They are here to be compared with, and give the outputs and gradients that our blocks give; a test proves it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.convolution import convolve
from repmode_cl.nn.experts import AvgExpert, ConvExpert, Expert, LowRankExpert
from repmode_cl.nn.mode_block import ModeBlock
from repmode_cl.nn.per_structure_layers import StructureGroups
from repmode_cl.nn.repmode_unet import RepModeUNet

__all__ = ["PerSampleBlock", "UnfusedBlock", "branch", "merged_kernel", "per_sample", "unfused"]


class _Comparison(nn.Module):
    """A MoDE block computed in another way; it holds the block, and so the same parameters."""

    def __init__(self, block: ModeBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, groups: StructureGroups) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, Z, Y, X), as `ModeBlock.forward`."""
        x = self.mix(x, *self._visible(groups))
        return x if self.block.norm is None else torch.relu(self.block.norm(x, groups))

    def mix(self, x: Tensor, experts: Sequence[Expert], shares: Tensor) -> Tensor:
        """Mix `experts` for each sample with `shares` (N, T, C_out)."""
        raise TypeError(f"{type(self).__name__} does not say how it mixes")

    def _visible(self, groups: StructureGroups) -> tuple[list[Expert], Tensor]:
        """Return the experts that all structures of the batch see, and their weights for each sample (N, T, C_out)."""
        experts: list[Expert] = []
        gates = []
        for name in groups.names:
            seen, _ = self.block.visible(name)
            if experts and [expert for _, expert in seen] != experts:
                raise ValueError(f"{', '.join(groups.names)} do not see the same experts: give them apart")
            experts = [expert for _, expert in seen]
            gates.append(self.block.mixing_weights(name))
        return experts, torch.cat(
            [gate.expand(count, *gate.shape) for gate, count in zip(gates, groups.counts, strict=True)]
        )


class UnfusedBlock(_Comparison):
    """Every branch is run, and the results are summed with the gates' weights (paper, section 3.3 and Fig. 4a)."""

    def mix(self, x: Tensor, experts: Sequence[Expert], shares: Tensor) -> Tensor:
        """Return ``sum_t shares[:, t] * branch_t(x)``."""
        mixed: Tensor | None = None
        for row, expert in enumerate(experts):
            result = branch(expert, x)
            weighted = result * shares[:, row, :, None, None, None].to(result.dtype)
            mixed = weighted if mixed is None else mixed + weighted
        if mixed is None:
            raise ValueError("at least one expert is needed")
        return mixed


class PerSampleBlock(_Comparison):
    """Kernels are padded to one size, mixed for every sample of the batch, and convolved sample by sample."""

    def mix(self, x: Tensor, experts: Sequence[Expert], shares: Tensor) -> Tensor:
        """Return, for each sample, its convolution with the kernel mixed for it."""
        edge = max(expert.kernel_size for expert in experts)
        padded = []
        for expert in experts:
            padded.append(F.pad(merged_kernel(expert), [(edge - expert.kernel_size) // 2] * 6))
        kernels = torch.stack(padded)  # (T, C_out, C_in, K, K, K)
        results = []
        for sample, share in zip(torch.split(x, 1), shares, strict=True):
            results.append(convolve(sample, torch.einsum("to,toizyx->oizyx", share, kernels)))
        return torch.cat(results)


def branch(expert: Expert, x: Tensor) -> Tensor:
    """Run one expert as the branch it stands for: (N, C_in, Z, Y, X) -> (N, C_out, Z, Y, X)."""
    if isinstance(expert, ConvExpert):
        return convolve(x, expert.weight)
    if isinstance(expert, AvgExpert):
        size, margin = expert.kernel_size, expert.kernel_size // 2
        if min(x.shape[2:]) < size:
            # torch refuses to average a volume that is shallower than the kernel, but for what is padded before.
            x, margin = F.pad(x, [margin] * 6), 0
        return convolve(F.avg_pool3d(x, size, stride=1, padding=margin), expert.weight)
    if isinstance(expert, LowRankExpert):
        return convolve(convolve(x, expert.spatial), expert.mix[..., None, None, None])
    raise TypeError(f"{type(expert).__name__} has no branch")


def merged_kernel(expert: Expert) -> Tensor:
    """Return one expert as a kernel of the expert's size, (C_out, C_in, K, K, K), for autograd to differentiate."""
    if isinstance(expert, ConvExpert):
        return expert.weight
    if isinstance(expert, AvgExpert):
        size = expert.kernel_size
        return expert.weight.expand(-1, -1, size, size, size) / size**3
    if isinstance(expert, LowRankExpert):
        return torch.einsum("or,rizyx->oizyx", expert.mix, expert.spatial)
    raise TypeError(f"{type(expert).__name__} has no kernel")


def unfused(network: RepModeUNet) -> RepModeUNet:
    """Return a network of `UnfusedBlock` that shares the parameters and running statistics of `network`."""
    return _with_blocks(network, UnfusedBlock)


def per_sample(network: RepModeUNet) -> RepModeUNet:
    """Return a network of `PerSampleBlock` that shares the parameters and running statistics of `network`."""
    return _with_blocks(network, PerSampleBlock)


def _with_blocks(network: RepModeUNet, make: Callable[[ModeBlock], nn.Module]) -> RepModeUNet:
    # Whatever a deep copy finds in its memo it takes as it is.
    shared: dict[int, object] = {id(tensor): tensor for tensor in network.parameters()}
    shared |= {id(tensor): tensor for tensor in network.buffers()}
    twin = copy.deepcopy(network, shared)
    for name, block in list(twin.named_mode_blocks()):
        twin.set_submodule(name, make(block))
    return twin
