"""TSNs, task switching networks (Sun et al., ICCV 2021): a code of the structure sets scale and shift of the decoder.

The paper's rival on the plain U-Net. The code z_k of the structure that came as number k has 20 S entries for S slots,
20 of them one and all others zero. An embedding, shared by all layers, and a conditional block are

    w = M(z):     z / sqrt(mean(z^2) + 1e-8), then 8 times [linear d -> d, LeakyReLU(0.2)],   d = 20 S
    y = LeakyReLU_0.01(gamma * InstanceNorm(Conv(x)) + beta),      (gamma, beta) = A w + a

The linear layers are equalised: weights are drawn from N(0, 1) and multiplied by sqrt(2 / inputs) at each call. Biases
begin at zero, those of gamma at one. Instance norm has no parameters and no running statistics.

From the authors' code (github.com/GuoleiSun/TSNs, model.py): the codes, the embedding, the conditional block, and where
it stands: 1 x 1 x 1 blocks with bias on each output of the encoder before it enters the decoder (the four skips and the
deepest one), and in place of each convolution of the decoder. The encoder is not conditioned and keeps its batch norm.
Known of RepMode's adaptation: a last layer for each structure, where the original has one of 21 channels for all.
Chosen here: the backbone's encoder, up layers and K x K x K kernels (theirs is a ResNet-18 in 2D with bilinear
upsampling), mixed batches and one rate (they train task after task, the encoder at a lower rate), and what a structure
owns that is added to the frozen network: gamma and beta of every conditional block in place of a code, which begin as
the means of the base's (1,952 channels at the paper's width, so 3,904 numbers), and its last layer. The next code would
do nothing while the embedding is frozen. With ``condition="code"`` a code is trained in place of scales and shifts (d
numbers), from the mean of the base's codes: only the embedding is between it and the layers. The bias of the 1 x 1 x 1
blocks has no effect, because the norm after it subtracts it; it is kept as the original has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.architecture import Architecture
from repmode_cl.nn.conditioned_unet import (
    SLOTS,
    Arrival,
    ConditionedUNet,
    LastLayers,
    StructurePart,
    expand_rows,
)
from repmode_cl.nn.convolution import convolve
from repmode_cl.nn.experts import kaiming, standard_normal, uniform
from repmode_cl.nn.per_structure_layers import StructureGroups

__all__ = ["CODE_ENTRIES", "ConditionalNormBlock", "EqualisedLinear", "TaskEmbedding", "TrainedCodes", "TSNs"]

#: Entries of a code that are one, of each structure.
CODE_ENTRIES = 20

#: Layers of the embedding.
_LAYERS = 8


class EqualisedLinear(nn.Module):
    """A linear layer whose weights are stored with variance 1 and scaled by sqrt(2 / inputs) at each call.

    Parameters
    ----------
    inputs, outputs
        Numbers that it takes and returns.
    generator
        Draws the weights.
    """

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = standard_normal((outputs, inputs), generator)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = math.sqrt(2 / inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        return F.linear(x, self.weight * self.scale, self.bias)


class TaskEmbedding(nn.Module):
    """The embedding of task codes.

    Parameters
    ----------
    length
        Entries d of a code, and of what it is embedded in.
    generator
        Draws the weights.
    """

    def __init__(self, length: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EqualisedLinear(length, length, generator) for _ in range(_LAYERS))

    def forward(self, codes: Tensor) -> Tensor:
        """(N, d) -> (N, d)."""
        w = codes / torch.sqrt(codes.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.layers:
            w = F.leaky_relu(layer(w), 0.2)
        return w


@dataclass(frozen=True)
class _Embedded(StructureGroups):
    """The structures of a batch, and the embedding of each, (structures, d)."""

    embedding: Tensor


class _OwnValues(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)


class ConditionalNormBlock(StructurePart):
    """A convolution, instance norm, a scale and a shift that the embedding sets, and LeakyReLU.

    Parameters
    ----------
    c_in, c_out, kernel
        Channels and edge of the kernel.
    length
        Entries of the embedding.
    bias
        Whether the convolution has a bias.
    own_scales
        Whether a structure that is added to the frozen network has its own scale and shift.
    generator
        Draws the weights.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        length: int,
        *,
        bias: bool,
        own_scales: bool = True,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.own_scales = own_scales
        fan_in = c_in * kernel**3
        self.weight = kaiming((c_out, c_in, kernel, kernel, kernel), fan_in, generator)
        self.bias = uniform((c_out,), 1 / math.sqrt(fan_in), generator) if bias else None
        self.affine = EqualisedLinear(length, 2 * c_out, generator)
        with torch.no_grad():
            self.affine.bias[:c_out] = 1

    def add(self, arrival: Arrival) -> None:
        """Give a structure on the frozen network its own scale and shift; the others have theirs of their code."""
        if arrival.frozen and self.own_scales:
            self.own[arrival.name] = _OwnValues(torch.zeros_like(self.affine.bias))

    def begin_as(self, name: str, embedding: Tensor) -> None:
        """Set the own scale and shift of `name` to the mean of what the affine layer makes of `embedding`, (N, d).

        Without rows, where there is no base, they are the affine layer's bias: 1 and 0.
        """
        with torch.no_grad():
            start = self.affine(embedding).mean(0) if len(embedding) else self.affine.bias
            cast(_OwnValues, self.own[name]).values.copy_(start)

    def forward(self, x: Tensor, context: _Embedded) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, Z, Y, X)."""
        x = F.instance_norm(convolve(x, self.weight, self.bias), eps=1e-5)
        shared = self.affine(context.embedding)
        rows = [
            cast(_OwnValues, self.own[name]).values if name in self.own else row
            for name, row in zip(context.names, shared, strict=True)
        ]
        gamma, beta = expand_rows(rows, context)[:, :, None, None, None].chunk(2, dim=1)
        return F.leaky_relu(gamma * x + beta, 0.01)


class TrainedCodes(StructurePart):
    """The codes of structures that were added to the frozen network and train them.

    Parameters
    ----------
    slots
        The most structures that the network can have.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots

    def add(self, arrival: Arrival) -> None:
        """Give a structure on the frozen network the mean of the base's codes; the others have theirs of the table."""
        if arrival.frozen:
            values = torch.zeros(CODE_ENTRIES * self.slots)
            values[: CODE_ENTRIES * len(arrival.base)] = 1 / max(1, len(arrival.base))
            self.own[arrival.name] = _OwnValues(values)

    def code_of(self, name: str, fixed: Tensor) -> Tensor:
        """Return the code that `name` trains, or else `fixed`."""
        return cast(_OwnValues, self.own[name]).values if name in self.own else fixed


class TSNs(ConditionedUNet):
    """The plain U-Net with a conditioned decoder, and a last layer for each structure.

    Parameters
    ----------
    architecture, kernel
        As of `ConditionedUNet`.
    structures
        Structures of the base.
    slots
        The most structures that it can have, which decide the length of the codes.
    condition
        What a structure that is added to the frozen network trains besides its last layer: ``"scales"``, the scales
        and shifts of every conditioned block, or ``"code"``, its code.
    seed
        Seed of the initial weights.
    """

    depends_on_window: ClassVar[bool] = True  # instance norm's statistics are those of the window

    def __init__(
        self,
        architecture: Architecture,
        kernel: int,
        structures: Sequence[str] = (),
        *,
        slots: int = SLOTS,
        condition: Literal["scales", "code"] = "scales",
        seed: int = 0,
    ) -> None:
        if condition not in ("scales", "code"):
            raise ValueError(f"condition is scales or code, not {condition!r}")
        generator = torch.Generator().manual_seed(seed)
        super().__init__(architecture, kernel, generator)
        self.slots = slots
        #: Numbers in a code.
        self.code_length = length = CODE_ENTRIES * slots

        def block(c_in: int, c_out: int, size: int, *, bias: bool) -> ConditionalNormBlock:
            return ConditionalNormBlock(
                c_in, c_out, size, length, bias=bias, own_scales=condition == "scales", generator=generator
            )

        self.embedding = TaskEmbedding(length, generator)
        self.own_codes = TrainedCodes(slots) if condition == "code" else None
        widths = [self.width << level for level in range(self.depth + 1)]
        self.laterals = nn.ModuleList(block(channels, channels, 1, bias=True) for channels in widths[:-1])
        self.bottleneck.append(block(widths[-1], widths[-1], 1, bias=True))
        for level, channels in enumerate(widths[:-1]):
            self.decoder[level] = nn.ModuleList(
                block(c_in, channels, kernel, bias=False) for c_in in (2 * channels, channels)
            )
        self.head = LastLayers(self.width, kernel)
        self.begin(structures, seed)

    def add_structure(self, name: str, *, seed: int) -> None:
        """Add `name` to the frozen network, with the mean of the base's scales and shifts, or of its codes.

        See `ConditionedUNet`.
        """
        super().add_structure(name, seed=seed)
        if self.own_codes is not None:
            return
        with torch.no_grad():
            embedding = self.embedding(self.codes(self.base_structures))
        for module in self.modules():
            if isinstance(module, ConditionalNormBlock):
                module.begin_as(name, embedding)

    def codes(self, names: Sequence[str]) -> Tensor:
        """Return the codes of structures, (N, d): 20 ones each, at the place in which it came, or what it trained."""
        weight = next(self.embedding.parameters())
        codes = weight.new_zeros(len(names), self.code_length)
        for row, name in enumerate(names):
            first = CODE_ENTRIES * self.structures.index(name)
            codes[row, first : first + CODE_ENTRIES] = 1
        if self.own_codes is None or not any(name in self.own_codes.own for name in names):
            return codes
        rows = [self.own_codes.code_of(name, row) for name, row in zip(names, codes, strict=True)]
        return torch.stack(rows)

    def run(self, x: Tensor, context: StructureGroups) -> Tensor:
        """Compute a batch that is sorted by structure, with the embedding of each structure's code."""
        embedding = self.embedding(self.codes(context.names))
        return super().run(x, _Embedded(context.names, context.counts, embedding))

    def join(self, level: int, skip: Tensor, up: Tensor, context: _Embedded) -> Tensor:
        """Return the skip after its conditional block, and the up layer's features, concatenated."""
        return torch.cat([self.laterals[level](skip, context), up], dim=1)
