"""The variants that are compared, and one optimiser step of each as the strategies do it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repmode_cl.nn import AdditionSpec, Architecture, PlainUNet, RepModeUNet
from repmode_cl.nn.architecture import PAPER_EXPERTS
from repmode_cl.perf.reference_variants import per_sample, unfused
from repmode_cl.perf.settings import PerfSettings, check_names
from repmode_cl.structures import TWELVE_STRUCTURES
from repmode_cl.training.loss import masked_mse
from repmode_cl.training.optim import make_adam
from repmode_cl.training.precision import Precision
from repmode_cl.utils.memory import tensor_bytes

__all__ = [
    "REFERENCE",
    "REFERENCE_K3",
    "Batch",
    "Networks",
    "Step",
    "Variant",
    "forward_of",
    "kernel3_variants",
    "names_in",
    "timed_variants",
    "training_variants",
]

#: The variant that all ratios are relative to.
REFERENCE = "plain-k5"

#: The one that those of networks of kernel 3 are relative to, and the experts of these networks.
REFERENCE_K3 = "plain-k3"
_EXPERTS_K3 = ("conv3", "conv1", "avg3")

#: Structures of the joint base: enough for the largest mixed batch that is measured.
_BASE = TWELVE_STRUCTURES[:8]
_ADDED = "added"

#: Where an addition has its expert: within the softmax, or outside it.
_GATES: tuple[Literal["softmax", "outside"], ...] = ("softmax", "outside")

Kind = Literal["plain", "ours", "addition", "unfused", "per-sample"]


@dataclass(frozen=True)
class Variant:
    """One line of a table.

    Attributes
    ----------
    name, label
        Its key, and its label in the table.
    kind
        What computes it.
    structures
        Different structures in the batch; 1 where the network has one purpose.
    option
        Kernel of the plain network, or expert of the addition.
    effort
        Rough time relative to the plain network's, to foretell how long a measurement takes; not a result.
    experts
        Shared experts of the network, where it is no plain one.
    gate
        Where the addition has its expert, as of `AdditionSpec`.
    fixed
        Whether its gates are fixed, as they are after ``gate_steps``.
    """

    name: str
    label: str
    kind: Kind
    structures: int = 1
    option: str = ""
    effort: float = 1.0
    experts: tuple[str, ...] = PAPER_EXPERTS
    gate: Literal["softmax", "outside"] = "softmax"
    fixed: bool = False


def training_variants(settings: PerfSettings) -> list[Variant]:
    """Return what is compared, the reference first; mixed batches as far as the batch holds them."""
    counted = [
        (count, "1 structure" if count == 1 else f"{count} structures") for count in settings.structure_counts
    ]
    return [
        Variant(REFERENCE, "plain network, kernel 5", "plain", option="5"),
        Variant("plain-k3", "plain network, kernel 3", "plain", option="3", effort=0.5),
        *(Variant(f"ours-{n}", f"ours, {text}", "ours", n, effort=1.1) for n, text in counted),
        Variant("addition-conv3", "ours, adding a structure (conv3)", "addition", option="conv3"),
        Variant("addition-lowrank4", "ours, adding a structure (lowrank:4)", "addition", option="lowrank:4"),
        *(
            Variant(f"unfused-{n}", f"unfused mixture, {text}", "unfused", n, effort=2.5)
            for n, text in counted
        ),
        *(
            Variant(f"per-sample-{n}", f"fused for each sample, {text}", "per-sample", n, effort=2.0)
            for n, text in counted
        ),
    ]


def kernel3_variants(settings: PerfSettings) -> list[Variant]:
    """Return what is compared of networks whose fused kernel is 3, the plain network of that kernel first."""
    counted = [
        (count, "1 structure" if count == 1 else f"{count} structures")
        for count in settings.structure_counts
        if count <= 2
    ]
    return [
        Variant(REFERENCE_K3, "plain network, kernel 3", "plain", option="3", effort=0.5),
        *(
            Variant(f"ours-{n}", f"ours, {text}", "ours", n, effort=0.55, experts=_EXPERTS_K3)
            for n, text in counted
        ),
        *(_added_to_kernel3(expert, gate) for expert in ("conv3", "lowrank:4") for gate in _GATES),
        *(
            _added_to_kernel3(expert, gate, fixed=True)
            for expert in ("conv3", "lowrank:4")
            for gate in _GATES
        ),
    ]


def _added_to_kernel3(expert: str, gate: Literal["softmax", "outside"], *, fixed: bool = False) -> Variant:
    text = f"{expert}, {gate}" + (", fixed gates" if fixed else "")
    name = f"addition-{expert.replace(':', '')}-{gate}" + ("-fixed" if fixed else "")
    return Variant(
        name,
        f"ours, adding ({text})",
        "addition",
        option=expert,
        effort=0.55,
        experts=_EXPERTS_K3,
        gate=gate,
        fixed=fixed,
    )


def timed_variants(settings: PerfSettings) -> list[Variant]:
    """Return the variants whose training step is timed: the reference, and those that were chosen.

    Raises
    ------
    ConfigError
        If a name is none.
    """
    every = training_variants(settings)
    if not settings.variants:
        return every
    check_names("variant", settings.variants, [variant.name for variant in every])
    return [variant for variant in every if variant.name in (REFERENCE, *settings.variants)]


def names_in(variant: Variant, batch: int) -> list[str]:
    """Return the structure of each sample of the batch, interleaved as a shuffled batch has them."""
    if variant.kind == "addition":
        return [_ADDED] * batch
    return [_BASE[place % variant.structures] for place in range(batch)]


class Networks:
    """The networks behind the variants, each built once and kept on `device`.

    Variants of the joint base share its parameters: what is compared is how they compute, and the values
    have no influence on that.

    Parameters
    ----------
    settings
        Sizes and seed.
    device
        Where the networks are.
    source
        Networks to copy instead of drawing their weights again, which for the paper's widths takes seconds each.
    """

    def __init__(self, settings: PerfSettings, device: torch.device, source: Networks | None = None) -> None:
        self.settings, self.device, self.source = settings, device, source
        self._made: dict[tuple[Any, ...], nn.Module] = {}
        self._optimizers: dict[tuple[int, ...], torch.optim.Optimizer] = {}

    def of(self, variant: Variant) -> nn.Module:
        """Return the variant's network, with exactly what it trains requiring gradients."""
        key = (variant.kind, variant.option, variant.experts, variant.gate, variant.fixed)
        if key not in self._made:
            made = self._made[key] = self._make(variant)
            if variant.fixed and isinstance(made, RepModeUNet):
                made.fix_gates(
                    _ADDED
                )  # on the device: what is fused is no parameter, and does not move with it
        return self._made[key]

    def optimizer_of(self, variant: Variant) -> torch.optim.Optimizer:
        """Return the optimiser of what the variant trains; networks that share parameters share it."""
        trained = [p for p in self.of(variant).parameters() if p.requires_grad]
        key = tuple(sorted(id(p) for p in trained))
        if key not in self._optimizers:
            # As the strategies make it, for an optimiser's own cost is part of a step.
            self._optimizers[key] = make_adam(trained, learning_rate=1e-4)
        return self._optimizers[key]

    def _make(self, variant: Variant) -> nn.Module:
        s = self.settings
        shares = variant.kind in ("unfused", "per-sample")
        if self.source is not None and not shares:
            return copy.deepcopy(self.source.of(variant)).to(self.device)
        if variant.kind == "plain":
            return PlainUNet(s.width, s.depth, int(variant.option), seed=s.seed).to(self.device)
        if variant.kind == "unfused":
            return unfused(self.joint())
        if variant.kind == "per-sample":
            return per_sample(self.joint())
        network = RepModeUNet(Architecture(s.width, s.depth, variant.experts), _BASE, seed=s.seed)
        if variant.kind == "addition":
            spec = AdditionSpec(expert=variant.option, gate=variant.gate)
            network.add_structure(_ADDED, spec, seed=s.seed)
            network.train_only([_ADDED])
        return network.to(self.device)

    def joint(self) -> RepModeUNet:
        """Return the network of eight base structures."""
        found = self.of(Variant("ours", "", "ours"))
        if not isinstance(found, RepModeUNet):
            raise TypeError(f"the joint base is no RepModeUNet but {type(found).__name__}")
        return found


class Batch:
    """Random patches and targets on `device`, the same for every variant.

    Attributes
    ----------
    signal
        (N, 1, z, y, x).
    target
        (N, 2, z, y, x): the target, and the weight (0 or 1) of each voxel.
    """

    def __init__(self, settings: PerfSettings, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (settings.batch, 1, *settings.patch)
        self.signal = torch.randn(shape, generator=generator).to(device)
        target = torch.randn(shape, generator=generator)
        weight = (torch.rand(shape, generator=generator) < 0.9).float()
        self.target = torch.cat([target, weight], dim=1).to(device)


def forward_of(network: nn.Module, variant: Variant, batch: int) -> Callable[[Tensor], Tensor]:
    """Return the call that maps signals to predictions, with the structures of the variant's batch."""
    if variant.kind == "plain":
        return network
    names = names_in(variant, batch)
    return lambda x: network(x, names)


class Step:
    """One optimiser step: forward, masked loss, backward, Adam; batch norm in training mode.

    Parameters
    ----------
    networks
        Where the variant's network and optimiser are.
    variant
        What is trained.
    batch
        What is learned.
    precision
        Autocast and scaling.
    """

    def __init__(self, networks: Networks, variant: Variant, batch: Batch, precision: Precision) -> None:
        self.network = networks.of(variant)
        self.forward = forward_of(self.network, variant, len(batch.signal))
        self.optimizer = networks.optimizer_of(variant)
        self.batch, self.precision = batch, precision
        self.scaler = precision.scaler()

    def __call__(self) -> None:
        """Make one step."""
        if not self.network.training:  # as in training: once, and not in each step
            self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        if self.scaler is None:
            torch.autograd.backward(loss)
            self.optimizer.step()
        else:
            torch.autograd.backward(self.scaler.scale(loss))
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def loss(self) -> Tensor:
        """Return the loss of the batch, with its graph."""
        with self.precision.autocast():
            output = self.forward(self.batch.signal)
        return masked_mse(output, self.batch.target)

    def state_bytes(self) -> dict[str, int]:
        """Return the bytes of all parameters, of the gradients and of the optimiser's state, as they are now."""
        parameters = list(self.network.parameters())
        state = [v for one in self.optimizer.state.values() for v in one.values() if isinstance(v, Tensor)]
        return {
            "parameters": tensor_bytes(parameters),
            "gradients": tensor_bytes([p.grad for p in parameters if p.grad is not None]),
            "optimizer": tensor_bytes(state),
        }
