"""Features of a fused network while it predicts: mean and spread of each block's output channels, window by window.

The numbers are read by forward hooks, so that predictions have the same bits with and without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repmode_cl.inference.window_batches import Network
from repmode_cl.nn.unet import UNet

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
        Name and channels of each block, from input to output.
    """

    def __init__(self, network: UNet) -> None:
        self._network: Network = network
        self._modules = dict(network.named_blocks())
        self.blocks = tuple((name, _channels(module)) for name, module in self._modules.items())
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
        """float32 (N, 2, C) of the last batch: mean and spread (standard deviation) of all blocks' channels."""
        return torch.cat([self._found[name] for name, _ in self.blocks], dim=2)

    def _hook(self, name: str) -> Any:
        def measure(module: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
            # Here, because a later layer may change the output in place.
            self._found[name] = _mean_and_spread(output.detach())

        return measure


def _channels(block: nn.Module) -> int:
    weight = (
        block.get_buffer("weight")
        if "weight" in dict(block.named_buffers())
        else block.get_parameter("weight")
    )
    return int(weight.shape[0])


def _mean_and_spread(output: Tensor) -> Tensor:
    """Return (N, 2, C) of an output (N, C, Z, Y, X)."""
    output = output.to(torch.float32)
    voxels = output[0, 0].numel()
    # Two passes over sums: as fast in every memory layout, and without a copy in another one.
    mean = output.sum(dim=(2, 3, 4)) / voxels
    square = output.square().sum(dim=(2, 3, 4)) / voxels
    return torch.stack([mean, (square - mean.square()).clamp_(min=0).sqrt_()], dim=1)
