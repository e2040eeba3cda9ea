"""The plain U-Net: one convolution per block. Multi-Net trains it, and GatRep fuses RepMode into it."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from repmode_cl.nn.convolution import convolve
from repmode_cl.nn.experts import kaiming
from repmode_cl.nn.per_structure_layers import Resampling
from repmode_cl.nn.unet import UNet

__all__ = ["PlainBlock", "PlainResampling", "PlainUNet"]


class PlainBlock(nn.Module):
    """A K x K x K convolution without bias; batch norm and ReLU follow, except in the last block."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, activation: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.weight = kaiming((c_out, c_in, kernel, kernel, kernel), c_in * kernel**3, generator)
        self.norm = nn.BatchNorm3d(c_out) if activation else None
        #: A layer that its output passes, such as an adapter's; None in most networks.
        self.after: nn.Module | None = None

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, Z, Y, X)."""
        x = convolve(x, self.weight)
        if self.norm is None:
            return x
        x = torch.relu(self.norm(x))
        return x if self.after is None else cast(Tensor, self.after(x))


class PlainResampling(nn.Module):
    """A down or up layer with batch norm and ReLU."""

    def __init__(self, c_in: int, c_out: int, *, up: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = Resampling(c_in, c_out, up=up, generator=generator)
        self.norm = nn.BatchNorm3d(c_out)

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, ...) with half or twice the size."""
        return torch.relu(self.norm(self.layer(x)))


class PlainUNet(UNet):
    """A U-Net with K x K x K convolutions.

    Parameters
    ----------
    width, depth
        As of `Architecture`.
    kernel
        Edge K of the kernels: 3 or 5 for Multi-Net; a fused network may also have 1.
    seed
        Seed of the initial weights; torch's global generator is not touched.
    """

    #: Whether its norms can be folded into its convolutions.
    foldable: ClassVar[bool] = True

    def __init__(self, width: int, depth: int, kernel: int, *, seed: int = 0) -> None:
        if kernel not in (1, 3, 5):
            raise ValueError(f"kernel is 1, 3 or 5, not {kernel}")
        generator = torch.Generator().manual_seed(seed)
        super().__init__(
            width,
            depth,
            lambda c_in, c_out, act: PlainBlock(c_in, c_out, kernel, activation=act, generator=generator),
            lambda c_in, c_out, up: PlainResampling(c_in, c_out, up=up, generator=generator),
        )
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X)."""
        return self.run(x, None)
