"""The U-Net's topology (paper, section 3.2), one for both networks, so that they differ in their blocks alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.errors import ImageError
from repmode_cl.nn.activation_checkpointing import mark_for_compiler, recomputed
from repmode_cl.nn.architecture import smallest_size

__all__ = ["UNet", "checkpoint_activations"]


def checkpoint_activations(network: nn.Module, active: bool) -> None:
    """Let every U-Net in `network` compute activations again in the backward pass (`active`), or keep them."""
    for part in network.modules():
        if isinstance(part, UNet):
            part.activation_checkpointing = active
    if active:
        mark_for_compiler()


class UNet(nn.Module):
    """Encoder, bottleneck, decoder and head; blocks and resampling layers come from two factories.

    Parameters
    ----------
    width, depth
        Channels of the first level, and number of times the resolution is halved.
    make_block
        ``make_block(c_in, c_out, activation)`` gives a module called with ``(x, context)``.
    make_resampling
        ``make_resampling(c_in, c_out, up)`` likewise, with norm and ReLU.

    Notes
    -----
    `context` is passed through untouched: RepMode's blocks get the structures of the batch by it.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        make_block: Callable[[int, int, bool], nn.Module],
        make_resampling: Callable[[int, int, bool], nn.Module],
    ) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        self.activation_checkpointing = False
        """Whether training keeps each level's input alone and computes the rest again in the backward pass."""
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

        def pair(c_in: int, c_out: int) -> nn.ModuleList:
            return nn.ModuleList([make_block(c_in, c_out, True), make_block(c_out, c_out, True)])

        c_in = 1
        for level in range(depth):
            channels = width << level
            self.encoder.append(pair(c_in, channels))
            self.down.append(make_resampling(channels, channels, False))
            c_in = channels
        self.bottleneck = pair(c_in, width << depth)
        for level in range(depth):
            channels = width << level
            self.up.append(make_resampling(2 * channels, channels, True))
            self.decoder.append(pair(2 * channels, channels))
        self.head = make_block(width, 1, False)

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the convolution blocks with their names, from input to output."""
        levels = range(self.depth)
        names = [f"encoder.{level}.{i}" for level in levels for i in (0, 1)]
        names += ["bottleneck.0", "bottleneck.1"]
        names += [f"decoder.{level}.{i}" for level in reversed(levels) for i in (0, 1)]
        for name in [*names, "head"]:
            yield name, self.get_submodule(name)

    def named_resampling(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the down and up layers with their names."""
        for name in [f"{way}.{level}" for way in ("down", "up") for level in range(self.depth)]:
            yield name, self.get_submodule(name)

    def run(self, x: Tensor, context: Any) -> Tensor:
        """Compute (N, 1, Z, Y, X) -> (N, 1, Z, Y, X); sizes that 2^depth does not divide are padded and cropped."""
        x, crop = self._pad(x)
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            x = self._recomputing(x, context)
        else:
            x = self._keeping(x, context)
        return x[crop] if crop is not None else x

    def _keeping(self, x: Tensor, context: Any) -> Tensor:
        # One frame and one name for all of it: what a block no longer needs is freed at once.
        skips = []
        for level in range(self.depth):
            for block in cast(nn.ModuleList, self.encoder[level]):
                x = block(x, context)
            skips.append(x)
            x = self.down[level](x, context)
        for block in self.bottleneck:
            x = block(x, context)
        for level in reversed(range(self.depth)):
            x = torch.cat([skips.pop(), self.up[level](x, context)], dim=1)
            for block in cast(nn.ModuleList, self.decoder[level]):
                x = block(x, context)
        result: Tensor = self.head(x, context)
        return result

    def _recomputing(self, x: Tensor, context: Any) -> Tensor:
        """Compute the same, keeping for the backward pass no more than what each level begins with."""

        def through(modules: Iterable[nn.Module], *inputs: Tensor) -> Tensor:
            chain = list(modules)

            def stage(x: Tensor, skip: Tensor | None = None) -> Tensor:
                for module in chain:
                    x = module(x, context)
                    if skip is not None:  # the first is an up layer, which the skip is joined to
                        x, skip = torch.cat([skip, x], dim=1), None
                return x

            return recomputed(stage, chain, *inputs)

        skips = []
        for level in range(self.depth):
            x = through(cast(nn.ModuleList, self.encoder[level]), x)
            skips.append(x)
            x = through([self.down[level]], x)
        x = through(self.bottleneck, x)
        for level in reversed(range(self.depth)):
            blocks = cast(nn.ModuleList, self.decoder[level])
            x = through([self.up[level], *blocks], x, skips.pop())
        return through([self.head], x)

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[slice, ...] | None]:
        if x.ndim != 5 or x.shape[1] != 1:
            raise ImageError(f"the network takes batches (N, 1, Z, Y, X), not {tuple(x.shape)}")
        multiple, sizes = 1 << self.depth, x.shape[2:]
        least = smallest_size(self.depth)
        if min(sizes) < least:
            raise ImageError(
                f"a volume of {' x '.join(map(str, sizes))} voxels (z, y, x) is too small: a network of depth "
                f"{self.depth} needs at least {least} along each axis; use a larger volume, or a network of less depth"
            )
        before = [(-size % multiple) // 2 for size in sizes]
        after = [-size % multiple - b for size, b in zip(sizes, before, strict=True)]
        if not any(after):
            return x, None
        pads = [n for b, a in zip(reversed(before), reversed(after), strict=True) for n in (b, a)]
        crop = (slice(None), slice(None), *(slice(b, b + n) for b, n in zip(before, sizes, strict=True)))
        return F.pad(x, pads, mode="reflect"), crop
