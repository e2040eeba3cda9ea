"""The MoDE block (paper, section 3.3, Fig. 3 and 8): shared experts, a gate row per structure, additions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from repmode_cl.errors import StructureError, UnknownStructureError
from repmode_cl.nn.architecture import AdditionSpec, expert_labels
from repmode_cl.nn.convolution import convolve, taps_within
from repmode_cl.nn.experts import Expert, make_expert
from repmode_cl.nn.gates import HIDDEN_UNITS, GateChoice, InputGate, TaskCodes, TaskGate
from repmode_cl.nn.gatrep import (
    Gating,
    Outside,
    add_expert,
    fuse_kernels,
    fuse_rows,
    mixing_weights,
    weigh_kernels,
)
from repmode_cl.nn.per_structure_layers import StructureGroups, StructureNorm, apply_by_structure

__all__ = ["UNSEEN_SHARE", "ModeAddition", "ModeBlock", "fuse_under_autocast", "logit_for_share"]

#: Half-width of the uniform distribution of a new gate row: that of a linear layer on the paper's 12-way one-hot.
GATE_INIT = 12**-0.5

#: First share in the softmax of an expert that is not part of the mode which an addition begins as.
UNSEEN_SHARE = 0.02


_FREE_ROWS = GateChoice()


def new_gate(experts: int, c_out: int, generator: torch.Generator) -> nn.Parameter:
    """Return a gate row (T, C_out) near zero: near equal shares for all experts."""
    return nn.Parameter((torch.rand((experts, c_out), generator=generator) * 2 - 1) * GATE_INIT)


def logit_for_share(share: float, others: Tensor, gating: Gating = "softmax") -> Tensor:
    """Return the logit (C_out,) that has `share` of a softmax over it and `others` (T, C_out).

    With sigmoid gates `share` is its own weight, whatever the others are.
    """
    logit = math.log(share / (1 - share))
    return torch.logsumexp(others, 0) + logit if gating == "softmax" else others[0] * 0 + logit


def fuse_under_autocast(network: nn.Module, active: bool) -> None:
    """Let every MoDE block compute logits in the precision of autocast where that is on, or in the parameters' own.

    That is what autocast does to a gate that is a linear layer. It leaves the softmax (on GPUs) and the products of
    which kernels are summed in float32.
    """
    for part in network.modules():
        if isinstance(part, ModeBlock):
            part.fuses_under_autocast = active


class ModeAddition(nn.Module):
    """The part of an added structure in one block: a gate row and, unless it has none, a fresh expert.

    Parameters
    ----------
    expert
        The fresh expert.
    gate
        Logits of the experts within the softmax, (T, C_out).
    needs
        Additions whose experts it sees.
    outside
        Whether the fresh expert stands outside the softmax.
    scale
        Factor (C_out,) of such an expert; None is 1.
    """

    def __init__(
        self,
        expert: Expert | None,
        gate: nn.Parameter,
        needs: tuple[str, ...],
        *,
        outside: bool = False,
        scale: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.expert = expert
        self.gate = gate
        self.needs = needs
        self.outside = outside
        self.scale = scale

    def outside_weight(self) -> Outside | None:
        """Return the weight (C_out,) of the fresh expert, or 1, if it stands outside the softmax; None otherwise."""
        if not self.outside or self.expert is None:
            return None
        return 1.0 if self.scale is None else self.scale


@dataclass(frozen=True)
class FixedMix:
    """Parts of an addition's kernel in training while its gate is fixed.

    Attributes
    ----------
    structure
        The addition.
    mix
        Sum of the experts of others, weighed; (C_out, C_in, K, K, K), without gradient.
    expert
        Its own expert; None where it has none.
    share
        Weight (C_out,) of that; None is 1.
    """

    structure: str
    mix: Tensor
    expert: Expert | None = None
    share: Tensor | None = None


class ModeBlock(nn.Module):
    """One MoDE block, C_in to C_out channels, stride 1.

    Parameters
    ----------
    c_in, c_out
        Channels in and out.
    experts
        Shared experts (`make_expert`'s names).
    structures
        Base structures: one gate row each, unless `gate` says otherwise.
    activation
        Whether batch norm and ReLU follow; the network's last block has neither.
    generator
        Source of the initial weights.
    gate
        How the experts are gated.

    Attributes
    ----------
    gated
        Whether structures have kernels of their own here; otherwise the block is one plain convolution for all.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        experts: Sequence[str],
        structures: Sequence[str],
        *,
        activation: bool,
        generator: torch.Generator,
        gate: GateChoice = _FREE_ROWS,
    ) -> None:
        super().__init__()
        self.c_in, self.c_out = c_in, c_out
        self.gating, self.gated = gate.gating, gate.kind != "none"
        self.experts = nn.ModuleDict(
            {
                label: make_expert(spec, c_in, c_out, generator)
                for label, spec in zip(expert_labels(experts), experts, strict=True)
            }
        )
        shape = (len(experts), c_out)
        rows = structures if gate.kind == "rows" else ()
        self.gates = nn.ParameterDict({name: new_gate(*shape, generator) for name in rows})
        #: Whether `task_gate` becomes rows when the base is trained (`store_rows`).
        self.shares_gate_bias = gate.kind == "shared_bias"
        self.task_gate: TaskGate | None = None
        if gate.kind in ("shared_bias", "linear", "two_layer"):
            hidden = HIDDEN_UNITS if gate.kind == "two_layer" else None
            self.task_gate = TaskGate(cast(TaskCodes, gate.codes), hidden, *shape, generator)
        self.input_gate = InputGate(c_in, *shape, generator) if gate.kind == "input" else None
        self.own = nn.ModuleDict()
        #: Whether logits are computed in the precision of autocast, where that is on.
        self.fuses_under_autocast = False
        self.norm = StructureNorm(c_out) if activation else None
        self._fixed: FixedMix | None = None

    def add_gate(self, name: str, generator: torch.Generator) -> None:
        """Add a free gate row over the shared experts for `name`, and nothing else."""
        self.store_rows()
        if self.gated and self.input_gate is None:
            self.gates[name] = new_gate(len(self.experts), self.c_out, generator)

    def store_rows(self) -> None:
        """Make free rows of a gate with a shared bias, each a column of its weight and the bias."""
        if self.shares_gate_bias:
            rows = {name: nn.Parameter(row.clone()) for name, row in self.base_rows().items()}
            self.gates, self.task_gate = nn.ParameterDict(rows), None
            self.shares_gate_bias = False

    def add(self, name: str, spec: AdditionSpec, fresh: str, generator: torch.Generator) -> None:
        """Add a fresh expert and a gate row over all visible experts for `name` (paper, Fig. 8).

        Parameters
        ----------
        name
            The structure.
        spec
            How it is added.
        fresh
            Its expert in this block (`AdditionSpec.expert_in`).
        generator
            Source of the initial weights.
        """
        self.store_rows()
        if self.norm is not None and spec.norm == "own":
            self.norm.add(name)
        if not self.gated:
            return
        expert = None if fresh == "none" else make_expert(fresh, self.c_in, self.c_out, generator)
        earlier = sum(self.addition(other).expert is not None for other in spec.needs)
        outside = spec.gate == "outside"
        if outside:
            gate = nn.Parameter(self.mean_gate(earlier))
            if expert is not None:
                expert.set_to_zero()
        else:
            gate = new_gate(len(self.experts) + earlier + (expert is not None), self.c_out, generator)
        scale = nn.Parameter(gate.new_ones(self.c_out)) if spec.scale and expert is not None else None
        self.own[name] = ModeAddition(expert, gate, spec.needs, outside=outside, scale=scale)

    def mean_gate(self, earlier: int = 0) -> Tensor:
        """Return the mean of the base's gate rows, and a small share for each of the `earlier` additions' experts."""
        mean = torch.stack([self._row(name).detach() for name in self._base]).mean(0)
        unseen = logit_for_share(UNSEEN_SHARE, mean, self.gating)
        return torch.cat([mean, unseen.expand(earlier, -1)])

    @property
    def _base(self) -> tuple[str, ...]:
        """Structures of the base, which see the shared experts and nothing else."""
        return (*(() if self.task_gate is None else self.task_gate.names), *self.gates)

    def _row(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return the logits (T, C_out) of a structure of the base, computed in `dtype`."""
        if name not in self.gates:
            return cast(TaskGate, self.task_gate).row(name, dtype)
        row: Tensor = self.gates[name]
        return row.to(dtype).to(row.dtype)

    def base_rows(self) -> dict[str, Tensor]:
        """Return the logits (T, C_out) of each of the base's structures."""
        return {name: self._row(name).detach() for name in self._base}

    def addition(self, name: str) -> ModeAddition:
        """Return the part of the addition `name` in this block."""
        return cast(ModeAddition, self.own[name])

    def visible(self, name: str) -> tuple[list[tuple[str, Expert]], Tensor]:
        """Return the experts that `name` sees, with their labels, and its gate row (T, C_out) over them.

        An expert outside the softmax is the last one, and has no entry in the row: see `outside_weight`.

        Raises
        ------
        UnknownStructureError
            If it has no gate row.
        StructureError
            If the gate depends on the block's input.
        """
        experts, row = self._seen(name)
        labels = list(self.experts)
        if name in self.own:
            others = (*self.addition(name).needs, name)
            labels += [f"of {other}" for other in others if self.addition(other).expert is not None]
        return list(zip(labels, experts, strict=True)), row

    def _seen(self, name: str) -> tuple[list[Expert], Tensor]:
        """Return what `visible` does, without labels."""
        experts = cast(list[Expert], list(self.experts.values()))
        if not self.gated:
            return experts, self._unit_row()
        if self.input_gate is not None:
            raise StructureError(
                "a gate that depends on the input (network.gate: input) has no fused kernel: the weights of its "
                "experts are others for each image"
            )
        if name in self.own:
            own = self.addition(name)
            added = [self.addition(other).expert for other in own.needs]
            return experts + [one for one in (*added, own.expert) if one is not None], own.gate
        if name in self._base:
            return experts, self._row(name)
        raise UnknownStructureError(name, [*self._base, *self.own], "this block")

    def _unit_row(self) -> Tensor:
        """Return logits (1, C_out) that give the one expert of a plain convolution the weight 1."""
        weight = next(self.experts.parameters())
        # The sigmoid of a large number is 1, to the bit.
        return weight.new_full((1, self.c_out), 0.0 if self.gating == "softmax" else 100.0)

    def outside_weight(self, name: str) -> Outside | None:
        """Return the weight (C_out,) of the last expert that `name` sees, or 1, if it stands outside the softmax."""
        return self.addition(name).outside_weight() if name in self.own else None

    def mixing_weights(self, name: str) -> Tensor:
        """Return the weight (T, C_out) of each expert that `name` sees in its kernel."""
        return mixing_weights(self.visible(name)[1], self.outside_weight(name), self.gating)

    def fix_mix(self, name: str | None) -> None:
        """Fuse what is frozen of the kernel of `name` once, for as long as its gate is fixed; None ends that.

        All that others own must stay as it is meanwhile, and the gate of `name` too. It is fused in the parameters'
        precision.
        """
        if name is None:
            self._fixed = None
            return
        if name not in self.own:  # one plain convolution for all structures
            self._fixed = FixedMix(name, self.kernel(name).detach())
            return
        others, row = self._seen(name)
        own, share = self.addition(name), None
        with torch.no_grad():
            weights = mixing_weights(row, self.outside_weight(name), self.gating)
            if own.expert is not None:
                share = None if own.outside and own.scale is None else weights[-1].clone()
                others, weights = others[:-1], weights[:-1]
            mix = weigh_kernels(others, weights, self.kernel_shape(name)[2])
        self._fixed = FixedMix(name, mix, own.expert, share)

    def kernel_shape(self, name: str) -> tuple[int, int, int, int, int]:
        """Return the shape of `kernel`, (C_out, C_in, K, K, K), without computing it."""
        size = max(expert.kernel_size for expert in self._seen(name)[0])
        return self.c_out, self.c_in, size, size, size

    def kernel(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return the fused kernel of `name`, (C_out, C_in, K, K, K) (paper, eq. 6)."""
        experts, gate = self._seen(name)
        return fuse_kernels(experts, gate, dtype, self.outside_weight(name), self.gating)

    def kernels(
        self,
        names: Sequence[str],
        max_taps: Sequence[int] | None = None,
        logits_dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Return the fused kernel of each of `names`, with at most `max_taps` taps (z, y, x).

        The structures of the base, which see the same experts, are fused together.
        """
        fixed = self._fixed
        if fixed is not None and self.training and torch.is_grad_enabled() and [*names] == [fixed.structure]:
            return {fixed.structure: add_expert(fixed.mix, fixed.expert, fixed.share, max_taps)}
        experts = [cast(Expert, expert) for expert in self.experts.values()]
        if not self.gated:
            row = self._unit_row()
            [kernel] = fuse_rows(experts, [row], max_taps=max_taps, gating=self.gating)
            return dict.fromkeys(names, kernel)
        fused: dict[str, Tensor] = {}
        if base := [name for name in names if name not in self.own and name in self._base]:
            rows = [self._row(name, logits_dtype) for name in base]
            together = fuse_rows(experts, rows, max_taps=max_taps, gating=self.gating)
            fused = dict(zip(base, together, strict=True))
        for name in names:
            if name not in fused:
                seen, row = self._seen(name)
                if logits_dtype is not None:
                    row = row.to(logits_dtype).to(row.dtype)
                outside = self.outside_weight(name)
                [fused[name]] = fuse_rows(seen, [row], max_taps=max_taps, outside=outside, gating=self.gating)
        return fused

    def forward(self, x: Tensor, groups: StructureGroups) -> Tensor:
        """Convolve (N, C_in, Z, Y, X) -> (N, C_out, Z, Y, X) with one kernel for each structure in the batch."""
        # Without gradients kernels are whole, bit for bit those of the network that `fuse` returns.
        max_taps = taps_within(x.shape[2:]) if torch.is_grad_enabled() else None
        dtype = None
        if self.fuses_under_autocast and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        if self.input_gate is not None:
            x = self._convolve_by_input(x, self.input_gate, max_taps, dtype)
        else:
            kernels = self.kernels(groups.names, max_taps, dtype)
            if self.gated:
                x = apply_by_structure(x, groups, lambda part, name: convolve(part, kernels[name]))
            else:
                x = convolve(x, kernels[groups.names[0]])
        return x if self.norm is None else torch.relu(self.norm(x, groups))

    def _convolve_by_input(
        self, x: Tensor, gate: InputGate, max_taps: Sequence[int] | None, dtype: torch.dtype | None
    ) -> Tensor:
        """Convolve each sample with the kernel that its own input makes."""
        experts = [cast(Expert, expert) for expert in self.experts.values()]
        rows = [row.to(dtype).to(row.dtype) for row in gate.rows(x).unbind()]
        kernels = fuse_rows(experts, rows, max_taps=max_taps, gating=self.gating)
        parts = [convolve(part, kernel) for part, kernel in zip(torch.split(x, 1), kernels, strict=True)]
        return torch.cat(parts)
