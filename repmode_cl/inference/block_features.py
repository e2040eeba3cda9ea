"""Features of a fused network while it predicts: mean and spread of each block's outputs, window by window.

The numbers are read by forward hooks, so that predictions have the same bits with and without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repmode_cl.inference.window_batches import Network
from repmode_cl.nn.unet import UNet
from repmode_cl.store.reliability import feature_groups

__all__ = ["BlockFeatures"]


class BlockFeatures:
    """A network that also returns the features of its blocks; called like the network itself.

    Parameters
    ----------
    network
        A fused U-Net in evaluation mode.

    Attributes
    ----------
    blocks
        Name of each block, from input to output, and the number of groups that its channels are averaged in.
    """

    def __init__(self, network: UNet) -> None:
        self._network: Network = network
        self._modules = dict(network.named_blocks())
        channels = {name: _channels(module) for name, module in self._modules.items()}
        self.blocks = tuple((name, feature_groups(count)) for name, count in channels.items())
        self._averages = {name: _averages(count) for name, count in channels.items()}
        self._found: dict[str, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X), the network's output; `features` are then those of this batch."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]
        try:
            return self._network(x)
        finally:
            for handle in handles:
                handle.remove()

    @property
    def features(self) -> Tensor:
        """float32 (N, 2, G) of the last batch: mean and spread (standard deviation) of all blocks' groups."""
        return torch.cat([self._found[name] for name, _ in self.blocks], dim=2)

    def _hook(self, name: str) -> Any:
        def measure(module: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
            # Here, because a later layer may change the output in place.
            values = _mean_and_spread(output.detach())
            if (averages := self._averages[name]) is not None:
                averages = self._averages[name] = averages.to(values.device)
                values = values @ averages
            self._found[name] = values

        return measure


def _channels(block: nn.Module) -> int:
    weight = (
        block.get_buffer("weight")
        if "weight" in dict(block.named_buffers())
        else block.get_parameter("weight")
    )
    return int(weight.shape[0])


def _averages(channels: int) -> Tensor | None:
    """Return a matrix (channels, groups) that averages the channels of each group; None where each is its own."""
    groups = feature_groups(channels)
    if groups == channels:
        return None
    members = torch.arange(channels) % groups == torch.arange(groups)[:, None]
    return (members / members.sum(dim=1, keepdim=True)).T.contiguous()


def _mean_and_spread(output: Tensor) -> Tensor:
    """Return (N, 2, C) of an output (N, C, Z, Y, X)."""
    output = output.to(torch.float32)
    voxels = output[0, 0].numel()
    # Two passes over sums: as fast in every memory layout, and without a copy in another one.
    mean = output.sum(dim=(2, 3, 4)) / voxels
    square = output.square().sum(dim=(2, 3, 4)) / voxels
    return torch.stack([mean, (square - mean.square()).clamp_(min=0).sqrt_()], dim=1)
