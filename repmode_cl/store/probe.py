"""The volume that every proof predicts: the same bits on every machine, and small."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repmode_cl.nn import Architecture

__all__ = ["probe_shape", "probe_volume"]

_SEED = 20230617


def probe_shape(architecture: Architecture) -> tuple[int, int, int]:
    """Return the size (Z, Y, X) in voxels of the probe: small, and a multiple of what needs no padding."""
    step = 1 << architecture.depth
    # A deep network's probe is kept small: float64 convolutions are slow and hold all taps of all voxels.
    return (2 * step, 3 * step, 3 * step) if architecture.depth <= 3 else (step, 2 * step, 2 * step)


def probe_volume(architecture: Architecture) -> Tensor:
    """Return a volume that stands for an image: the same bits on every machine.

    Returns
    -------
    Tensor
        float32 (Z, Y, X), mean about 0 and variance about 1: fine noise over blocks of 4x4x4 voxels.
        Made from the raw bits of PCG64 by operations that IEEE 754 rounds in one way only.
    """
    shape = probe_shape(architecture)
    coarse_shape = tuple(-(-size // 4) for size in shape)
    fine, coarse = _uniform(shape, 0), _uniform(coarse_shape, 1)
    for axis in range(3):
        coarse = np.repeat(coarse, 4, axis=axis)
    coarse = coarse[: shape[0], : shape[1], : shape[2]]
    # Uniform on [-1/2, 1/2) has variance 1/12; 0.6^2 + 0.8^2 = 1.
    return torch.from_numpy(((0.6 * fine + 0.8 * coarse) * math.sqrt(12.0)).astype(np.float32))


def _uniform(shape: tuple[int, ...], stream: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    raw = np.random.PCG64([_SEED, stream]).random_raw(math.prod(shape))
    return (raw >> np.uint64(40)).astype(np.float64).reshape(shape) / float(1 << 24) - 0.5
