"""Adaptations of one layer of a frozen plain U-Net to an added structure: norms, updates, adapters, masks.

Each adaptation says how the layer computes for its structure, and how it is merged into a plain layer.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.experts import kaiming

__all__ = [
    "AdaptationKind",
    "AdaptationSpec",
    "AdaptedLayer",
    "BinaryMask",
    "Bottleneck",
    "LayerAdaptation",
    "LowRankAdaptation",
    "ScaleAndShift",
    "make_adaptation",
]

AdaptationKind = Literal["norm_only", "lora", "ssf", "adapter", "piggyback"]

#: Standard deviation of the initial scales around 1, and of the shifts around 0 (Lian et al., 2022).
_SSF_DEVIATION = 0.02

#: Scores above the first keep a weight; all start at the second (Mallya et al., 2018).
_THRESHOLD, _FIRST_SCORE = 5e-3, 1e-2


@dataclass(frozen=True)
class AdaptationSpec:
    """Kind of the adaptations that each added structure gets in every layer of the frozen network.

    Parameters
    ----------
    kind
        ``norm_only``: norms, and nothing else. ``lora``: a low-rank update of each kernel. ``ssf``: a scale and a
        shift after each convolution and each norm. ``adapter``: a residual bottleneck after each block.
        ``piggyback``: a binary mask of each kernel.
    norm
        ``own``: its own copy of every batch norm. ``base``: the base's, frozen; always so with ``ssf``.
    rank
        Rank of the updates of ``lora``.
    bottleneck
        Channels of the bottleneck of ``adapter``.
    """

    kind: AdaptationKind
    norm: Literal["own", "base"] = "own"
    rank: int = 4
    bottleneck: int = 4

    def __post_init__(self) -> None:
        if self.kind not in get_args(AdaptationKind):
            raise ValueError(f"kind is {', '.join(get_args(AdaptationKind))}, not {self.kind!r}")
        if self.norm not in ("own", "base"):
            raise ValueError(f"norm is own or base, not {self.norm!r}")
        if self.kind == "norm_only" and self.norm == "base":
            raise ValueError("norm_only with the base's norms would train nothing but the last layer")
        for key in ("rank", "bottleneck"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is at least 1, not {getattr(self, key)}")


@dataclass(frozen=True)
class AdaptedLayer:
    """A convolution of the frozen network that is adapted.

    Attributes
    ----------
    weight
        Its kernel, (C_out, C_in, K, K, K); transposed, (C_in, C_out, 2, 2, 2).
    norm
        The batch norm after it.
    transposed
        Whether it is an up layer.
    block
        Whether it is a block, and not a resampling layer.
    """

    weight: Tensor
    norm: nn.BatchNorm3d
    transposed: bool = False
    block: bool = True

    @property
    def c_out(self) -> int:
        """Channels that it computes."""
        return int(self.weight.shape[1 if self.transposed else 0])

    @property
    def c_in(self) -> int:
        """Channels that it reads."""
        return int(self.weight.shape[0 if self.transposed else 1])


class LayerAdaptation(nn.Module):
    """A structure's part of one layer: here its own norm, or nothing.

    Parameters
    ----------
    norm
        A norm of which the structure gets a copy, with its running statistics; None where it uses the base's.
    """

    def __init__(self, norm: nn.BatchNorm3d | None = None) -> None:
        super().__init__()
        self.norm = copy.deepcopy(norm)
        if self.norm is not None:
            self.norm.requires_grad_(True)
        #: What the layer's output passes; it cannot be merged into a kernel.
        self.after: nn.Module | None = None

    def kernel(self, weight: Tensor) -> Tensor:
        """Return the layer's kernel for the structure, of the shape of the base's `weight`."""
        return weight

    def normalise(self, x: Tensor, base: nn.BatchNorm3d) -> Tensor:
        """Normalise the convolution's output (N, C_out, Z, Y, X)."""
        result: Tensor = (base if self.norm is None else self.norm)(x)
        return result

    def merged_norm(self, base: nn.BatchNorm3d) -> nn.BatchNorm3d:
        """Return a norm, a copy, that computes in evaluation mode what `normalise` does."""
        return copy.deepcopy(base if self.norm is None else self.norm)


class LowRankAdaptation(LayerAdaptation):
    """LoRA (Hu et al., ICLR 2022): the kernel W + B A, with A of `rank` output channels, and B of size 1 x 1 x 1.

    The publication's scaling alpha / rank is 1 here: alpha is the rank. B starts at zero, so that nothing changes at
    first, and A as peft draws it: Kaiming-uniform with a = sqrt(5). A transposed convolution, which peft does not
    adapt, gets the same update, of the channels that it reads and computes.
    """

    def __init__(
        self, layer: AdaptedLayer, rank: int, norm: nn.BatchNorm3d | None, generator: torch.Generator
    ) -> None:
        super().__init__(norm)
        self.transposed = layer.transposed
        taps = tuple(layer.weight.shape[2:])
        shape = (layer.c_in, rank, *taps) if self.transposed else (rank, layer.c_in, *taps)
        self.lora_a = kaiming(shape, layer.c_in * taps[0] ** 3, generator)
        self.lora_b = nn.Parameter(torch.zeros(layer.c_out, rank))

    def update(self) -> Tensor:
        """Return B A, of the shape of the layer's kernel."""
        a = self.lora_a.transpose(0, 1) if self.transposed else self.lora_a
        # Computed channels-last, as kernels lie: (C_out, R) times (R, taps * C_in).
        merged = self.lora_b @ a.permute(0, 2, 3, 4, 1).flatten(1)
        merged = merged.reshape(len(self.lora_b), *a.shape[2:], a.shape[1]).permute(0, 4, 1, 2, 3)
        return merged.transpose(0, 1) if self.transposed else merged

    def kernel(self, weight: Tensor) -> Tensor:
        """Return W + B A."""
        return weight + self.update()


class ScaleAndShift(LayerAdaptation):
    """SSF (Lian et al., NeurIPS 2022): y = gamma * x + beta for each channel, after the convolution and the norm."""

    def __init__(self, layer: AdaptedLayer, generator: torch.Generator) -> None:
        super().__init__()
        self.transposed = layer.transposed

        def drawn(mean: float) -> nn.Parameter:
            return nn.Parameter(mean + _SSF_DEVIATION * torch.randn(layer.c_out, generator=generator))

        self.scale, self.shift = drawn(1.0), drawn(0.0)
        self.norm_scale, self.norm_shift = drawn(1.0), drawn(0.0)

    def kernel(self, weight: Tensor) -> Tensor:
        """Return the kernel with its output channels scaled."""
        return weight * self.scale.reshape((1, -1, 1, 1, 1) if self.transposed else (-1, 1, 1, 1, 1))

    def normalise(self, x: Tensor, base: nn.BatchNorm3d) -> Tensor:
        """Shift the convolution's output, normalise it by the base's norm, scale and shift again."""
        x = base(x + _per_channel(self.shift))
        return x * _per_channel(self.norm_scale) + _per_channel(self.norm_shift)

    def merged_norm(self, base: nn.BatchNorm3d) -> nn.BatchNorm3d:
        """Return the norm with both shifts and the second scale."""
        norm = copy.deepcopy(base)
        with torch.no_grad():
            if norm.running_mean is not None:
                norm.running_mean -= self.shift
            norm.weight.copy_(norm.weight * self.norm_scale)
            norm.bias.copy_(self.norm_scale * norm.bias + self.norm_shift)
        return norm


def _per_channel(values: Tensor) -> Tensor:
    return values.reshape(1, -1, 1, 1, 1)


class _Threshold(torch.autograd.Function):
    """1 where a score is above the threshold, else 0; the gradient passes as it is (straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return (scores > _THRESHOLD).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class BinaryMask(LayerAdaptation):
    """Piggyback (Mallya et al., ECCV 2018): the kernel W, of which a learned mask keeps some weights and zeroes others.

    Each weight has a real score while the mask is learned, and a bit when it is `packed`.
    """

    bits: Tensor | None

    def __init__(self, layer: AdaptedLayer, norm: nn.BatchNorm3d | None) -> None:
        super().__init__(norm)
        self.shape = tuple(layer.weight.shape)
        self.scores: nn.Parameter | None = nn.Parameter(torch.full_like(layer.weight, _FIRST_SCORE))
        self.register_buffer("bits", None)

    @property
    def packed(self) -> bool:
        """True if the mask is stored as bits, and cannot be trained."""
        return self.scores is None

    def mask(self) -> Tensor:
        """Return 1 for each weight that is kept, and 0 for the others."""
        if self.scores is not None:
            kept: Tensor = _Threshold.apply(self.scores)
            return kept
        assert self.bits is not None
        places = torch.arange(8, device=self.bits.device, dtype=torch.uint8)
        bits = (self.bits[:, None] >> places) & 1
        return bits.flatten()[: math.prod(self.shape)].reshape(self.shape).float()

    def kernel(self, weight: Tensor) -> Tensor:
        """Return the weights that are kept."""
        return weight * self.mask()

    def pack(self) -> None:
        """Keep only a bit for each weight."""
        if self.packed:
            return
        with torch.no_grad():
            kept = self.mask().flatten().to(torch.uint8)
            kept = F.pad(kept, (0, -len(kept) % 8)).reshape(-1, 8)
            places = torch.arange(8, device=kept.device, dtype=torch.uint8)
            self.bits = (kept << places).sum(1, dtype=torch.uint8)
        self.scores = None

    def unpack(self) -> None:
        """Make scores of the bits, to train the mask further: the first score where a weight is kept, else 0."""
        if self.packed:
            with torch.no_grad():
                scores = torch.empty_like(self.mask(), memory_format=torch.channels_last_3d)
                self.scores = nn.Parameter(scores.copy_(self.mask() * _FIRST_SCORE))
            self.bits = None


class Bottleneck(nn.Module):
    """A residual bottleneck, h + up(relu(down(h))), of 1 x 1 x 1 convolutions with biases (Houlsby et al., ICML 2019).

    The up-projection starts at zero, so that the adapter begins as the identity.
    """

    def __init__(self, channels: int, bottleneck: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = kaiming((bottleneck, channels, 1, 1, 1), channels, generator)
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up = nn.Parameter(torch.zeros(channels, bottleneck, 1, 1, 1))
        self.up_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, Z, Y, X) -> (N, C, Z, Y, X)."""
        hidden = torch.relu(F.conv3d(x, self.down, self.down_bias))
        return x + F.conv3d(hidden, self.up, self.up_bias)


def make_adaptation(spec: AdaptationSpec, layer: AdaptedLayer, generator: torch.Generator) -> LayerAdaptation:
    """Return the fresh adaptation of one layer; its weights are drawn by `generator`."""
    norm = layer.norm if spec.norm == "own" else None
    if spec.kind == "lora":
        return LowRankAdaptation(layer, spec.rank, norm, generator)
    if spec.kind == "ssf":
        return ScaleAndShift(layer, generator)
    if spec.kind == "piggyback":
        return BinaryMask(layer, norm)
    made = LayerAdaptation(norm)
    if spec.kind == "adapter" and layer.block:
        made.after = Bottleneck(layer.c_out, spec.bottleneck, generator)
    return made
