"""RepMode's network: one U-Net of MoDE blocks that switches modes by structure, and grows by additions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from repmode_cl.errors import ModelError, StructureError, UnknownStructureError
from repmode_cl.nn.architecture import AdditionSpec, Architecture
from repmode_cl.nn.gates import GateChoice, GateKind, TaskCodes
from repmode_cl.nn.mode_block import ModeBlock
from repmode_cl.nn.per_structure_layers import StructureResampling
from repmode_cl.nn.plain_unet import PlainBlock, PlainResampling, PlainUNet
from repmode_cl.nn.structure_unet import StructureUNet, structure_seed
from repmode_cl.structures import check_structure_name

__all__ = ["RepModeUNet"]


class RepModeUNet(StructureUNet):
    """The RepMode U-Net (paper, section 3.2) with base structures and additions.

    Parameters
    ----------
    architecture
        Width, depth and shared experts.
    base_structures
        Structures that share the base's norms and are trained jointly; at least one.
    seed
        Seed of the initial weights; torch's global generator is not touched.
    width, depth
        In place of `architecture`: its width and depth, with the paper's experts; the paper's where left out.
    structures
        Another name of `base_structures`.
    shared_gate_bias
        Train the base's gates as a linear layer of a one-hot, with a bias that all structures have in common. It
        becomes rows, weight plus bias, before the first structure is added, and in what is stored.

    Raises
    ------
    StructureError
        If there is no structure, or one twice.
    TypeError
        If the architecture or the structures are given twice, or not at all.

    Examples
    --------
    >>> RepModeUNet(width=8, depth=3, structures=["dna"]).structures
    ('dna',)
    """

    def __init__(
        self,
        architecture: Architecture | None = None,
        base_structures: Sequence[str] | None = None,
        *,
        seed: int = 0,
        width: int | None = None,
        depth: int | None = None,
        structures: Sequence[str] | None = None,
        shared_gate_bias: bool = False,
    ) -> None:
        sizes: dict[str, Any] = {
            key: size for key, size in (("width", width), ("depth", depth)) if size is not None
        }
        if architecture is not None and sizes:
            raise TypeError(f"give either an architecture or {' and '.join(sizes)}, not both")
        architecture = architecture or Architecture(**sizes)
        given = [names for names in (base_structures, structures) if names is not None]
        if len(given) != 1:
            raise TypeError(
                "give the structures of the base once, as in RepModeUNet(..., structures=['dna'])"
            )
        if isinstance(given[0], str):  # its letters would be names
            raise StructureError(
                f"base structures: a list of names is needed, such as [{given[0]!r}], not a text"
            )
        names = tuple(check_structure_name(name) for name in given[0])
        if not names or len(set(names)) < len(names):
            raise StructureError(f"base structures: at least one, and none twice, not {list(names)}")
        if shared_gate_bias and (architecture.gate, architecture.embedding) != ("linear", "onehot"):
            raise ValueError(
                "a shared bias is that of a linear layer of a one-hot: these gates have other layers"
            )
        generator = torch.Generator().manual_seed(seed)
        codes = _task_codes(architecture, names, seed)
        kind: GateKind = architecture.gate if architecture.gate == "input" or codes is not None else "rows"
        if shared_gate_bias:
            kind, codes = "shared_bias", TaskCodes(names, None)
        mode = GateChoice(kind, architecture.gating, codes)
        made = itertools.count()

        def make_block(c_in: int, c_out: int, activation: bool) -> ModeBlock:
            # Blocks are made from the input on: two for each level of the encoder, and two for the bottleneck.
            part = "encoder" if next(made) < 2 * architecture.depth + 2 else "decoder"
            if architecture.scope in ("both", part):
                experts, gate = architecture.experts, mode
            else:
                experts = (f"conv{architecture.plain_kernel}",)
                gate = GateChoice("none", architecture.gating)
            return ModeBlock(
                c_in, c_out, experts, names, activation=activation, generator=generator, gate=gate
            )

        super().__init__(
            architecture.width,
            architecture.depth,
            make_block,
            lambda c_in, c_out, up: StructureResampling(c_in, c_out, up=up, generator=generator),
        )
        self.architecture = architecture
        if codes is not None:
            self.codes = codes
        self._base = names
        self._additions: dict[str, AdditionSpec] = {}

    # -- structures and layers ------------------------------------------------------------------------------------

    @property
    def structures(self) -> tuple[str, ...]:
        """All structures: the base's first, then the additions in the order in which they were added."""
        return (*self._base, *self._additions)

    @property
    def base_structures(self) -> tuple[str, ...]:
        """Structures of the base."""
        return self._base

    @property
    def additions(self) -> Mapping[str, AdditionSpec]:
        """Added structures and how each was added, in that order."""
        return dict(self._additions)

    def named_mode_blocks(self) -> Iterator[tuple[str, ModeBlock]]:
        """Yield the MoDE blocks with their names, from input to output."""
        for name, block in self.named_blocks():
            yield name, cast(ModeBlock, block)

    def named_resampling(self) -> Iterator[tuple[str, StructureResampling]]:
        """Yield the down and up layers with their names."""
        for name, layer in super().named_resampling():
            yield name, cast(StructureResampling, layer)

    @property
    def shares_gate_bias(self) -> bool:
        """True if the base's gates are trained with a bias that they have in common, and are no rows yet."""
        return any(block.shares_gate_bias for _, block in self.named_mode_blocks())

    @property
    def fusible(self) -> bool:
        """True if a structure has one kernel for each block, whatever the image."""
        return self.architecture.gate != "input"

    def check_fusible(self) -> None:
        """Refuse what needs a kernel that does not depend on the image, and say what works without."""
        if not self.fusible:
            raise StructureError(
                "this network has gates that depend on the input (network.gate: input): its kernels are others for "
                "each image, and there is no fused network. It can be trained jointly and evaluated in a benchmark "
                "(`repmode-cl bench`, strategy joint), or called; it cannot be fused, stored as a model or a pack, "
                "nor grow by additions. network.gate linear or two_layer can"
            )

    def kernels(self, structure: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return the fused kernel of each block for `structure`, (C_out, C_in, K, K, K) (paper, eq. 6)."""
        self._check(structure)
        self.check_fusible()
        with torch.no_grad():
            return {name: block.kernel(structure, dtype) for name, block in self.named_mode_blocks()}

    def gate_weights(self, structure: str) -> dict[str, dict[str, Tensor]]:
        """Return the gate weights of `structure`: block -> expert -> (C_out,) (paper, eq. 2 and Fig. 6).

        Those of one block sum to 1, an expert outside the softmax not counted; with sigmoid gates they need not.
        Blocks without gates are left out.
        """
        self._check(structure)
        self.check_fusible()
        weights = {}
        for name, block in self.named_mode_blocks():
            if not block.gated:
                continue
            shares = block.mixing_weights(structure).detach().float()
            labels = [label for label, _ in block.visible(structure)[0]]
            weights[name] = {label: share.clone() for label, share in zip(labels, shares, strict=True)}
        return weights

    # -- growing ------------------------------------------------------------------------------------------------

    def add_structure(self, name: str, spec: AdditionSpec | None = None, *, seed: int = 0) -> AdditionSpec:
        """Add `name` to the frozen network: a fresh expert and gate row per block, own norms, own resampling.

        Parameters
        ----------
        name
            The new structure.
        spec
            How it is added; the paper's way by default. With ``sees="all"``, `needs` are filled in here, unless
            they are given (as when a stored structure is loaded).
        seed
            Seed of the new weights, combined with the name.

        Returns
        -------
        AdditionSpec
            The specification as completed.
        """
        spec = spec or AdditionSpec()
        self.check_fusible()
        self._check_new(name)
        spec.check_depth(self.depth)
        if spec.sees == "all" and not spec.needs:
            spec = replace(spec, needs=tuple(n for n, s in self._additions.items() if s.expert != "none"))
        for other in spec.needs:
            if other not in self._additions:
                raise UnknownStructureError(
                    other, self._additions, f"{name!r} needs an addition and this network"
                )
        generator = self._generator(name, seed)
        for block_name, block in self.named_mode_blocks():
            block.add(name, spec, spec.expert_in(block_name, self.depth), generator)
        for _, layer in self.named_resampling():
            if spec.norm == "own":
                layer.norm.add(name)
            if spec.resampling == "own":
                layer.add(name)
        self._additions[name] = spec
        self._align_new_modules()
        return spec

    def drop_structure(self, name: str) -> None:
        """Remove the addition `name` and all that it owns, the reverse of `add_structure`.

        Raises
        ------
        UnknownStructureError
            If it is no addition of this network.
        StructureError
            If another addition sees its experts.
        """
        if name not in self._additions:
            raise UnknownStructureError(name, self._additions, "the additions of this network")
        if dependents := [other for other, spec in self._additions.items() if name in spec.needs]:
            raise StructureError(f"{name!r} cannot be dropped: {', '.join(dependents)} need its experts")
        for module in self.modules():
            own = getattr(module, "own", None)
            if isinstance(own, nn.ModuleDict) and name in own:
                del own[name]
        del self._additions[name]
        if self._trainable is not None:
            self._trainable = frozenset(n for n in self._trainable if f".own.{name}." not in n)

    def add_base_structure(self, name: str, *, seed: int = 0) -> None:
        """Add `name` to the base with only a gate row over the shared experts, as fine-tuning of all weights does."""
        self._check_new(name)
        if self._additions:
            raise StructureError(
                f"{name!r} cannot join the base: {', '.join(self._additions)} were added to it; make another base"
            )
        generator = self._generator(name, seed)
        for _, block in self.named_mode_blocks():
            block.add_gate(name, generator)
        self._base = (*self._base, name)
        self._align_new_modules()

    def _check_new(self, name: str) -> None:
        check_structure_name(name)
        if name in self.structures:
            raise StructureError(f"{name!r} is here already: this network knows {', '.join(self.structures)}")

    @staticmethod
    def _generator(name: str, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(structure_seed(seed, name))

    def _align_new_modules(self) -> None:
        """Bring newly built modules to the device, trainability and mode of the rest."""
        self.to(next(self.parameters()).device)
        if self._trainable is not None:
            self.restrict_training(self._trainable)
        self.train(self.training)

    # -- training -----------------------------------------------------------------------------------------------

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Make exactly the parameters of `trainable_names` trainable, freeze the rest, and return those names."""
        return self.restrict_training(self.trainable_names(structures))

    def restrict_training(self, names: frozenset[str]) -> frozenset[str]:
        """Let exactly the parameters `names` take gradients; a gate that was fixed (`fix_gates`) no longer is."""
        for _, block in self.named_mode_blocks():
            block.fix_mix(None)
        return super().restrict_training(names)

    def fix_gates(self, structure: str) -> frozenset[str]:
        """Fix the gate rows of the addition that is trained, and the factors of experts outside the softmax.

        Then all but the fresh experts of its kernels is constant: it is fused once, here, and no gradient is computed
        of it any more. `restrict_training` and `train_only` end that.

        Returns
        -------
        frozenset of str
            The parameters that are fixed.
        """
        fixed = frozenset(self.owned_groups(structure).get("gate", ()))
        for name in fixed:
            parameter = self.get_parameter(name)
            parameter.requires_grad_(False)
            parameter.grad = None
        for _, block in self.named_mode_blocks():
            block.fix_mix(structure)
        return fixed

    def trainable_names(self, structures: Sequence[str]) -> frozenset[str]:
        """Return the names of the parameters that training `structures` together may change.

        For one added structure: what it owns, and nothing else (paper, section 4.4: "experts frozen"). For base
        structures: the shared experts, the base's resampling layers and norms, and the gate rows of these structures.

        Raises
        ------
        UnknownStructureError
            If the network does not know one of them.
        StructureError
            If there are none, if an addition is mixed with others, or if the base is to be trained although additions
            depend on it.
        """
        for name in structures:
            self._check(name)
        selected = set(structures)
        if not selected:
            raise StructureError("nothing to train: name at least one structure")
        parameters = [name for name, _ in self.named_parameters()]
        if added := selected & set(self._additions):
            if len(selected) > 1:
                raise StructureError(
                    f"{', '.join(sorted(added))} cannot be trained together with others: an added structure has its "
                    "own norms and is trained by itself"
                )
            return frozenset(self.owned_names(*added)).intersection(parameters)
        if self._additions:
            raise StructureError(
                f"the base cannot be trained any more: {', '.join(self._additions)} depend on it; make another base"
            )
        frozen_rows = {
            f"{block}.gates.{name}"
            for block, _ in self.named_mode_blocks()
            for name in self._base
            if name not in selected
        }
        return frozenset(parameters) - frozen_rows

    # -- tensors by owner ---------------------------------------------------------------------------------------

    def owned_names(self, structure: str) -> dict[str, str]:
        """Return the state-dict names that the addition `structure` owns, each with its name without the structure."""
        if structure not in self._additions:
            raise UnknownStructureError(structure, self._additions, "the additions of this network")
        part = f".own.{structure}."
        return {name: name.replace(part, ".") for name in self.state_dict() if part in name}

    def owned_groups(self, structure: str) -> dict[str, tuple[str, ...]]:
        """Return the parameters that the addition `structure` owns, by what they are for.

        Returns
        -------
        dict of str to tuple of str
            ``expert``, ``gate`` (rows, and factors of experts outside the softmax), ``norm`` and ``resampling``, as far
            as it owns any -> their names in the network.
        """
        groups: dict[str, list[str]] = {group: [] for group in ("expert", "gate", "norm", "resampling")}
        owned = self.owned_names(structure)
        for name, _ in self.named_parameters():
            if name not in owned:
                continue
            own = name.partition(f".own.{structure}.")[2]
            if ".norm.own." in name:
                groups["norm"].append(name)
            elif own.startswith("expert."):
                groups["expert"].append(name)
            else:
                groups["gate" if own in ("gate", "scale") else "resampling"].append(name)
        return {group: tuple(names) for group, names in groups.items() if names}

    def base_values(self, structure: str) -> dict[str, Tensor]:
        """Return what parameters of an addition with its expert outside the softmax are in the base's mean mode.

        Returns
        -------
        dict of str to Tensor
            Name in the network -> value: the mean of the base's gate rows, zero for experts (of a low-rank one the
            mixing matrix; the other factor has no value there and is left out), 1 for their factors, and the base's
            norms and resampling layers.

        Raises
        ------
        StructureError
            If its expert is within the softmax, where no mode of the base has it.
        """
        spec = self._additions.get(structure)
        if spec is not None and spec.gate != "outside":
            raise StructureError(
                f"{structure!r} has its expert within the softmax: no mode of the base has one there"
            )
        values: dict[str, Tensor] = {}
        parameters = dict(self.named_parameters())
        for name in self.owned_names(structure):
            if name in parameters and ".expert." not in name and not name.endswith((".gate", ".scale")):
                values[name] = parameters[name.replace(f".own.{structure}.", ".base.")].detach()
        for block_name, block in self.named_mode_blocks():
            if not block.gated:
                continue
            addition, prefix = block.addition(structure), f"{block_name}.own.{structure}"
            earlier = len(addition.gate) - len(block.experts)
            values[f"{prefix}.gate"] = block.mean_gate(earlier)
            if addition.scale is not None:
                values[f"{prefix}.scale"] = torch.ones_like(addition.scale)
            if addition.expert is not None:
                for weight in addition.expert.zero_weights():
                    name = f"{prefix}.expert.{weight}"
                    values[name] = torch.zeros_like(parameters[name])
        return values

    def structure_state(self, structure: str) -> dict[str, Tensor]:
        """Return the tensors that the addition `structure` owns, named without it: ``encoder.0.0.gate`` and so on."""
        state = self.state_dict()
        return {local: state[name].detach() for name, local in self.owned_names(structure).items()}

    def base_state(self) -> dict[str, Tensor]:
        """Return the tensors that no addition owns: shared experts, resampling, base norms and base gate rows.

        Gates that are trained with a shared bias are among them as rows.
        """
        state = {name: tensor.detach() for name, tensor in self.state_dict().items() if ".own." not in name}
        for name, block in self.named_mode_blocks():
            if block.shares_gate_bias:
                state = {key: t for key, t in state.items() if not key.startswith(f"{name}.task_gate.")}
                state |= {f"{name}.gates.{structure}": row for structure, row in block.base_rows().items()}
        return state

    def load_structure_state(self, structure: str, state: Mapping[str, Tensor]) -> None:
        """Set the tensors that the addition `structure` owns.

        Raises
        ------
        ModelError
            If a tensor is missing, unexpected, or of another shape or type.
        """
        self._load_tensors(
            {local: name for name, local in self.owned_names(structure).items()}, state, repr(structure)
        )

    def load_base_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the tensors that no addition owns.

        Raises
        ------
        ModelError
            If a tensor is missing, unexpected, or of another shape or type.
        """
        self._load_tensors({name: name for name in self.base_state()}, state, "the base")

    def _load_tensors(self, names: Mapping[str, str], state: Mapping[str, Tensor], what: str) -> None:
        if missing := sorted(set(names) - set(state)):
            raise ModelError(f"{what}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
        if extra := sorted(set(state) - set(names)):
            raise ModelError(
                f"{what}: tensor {extra[0]!r} does not belong to this network ({len(extra)} in all)"
            )
        current = self.state_dict()
        for local, name in names.items():
            new, old = state[local], current[name]
            if new.shape != old.shape or new.dtype != old.dtype:
                raise ModelError(
                    f"{what}: tensor {local!r} is {new.dtype} {tuple(new.shape)}, "
                    f"this network's is {old.dtype} {tuple(old.shape)}"
                )
        with torch.no_grad():
            for local, name in names.items():
                current[name].copy_(state[local])

    def predictor(self, structure: str) -> nn.Module:
        """Return a module that predicts `structure`: the fused network, or this one where there is none."""
        if self.fusible:
            return self.fuse(structure)
        self._check(structure)
        return _Unfused(self, structure).eval()

    # -- computing ----------------------------------------------------------------------------------------------

    def _check_mixture(self, structures: Sequence[str]) -> None:
        if self.training and any(name in self._additions for name in structures):
            raise StructureError(
                f"{', '.join(structures)} cannot be mixed in a training batch: added structures have their own norms"
            )

    def fuse(self, structure: str) -> PlainUNet:
        """Return the fused plain network of `structure` (paper, section 3.4), a copy in evaluation mode.

        Its predictions are bit-identical to this network's in evaluation mode.

        Raises
        ------
        StructureError
            If its kernels depend on the input (`Architecture.gate`).
        """
        self._check(structure)
        self.check_fusible()
        blocks, resampling = dict(self.named_mode_blocks()), dict(self.named_resampling())
        sizes = [block.kernel_shape(structure)[-1] for block in blocks.values()]
        plain = PlainUNet(self.width, self.depth, max(sizes))
        state: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, module in plain.named_blocks():
                plain_block, kernel = cast(PlainBlock, module), blocks[name].kernel(structure)
                if (
                    kernel.shape != plain_block.weight.shape
                ):  # an addition may have a large expert in some blocks only
                    empty = torch.empty(kernel.shape).contiguous(memory_format=torch.channels_last_3d)
                    plain_block.weight = nn.Parameter(empty)
                plain_block.weight.copy_(kernel)
                norm = blocks[name].norm
                if norm is not None:
                    state |= {f"{name}.norm.{k}": v for k, v in norm.of(structure).state_dict().items()}
            for name, layer in plain.named_resampling():
                own = resampling[name]
                cast(PlainResampling, layer).layer.load_state_dict(own.of(structure).state_dict())
                state |= {f"{name}.norm.{k}": v for k, v in own.norm.of(structure).state_dict().items()}
            plain.load_state_dict(state, strict=False)
        return plain.to(next(self.parameters()).device).eval().requires_grad_(False)


class _Unfused(nn.Module):
    """A network as it is, for one of its structures; its layers are the network's own."""

    def __init__(self, network: RepModeUNet, structure: str) -> None:
        super().__init__()
        self.network, self.structure = network, structure

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X)."""
        result: Tensor = self.network(x, self.structure)
        return result


def _task_codes(architecture: Architecture, names: Sequence[str], seed: int) -> TaskCodes | None:
    """Return what the gates' layers read of each structure; None where the gates are free rows, or read the input."""
    if architecture.embedding == "gauss":
        return TaskCodes(names, torch.Generator().manual_seed(structure_seed(seed, "codes of structures")))
    return TaskCodes(names, None) if architecture.gate == "two_layer" else None
