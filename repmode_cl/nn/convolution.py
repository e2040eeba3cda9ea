"""The convolution of every block: stride 1, zero "same" padding, channels-last; and cuts to the centre of kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["centre_taps", "convolve", "taps_within"]


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve `x` (N, C_in, Z, Y, X) with `kernel` (C_out, C_in, K, K, K), stride 1, zero "same" padding.

    Activations are kept channels-last: with the few channels of a U-Net's first levels, where nearly all time
    goes, that halves the time of a training step on CPUs.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    kernel = _without_padding_taps(kernel, x.shape[2:])
    padding = [size // 2 for size in kernel.shape[2:]]
    if _is_slow_alone(x, kernel):
        return convolve(torch.cat([x, torch.zeros_like(x)]), kernel, bias)[:1]
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and _is_shallow(x, kernel):
        # oneDNN reads uninitialised memory for the weight gradient of a half-precision convolution over a volume
        # that is shallower than the kernel, as in the bottleneck; so small a layer costs nothing in float32.
        with torch.autocast("cpu", enabled=False):
            x = F.conv3d(x.float(), kernel.float(), bias, padding=padding)
    else:
        x = F.conv3d(x, kernel, bias, padding=padding)
    return x.contiguous(memory_format=torch.channels_last_3d)


def taps_within(size: Sequence[int]) -> tuple[int, int, int]:
    """Return the most taps (z, y, x) of a kernel that can meet a voxel of a volume of `size`: 2 n - 1 on each axis."""
    z, y, x = (2 * n - 1 for n in size)
    return z, y, x


def centre_taps(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """Return the central `size` taps (z, y, x) of a kernel (C_out, C_in, K, K, K), a view.

    Where the kernel has fewer taps on an axis, all of them are returned.
    """
    margins = [max(0, (taps - most) // 2) for taps, most in zip(kernel.shape[2:], size, strict=True)]
    if not any(margins):
        return kernel
    z, y, x = (slice(margin, taps - margin) for margin, taps in zip(margins, kernel.shape[2:], strict=True))
    return kernel[:, :, z, y, x]


def _without_padding_taps(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """Cut off the taps that only ever meet the zero padding: in a volume of n voxels, those n or more from the centre.

    The result is the same. At the bottleneck, with one or two planes left, it is most of the work (the weight
    gradient of a kernel far larger than its volume is also where oneDNN is slowest).
    """
    return centre_taps(kernel, taps_within(size))


def _is_shallow(x: Tensor, kernel: Tensor) -> bool:
    return any(n < k for n, k in zip(x.shape[2:], kernel.shape[2:], strict=True))


def _is_slow_alone(x: Tensor, kernel: Tensor) -> bool:
    """Return whether training on two samples takes less time than on one: a third of it in a U-Net's first levels.

    On CPUs PyTorch computes one sample in float32 with a kernel of 3 by its own loops, not by oneDNN, unless channels
    times planes times rows are more than 20,480. Single samples come of batches that mix structures.
    """
    return (
        len(x) == 1
        and x.device.type == "cpu"
        and (not torch.is_autocast_enabled("cpu") or _is_shallow(x, kernel))
        and x.shape[1] > 1
        and max(kernel.shape[2:]) == 3
        and x[0, 0].numel() >= 512
        and x[0, :, :, :, 0].numel() <= 20480
        and torch.is_grad_enabled()
        and (x.requires_grad or kernel.requires_grad)
    )
