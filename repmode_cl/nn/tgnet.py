"""TGNet (Wu, Pang, Sowmya, ISBI 2022): DoDNet whose encoder and skips are modulated by the structure, as we read it.

Known are the publication's abstract (a residual block and an attention module, "devised in a task-guided way to fuse
image features and task encoding constraints", suppress features that are of no use to the task) and RepMode's
sentence on it (DoDNet, with modulation of the encoder's features and of the skips). No code and no text were found:
**the form of the two modules is our reading**, not theirs. Everything of `DoDNet`, and:

Task-guided residual block, at the end of each level of the encoder and of the bottleneck (F of C channels):

    s = sigmoid(W_2 relu(W_1 [mean_zyx(F); onehot_k] + b_1) + b_2),    F' = F + s F        C / 4 hidden units

Task-guided attention, on each skip (F), with q the output of the up layer that it is joined to (C channels each):

    a = sigmoid(v . relu(W_x F + W_q q + W_t onehot_k + b) + c),       F' = a F            C / 2 hidden channels

where W_x, W_q and v are 1 x 1 x 1 convolutions, so that a has one value for each voxel. Of a structure are the
one-hot's columns of the controller, of each W_1 and of each W_t: at the paper's width 153 + 248 + 240 = 641 numbers.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.conditioned_unet import StructureVectors
from repmode_cl.nn.dodnet import DoDNet
from repmode_cl.nn.experts import kaiming, uniform
from repmode_cl.nn.per_structure_layers import StructureGroups

__all__ = ["TaskGuidedAttention", "TaskGuidedResidual", "TGNet"]


class TaskGuidedResidual(nn.Module):
    """Channels that the structure needs are strengthened, by up to a factor of two.

    Parameters
    ----------
    channels
        Channels of the features.
    structures
        Entries of the one-hot code at first.
    generator
        Draws the weights.
    """

    def __init__(self, channels: int, structures: int, generator: torch.Generator) -> None:
        super().__init__()
        hidden, inputs = max(1, channels // 4), channels + structures
        self.squeeze = uniform((hidden, channels), 1 / math.sqrt(inputs), generator)
        self.squeeze_bias = uniform((hidden,), 1 / math.sqrt(inputs), generator)
        self.columns = StructureVectors(hidden, inputs)
        self.excite = uniform((channels, hidden), 1 / math.sqrt(hidden), generator)
        self.excite_bias = uniform((channels,), 1 / math.sqrt(hidden), generator)

    def forward(self, x: Tensor, context: StructureGroups) -> Tensor:
        """(N, C, Z, Y, X) -> (N, C, Z, Y, X)."""
        hidden = F.linear(x.mean((2, 3, 4)), self.squeeze, self.squeeze_bias) + self.columns(context)
        scale = torch.sigmoid(F.linear(torch.relu(hidden), self.excite, self.excite_bias))
        return x + scale[:, :, None, None, None] * x


class TaskGuidedAttention(nn.Module):
    """Voxels of a skip that are of no use to the structure are suppressed.

    Parameters
    ----------
    channels
        Channels of the skip, and of what it is joined to.
    structures
        Entries of the one-hot code at first.
    generator
        Draws the weights.
    """

    def __init__(self, channels: int, structures: int, generator: torch.Generator) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.of_skip = kaiming((hidden, channels, 1, 1, 1), channels, generator)
        self.of_up = kaiming((hidden, channels, 1, 1, 1), channels, generator)
        self.bias = uniform((hidden,), 1 / math.sqrt(channels), generator)
        self.columns = StructureVectors(hidden, structures)
        self.attend = kaiming((1, hidden, 1, 1, 1), hidden, generator)
        self.attend_bias = uniform((1,), 1 / math.sqrt(hidden), generator)

    def forward(self, skip: Tensor, up: Tensor, context: StructureGroups) -> Tensor:
        """Return the skip (N, C, Z, Y, X), each voxel multiplied by a value between 0 and 1."""
        hidden = F.conv3d(skip, self.of_skip, self.bias) + F.conv3d(up, self.of_up)
        hidden = torch.relu(hidden + self.columns(context)[:, :, None, None, None])
        return torch.sigmoid(F.conv3d(hidden, self.attend, self.attend_bias)) * skip


class TGNet(DoDNet):
    """The plain U-Net with DoDNet's head, and modules that the structure guides; see `DoDNet` for its parameters."""

    def make_more(self, structures: int, generator: torch.Generator) -> None:
        """Make the modules of each level."""
        levels = [cast(nn.ModuleList, level) for level in (*self.encoder, self.bottleneck)]
        for level, blocks in enumerate(levels):
            blocks.append(TaskGuidedResidual(self.width << level, structures, generator))
        self.attention = nn.ModuleList(
            TaskGuidedAttention(self.width << level, structures, generator) for level in range(self.depth)
        )

    def join(self, level: int, skip: Tensor, up: Tensor, context: StructureGroups) -> Tensor:
        """Return what is left of the skip, and the up layer's features, concatenated."""
        return torch.cat([self.attention[level](skip, up, context), up], dim=1)
