"""DoDNet (Zhang et al., CVPR 2021): the last layers are generated for each sample, of its patch and its structure.

The paper's rival on the plain U-Net. For a sample of structure k with bottleneck output F (C channels):

    theta = W [mean_zyx(F); onehot_k] + b                     153 numbers: the controller
    h_0 = V f + v                                             1 x 1 x 1, from the decoder's features f to 8 channels
    y = W_3 relu(W_2 relu(W_1 h_0 + b_1) + b_2) + b_3         1 x 1 x 1 convolutions of 8, 8 and 1 channels

with ``theta = (W_1, W_2, W_3, b_1, b_2, b_3)``, in this order. The decoder's last layer (K x K x K) is left out.

From the authors' code (github.com/jianpengz/DoDNet, a_DynConv/unet3D_DynConv882.py, a33de2a): the one-hot code, its
concatenation with the pooled features, a controller that is one linear layer without activation, the order of its
outputs, the 8 channels, and a head with biases and without activation at its end. Theirs is another backbone, with
residual blocks, group norm, added skips and two output channels (organ and tumour), trained on dice and cross entropy.
Chosen here: the backbone of the comparison, one output channel, that the pooled features and the decoder's are taken
after the backbone's batch norm and ReLU, in place of theirs, and that W is stored times C and reads the pooled features
over C. That is the same function; but those features are not negative, and a step of Adam moves each weight by as much:
it would move a generated number by C times what a step of its bias does, and in twenty steps the ReLUs of the head are
dead.

The one-hot's columns of the controller are the only parameters of a structure: a vector of 153 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.architecture import Architecture
from repmode_cl.nn.conditioned_unet import ConditionedUNet, StructureVectors
from repmode_cl.nn.experts import kaiming, uniform
from repmode_cl.nn.per_structure_layers import StructureGroups

__all__ = ["Controller", "DoDNet", "DynamicHead", "GeneratedWeights"]

#: Channels of the generated layers.
_CHANNELS = 8

#: Numbers of each generated tensor: the weights of the three layers, then their biases.
_SIZES = (_CHANNELS**2, _CHANNELS**2, _CHANNELS, _CHANNELS, _CHANNELS, 1)


@dataclass(frozen=True)
class GeneratedWeights(StructureGroups):
    """The structures of a batch, and the weights that were generated for its samples.

    Attributes
    ----------
    theta
        (N, 153).
    """

    theta: Tensor


class Controller(nn.Module):
    """The linear layer that generates weights of pooled features and a one-hot task code.

    Parameters
    ----------
    channels
        Pooled features.
    structures
        Entries of the one-hot code at first, which decide how large weights are drawn.
    generator
        Draws the weights.
    """

    def __init__(self, channels: int, structures: int, generator: torch.Generator) -> None:
        super().__init__()
        inputs = channels + structures
        bound = 1 / math.sqrt(inputs)
        self.weight = uniform((sum(_SIZES), channels), channels * bound, generator)
        self.bias = uniform((sum(_SIZES),), bound, generator)
        self.columns = StructureVectors(sum(_SIZES), inputs)

    def forward(self, features: Tensor, groups: StructureGroups) -> Tensor:
        """(N, C, Z, Y, X) -> the generated weights, (N, 153)."""
        pooled = features.mean((2, 3, 4)) / features.shape[1]
        shared = F.linear(pooled, self.weight, self.bias)
        return shared + cast(Tensor, self.columns(groups))


class DynamicHead(nn.Module):
    """A 1 x 1 x 1 convolution to 8 channels, and three whose weights are each sample's own.

    Parameters
    ----------
    channels
        Channels of the decoder's features.
    generator
        Draws the weights of the first.
    """

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = kaiming((_CHANNELS, channels, 1, 1, 1), channels, generator)
        self.bias = uniform((_CHANNELS,), 1 / math.sqrt(channels), generator)

    def forward(self, x: Tensor, context: GeneratedWeights) -> Tensor:
        """(N, C, Z, Y, X) -> (N, 1, Z, Y, X)."""
        x = F.conv3d(x, self.weight, self.bias)
        count, size = len(x), x.shape[2:]
        w_1, w_2, w_3, b_1, b_2, b_3 = torch.split(context.theta, list(_SIZES), dim=1)
        h = x.flatten(2)
        for weight, bias, outputs in ((w_1, b_1, _CHANNELS), (w_2, b_2, _CHANNELS), (w_3, b_3, 1)):
            h = torch.bmm(weight.reshape(count, outputs, _CHANNELS), h) + bias[:, :, None]
            if outputs > 1:
                h = torch.relu(h)
        return h.reshape(count, 1, *size)


class DoDNet(ConditionedUNet):
    """The plain U-Net with a controller and a dynamic head.

    Parameters
    ----------
    architecture, kernel
        As of `ConditionedUNet`.
    structures
        Structures of the base.
    seed
        Seed of the initial weights.
    """

    depends_on_window: ClassVar[bool] = True

    def __init__(
        self, architecture: Architecture, kernel: int, structures: Sequence[str] = (), *, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(architecture, kernel, generator)
        self.controller = Controller(self.width << self.depth, len(structures), generator)
        self.head = DynamicHead(self.width, generator)
        self.make_more(len(structures), generator)
        self.begin(structures, seed)

    def make_more(self, structures: int, generator: torch.Generator) -> None:
        """Make further layers, before those of the structures; none in this network."""

    def decoder_context(self, deepest: Tensor, context: StructureGroups) -> GeneratedWeights:
        """Return the structures of the batch with the weights that are generated of the bottleneck's output."""
        return GeneratedWeights(context.names, context.counts, self.controller(deepest, context))
