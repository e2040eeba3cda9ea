"""PIPO-FAN (Fang and Yan, TMI 2020): a pyramid of inputs, one of outputs, and their adaptive fusion.

The paper's rival on the plain U-Net: a Multi-Head network, with x_0 the image and L levels below the first:

    x_l = AvgPool_2(x_{l-1}),  F_l = R...R(stem(x_l))     l - 1 residual blocks, 32 -> 64 -> ... -> c_{l-1} channels
    level l of the encoder (and the bottleneck) reads [down_{l-1}; F_l], so that its first convolution is twice as wide
    map_l = up(conv_k(R...R(D_l)))                         l residual blocks, c_l -> ... -> 32 channels, then 32 -> 1
    y = sum_l softmax_l(mean(g(map_l)) + max(g(map_l))) map_l

with D_l the output of the decoder's level l (of the bottleneck, for the last), conv_k the 1 x 1 x 1 convolution of the
structure, with bias, and ``up`` trilinear to the size of the image. The residual block R(a -> b) is the sum of [norm,
ReLU, conv, norm, ReLU, conv] and [norm, ReLU, conv 1 x 1 x 1]; the fusion net g, one for all maps, is [norm, ReLU,
conv 1 x 1 x 1, norm, ReLU, conv K x K x K] of one channel, with biases.

From the authors' code (github.com/DIAL-RPI/PIPO-FAN, model/concave_dps_w.py): the pooled inputs and the one stem for
all, the residual blocks, that both paths to a level have the same number of convolutions, the output branches, and the
fusion net with average plus maximum. Known of RepMode's adaptation: a Multi-Head network plus the pyramid. Chosen here,
in 3D: the first level of the backbone's encoder is the stem; its batch norms have running statistics for each level,
because pooled images are smoother, and one set for all is right for none of them; the backbone's own blocks, resampling
and skips otherwise; that a structure's maps are of one channel, and those of other structures are not computed (in
place of the target adaptive loss); one loss, of the fused map, in one stage (theirs: the five maps first, with deep
supervision, then the fusion on top). The strategy's option `deep_supervision` adds the mean loss of the maps
(`PIPOFAN.predict_maps`).

A structure owns its 1 x 1 x 1 convolutions: 165 numbers at the paper's width and depth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.activation_checkpointing import checkpointed
from repmode_cl.nn.architecture import Architecture
from repmode_cl.nn.conditioned_unet import Arrival, ConditionedUNet, StructurePart
from repmode_cl.nn.convolution import convolve
from repmode_cl.nn.experts import kaiming, uniform
from repmode_cl.nn.per_structure_layers import StructureGroups, apply_by_structure
from repmode_cl.nn.plain_unet import PlainBlock

__all__ = ["PIPOFAN", "FusionNet", "PooledStem", "ResidualBlock"]


class _NormedConvolution(nn.Module):
    """Batch norm, ReLU and a convolution."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, generator: torch.Generator, *, bias: bool = False
    ) -> None:
        super().__init__()
        fan_in = c_in * kernel**3
        self.norm = nn.BatchNorm3d(c_in)
        self.weight = kaiming((c_out, c_in, kernel, kernel, kernel), fan_in, generator)
        self.bias = uniform((c_out,), 1 / math.sqrt(fan_in), generator) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return convolve(torch.relu(self.norm(x)), self.weight, self.bias)


class ResidualBlock(nn.Module):
    """Two convolutions, each after norm and ReLU, and a 1 x 1 x 1 convolution past them.

    Parameters
    ----------
    c_in, c_out, kernel
        Channels and edge of the kernels.
    generator
        Draws the weights.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = _NormedConvolution(c_in, c_out, kernel, generator)
        self.second = _NormedConvolution(c_out, c_out, kernel, generator)
        self.bridge = _NormedConvolution(c_in, c_out, 1, generator)

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, Z, Y, X)."""
        return cast(Tensor, self.second(self.first(x)) + self.bridge(x))


class PooledStem(nn.Module):
    """The stem for the images of one level: its weights, scales and shifts, and statistics of the level.

    Parameters
    ----------
    stem
        The blocks of the encoder's first level.
    """

    def __init__(self, stem: Iterable[nn.Module]) -> None:
        super().__init__()
        #: A tuple, so that the blocks and their parameters are registered once, in the encoder.
        self.blocks = tuple(cast(PlainBlock, block) for block in stem)
        self.norms = nn.ModuleList(nn.BatchNorm3d(len(block.weight)) for block in self.blocks)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            shared = cast(nn.BatchNorm3d, block.norm)
            norm.weight, norm.bias = shared.weight, shared.bias

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, C, Z, Y, X)."""
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = torch.relu(norm(convolve(x, block.weight)))
        return x


class FusionNet(nn.Module):
    """The net that says how much a map counts.

    Parameters
    ----------
    kernel
        Edge of its last kernel.
    generator
        Draws the weights.
    """

    def __init__(self, kernel: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = _NormedConvolution(1, 1, 1, generator, bias=True)
        self.second = _NormedConvolution(1, 1, kernel, generator, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> a number for each sample, (N, 1)."""
        x = self.second(self.first(x))
        return x.mean((2, 3, 4)) + x.amax((2, 3, 4))


class _Projection(nn.Module):
    """A 1 x 1 x 1 convolution to one channel, with a bias."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = kaiming((1, channels, 1, 1, 1), channels, generator)
        self.bias = uniform((1,), 1 / math.sqrt(channels), generator)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x, self.weight, self.bias)


class _Projections(StructurePart):
    """The projections of all structures at one level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def add(self, arrival: Arrival) -> None:
        self.own[arrival.name] = _Projection(self.channels, arrival.generator)

    def forward(self, x: Tensor, groups: StructureGroups) -> Tensor:
        return apply_by_structure(x, groups, lambda part, name: cast(Tensor, self.own[name](part)))


#: Computes ``function(*inputs)``, whose modules are named: directly, or to be computed again in the backward pass.
_Run = Callable[..., Tensor]


def _run_directly(function: Callable[..., Tensor], modules: Iterable[nn.Module], *inputs: Tensor) -> Tensor:
    return function(*inputs)


class PIPOFAN(ConditionedUNet):
    """The plain U-Net with pyramids of inputs and outputs.

    Parameters
    ----------
    architecture, kernel
        As of `ConditionedUNet`.
    structures
        Structures of the base.
    seed
        Seed of the initial weights.
    """

    depends_on_window: ClassVar[bool] = True  # fusion pools over the window
    _with_maps = False

    def __init__(
        self, architecture: Architecture, kernel: int, structures: Sequence[str] = (), *, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(architecture, kernel, generator)
        widths = [self.width << level for level in range(self.depth + 1)]

        def chain(channels: Sequence[int]) -> nn.ModuleList:
            pairs = itertools.pairwise(channels)
            return nn.ModuleList(ResidualBlock(a, b, kernel, generator) for a, b in pairs)

        for level in range(1, self.depth + 1):
            self._level(level)[0] = PlainBlock(
                2 * widths[level - 1], widths[level], kernel, activation=True, generator=generator
            )
        #: The stem for x_1, x_2, ...
        self.pooled_stems = nn.ModuleList(PooledStem(self._level(0)) for _ in range(self.depth))
        #: The residual blocks of F_1, F_2, ...: none for the first.
        self.input_blocks = nn.ModuleList(chain(widths[:level]) for level in range(1, self.depth + 1))
        #: The residual blocks before the maps 0, 1, ...: none for the first.
        self.output_blocks = nn.ModuleList(chain(widths[level::-1]) for level in range(self.depth + 1))
        self.projections = nn.ModuleList(_Projections(self.width) for _ in widths)
        self.fusion = FusionNet(kernel, generator)
        self.head = nn.Identity()  # in its place: the fused maps
        self.begin(structures, seed)

    def predict_maps(self, x: Tensor, structures: str | Sequence[str]) -> Tensor:
        """Predict the fused map, and the maps that it is made of, from the deepest level to the first.

        Arguments are those of `forward`.

        Returns
        -------
        Tensor
            (N, 2 + depth, Z, Y, X): the first channel is what `forward` returns.
        """
        self._with_maps = True
        try:
            return self(x, structures)  # type: ignore[no-any-return]
        finally:
            self._with_maps = False

    def _level(self, level: int) -> nn.ModuleList:
        """Return the blocks of a level of the encoder; the last is the bottleneck."""
        return self.bottleneck if level == self.depth else cast(nn.ModuleList, self.encoder[level])

    def _forward_plain(self, x: Tensor, context: StructureGroups) -> Tensor:
        return self._compute(x, context, _run_directly)

    def _forward_checkpointed(self, x: Tensor, context: StructureGroups) -> Tensor:
        return self._compute(x, context, checkpointed)

    def _compute(self, x: Tensor, context: StructureGroups, run: _Run) -> Tensor:
        def through(modules: Iterable[nn.Module], *inputs: Tensor) -> Tensor:
            """Compute modules one after the other; several inputs of the first are concatenated."""
            layers = list(modules)

            def stage(*inputs: Tensor) -> Tensor:
                x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)
                for layer in layers:
                    x = layer(x, context)
                return x

            return run(stage, layers, *inputs)

        size, image = x.shape[2:], x
        x = through(self._level(0), image)
        skips = []
        for level in range(1, self.depth + 1):
            skips.append(x)
            image = F.avg_pool3d(image, 2)
            stem, blocks = self.pooled_stems[level - 1], cast(nn.ModuleList, self.input_blocks[level - 1])
            side = through([stem, *blocks], image)
            x = through(self._level(level), through([self.down[level - 1]], x), side)
        maps = [self._map(self.depth, x, size, through, context)]
        for level in reversed(range(self.depth)):
            up = through([self.up[level]], x)
            x = through(cast(nn.ModuleList, self.decoder[level]), skips.pop(), up)
            maps.append(self._map(level, x, size, through, context))
        scores = torch.cat([run(self.fusion, [self.fusion], one) for one in maps], dim=1)
        shares = torch.softmax(scores, dim=1)[:, :, None, None, None]
        together = torch.cat(maps, dim=1)
        fused = (shares * together).sum(1, keepdim=True)
        return torch.cat([fused, together], dim=1) if self._with_maps else fused

    def _map(
        self,
        level: int,
        features: Tensor,
        size: Sequence[int],
        through: Callable[..., Tensor],
        context: StructureGroups,
    ) -> Tensor:
        """Return the map of a level, in the size of the image."""
        x = through([*cast(nn.ModuleList, self.output_blocks[level]), self.projections[level]], features)
        if not level:
            return x
        return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)
