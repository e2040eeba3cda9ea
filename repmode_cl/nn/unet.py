"""The U-Net's topology (paper, section 3.2), shared by all networks, so that they differ only in their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.errors import ImageError
from repmode_cl.nn.activation_checkpointing import checkpointed, mark_for_compiler
from repmode_cl.nn.architecture import smallest_size

__all__ = ["UNet", "checkpoint_activations", "pad_to_multiple"]


def checkpoint_activations(network: nn.Module, active: bool) -> None:
    """Switch activation checkpointing of every U-Net in `network` on (`active`) or off."""
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
    `context` is passed to every layer untouched: it tells RepMode's blocks the structures of the batch.
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
        """True if training stores only each level's input and computes the rest again in the backward pass."""
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
        for name in [f"{direction}.{level}" for direction in ("down", "up") for level in range(self.depth)]:
            yield name, self.get_submodule(name)

    def run(self, x: Tensor, context: Any) -> Tensor:
        """Compute (N, 1, Z, Y, X) -> (N, 1, Z, Y, X); sizes that are no multiple of 2^depth are padded and cropped."""
        x, crop = pad_to_multiple(x, self.depth)
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            x = self._forward_checkpointed(x, context)
        else:
            x = self._forward_plain(x, context)
        return x[crop] if crop is not None else x

    def _forward_plain(self, x: Tensor, context: Any) -> Tensor:
        # One function and one name for every activation: each is freed as soon as no block needs it.
        skips = []
        for level in range(self.depth):
            for block in cast(nn.ModuleList, self.encoder[level]):
                x = block(x, context)
            skips.append(x)
            x = self.down[level](x, context)
        for block in self.bottleneck:
            x = block(x, context)
        context = self.decoder_context(x, context)
        for level in reversed(range(self.depth)):
            x = self.join(level, skips.pop(), self.up[level](x, context), context)
            for block in cast(nn.ModuleList, self.decoder[level]):
                x = block(x, context)
        result: Tensor = self.head(x, context)
        return result

    def _forward_checkpointed(self, x: Tensor, context: Any) -> Tensor:
        """Compute the same, storing only the input of each level for the backward pass."""

        def run_checkpointed(
            modules: Iterable[nn.Module], context: Any, *inputs: Tensor, level: int = 0
        ) -> Tensor:
            layers = list(modules)

            def stage(x: Tensor, skip: Tensor | None = None) -> Tensor:
                for layer in layers:
                    x = layer(x, context)
                    if skip is not None:  # the first layer is an up layer: its output is joined to the skip
                        x, skip = self.join(level, skip, x, context), None
                return x

            return checkpointed(stage, layers, *inputs)

        skips = []
        for level in range(self.depth):
            x = run_checkpointed(cast(nn.ModuleList, self.encoder[level]), context, x)
            skips.append(x)
            x = run_checkpointed([self.down[level]], context, x)
        x = run_checkpointed(self.bottleneck, context, x)
        context = self.decoder_context(x, context)
        for level in reversed(range(self.depth)):
            blocks = cast(nn.ModuleList, self.decoder[level])
            x = run_checkpointed([self.up[level], *blocks], context, x, skips.pop(), level=level)
        return run_checkpointed([self.head], context, x)

    def decoder_context(self, deepest: Tensor, context: Any) -> Any:
        """Return the context of the decoder's layers, which may depend on the bottleneck's output; here the same."""
        return context

    def join(self, level: int, skip: Tensor, up: Tensor, context: Any) -> Tensor:
        """Return the input of the decoder's level: the encoder's features and those of the up layer, concatenated."""
        return torch.cat([skip, up], dim=1)


def pad_to_multiple(x: Tensor, depth: int) -> tuple[Tensor, tuple[slice, ...] | None]:
    """Pad a batch by reflection to sizes that are multiples of 2^depth, half on each side.

    Parameters
    ----------
    x
        (N, 1, Z, Y, X).
    depth
        Of the network.

    Returns
    -------
    Tensor
        The padded batch.
    tuple or None
        The index that cuts the original sizes out of the network's output; None where nothing was padded.

    Raises
    ------
    ImageError
        If `x` has other axes, or one is smaller than `smallest_size`.
    """
    if x.ndim != 5 or x.shape[1] != 1:
        raise ImageError(f"the network takes batches (N, 1, Z, Y, X), not {tuple(x.shape)}")
    multiple, sizes = 1 << depth, x.shape[2:]
    smallest = smallest_size(depth)
    if min(sizes) < smallest:
        raise ImageError(
            f"a volume of {' x '.join(map(str, sizes))} voxels (z, y, x) is too small: a network of depth "
            f"{depth} needs at least {smallest} along each axis; use a larger volume or a shallower network"
        )
    before = [(-size % multiple) // 2 for size in sizes]
    after = [-size % multiple - b for size, b in zip(sizes, before, strict=True)]
    if not any(after):
        return x, None
    pads = [n for b, a in zip(reversed(before), reversed(after), strict=True) for n in (b, a)]
    crop = (slice(None), slice(None), *(slice(b, b + n) for b, n in zip(before, sizes, strict=True)))
    return F.pad(x, pads, mode="reflect"), crop
