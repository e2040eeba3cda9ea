"""The probe volume, and what a proof computes of a structure with it, one layer at a time.

These are fused kernels and the probe's prediction in float32, of which proofs store digests; and float64 references,
which are the same on every machine but for rounding.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.nn.layerwise_forward import kernel_slices, predict_float64, predict_layerwise
from repmode_cl.utils.tensor_digests import Described, stream_digest, tensor_digest

__all__ = [
    "probe_volume",
    "probe_shape",
    "predict_probe",
    "ComputedDigests",
    "kernel_digest",
    "prediction_digest",
    "float64_references",
    "relative_difference",
]

_PROJECTIONS = 2
_SEED = 20230617


def probe_shape(architecture: Architecture) -> tuple[int, int, int]:
    """Return the size (Z, Y, X) of the probe in voxels: small, and a multiple of 2^depth, so that nothing is padded."""
    step = 1 << architecture.depth
    # A deep network's probe is kept small: float64 convolutions are slow and hold all taps of all voxels.
    return (2 * step, 3 * step, 3 * step) if architecture.depth <= 3 else (step, 2 * step, 2 * step)


def probe_volume(architecture: Architecture) -> Tensor:
    """Return a volume like an image, with the same bits on every machine.

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


class ComputedDigests(NamedTuple):
    """Digests of a structure's kernels and prediction, computed in the present environment.

    Parameters
    ----------
    kernels
        Of the fused float32 kernels (`kernel_digest`).
    prediction
        Of the probe's float32 prediction; None where only kernels were requested.
    """

    kernels: str
    prediction: str | None


def kernel_digest(network: RepModeUNet, structure: str) -> str:
    """Return the digest of the fused float32 kernels (GatRep, paper eq. 6) of a network on the CPU."""
    blocks = dict(network.named_mode_blocks())
    described: dict[str, Described] = {
        name: (torch.float32, block.kernel_shape(structure)) for name, block in blocks.items()
    }
    with torch.no_grad():
        return stream_digest(described, lambda name: blocks[name].kernel(structure))


def predict_probe(network: RepModeUNet, structure: str, *, folded: bool = True) -> Tensor:
    """Return the probe's float32 prediction (Z, Y, X) by a network on the CPU, norms folded or not."""
    x = probe_volume(network.architecture)[None, None]
    return predict_layerwise(network, structure, x, folded=folded)[0, 0].clone()


def prediction_digest(network: RepModeUNet, structure: str, *, folded: bool = True) -> tuple[str, Tensor]:
    """Return the digest of `predict_probe`, and the prediction."""
    prediction = predict_probe(network, structure, folded=folded)
    return tensor_digest({"prediction": prediction}), prediction


def float64_references(network: RepModeUNet, structure: str, *, prediction: bool = True) -> dict[str, Tensor]:
    """Compute projections of the kernels and the prediction of one structure in float64.

    Parameters
    ----------
    network
        On the CPU.
    structure
        One of its structures.
    prediction
        Predict the probe too, in addition to the kernels' projections.

    Returns
    -------
    dict
        ``kernels.<block>``: the fused kernel of each output channel times two seeded vectors of signs,
        (2, C_out): they are small, and any change of a kernel changes them.
        ``prediction``: the probe's, (Z, Y, X).
    """
    references: dict[str, Tensor] = {}
    signs: dict[str, Tensor] = {}

    def project(name: str, channels: slice, kernel: Tensor) -> None:
        rows = kernel.reshape(len(kernel), -1)
        if name not in signs:
            signs.clear()  # blocks come one after the other
            signs[name] = _signs(name, rows.shape[1])
        references[f"kernels.{name}"][:, channels] = signs[name] @ rows.T

    for name, block in network.named_mode_blocks():
        references[f"kernels.{name}"] = torch.empty((_PROJECTIONS, block.c_out), dtype=torch.float64)
    if prediction:
        x = probe_volume(network.architecture).double()[None, None]
        references["prediction"] = predict_float64(network, structure, x, on_kernel=project)[0, 0].clone()
    else:
        for name, block in network.named_mode_blocks():
            for channels, kernel in kernel_slices(block, structure):
                project(name, channels, kernel)
    return references


def _signs(block: str, length: int) -> Tensor:
    """Return (projections, length) of +1 and -1 in float64, seeded by the block's name."""
    seed = int.from_bytes(hashlib.sha256(block.encode()).digest()[:8], "little")
    count = _PROJECTIONS * length
    raw = np.random.PCG64([_SEED, seed]).random_raw(-(-count // 64))
    bits = np.unpackbits(raw.astype("<u8").view(np.uint8), count=count)
    return torch.from_numpy(bits.astype(np.float64) * 2 - 1).reshape(_PROJECTIONS, length)


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """Return the largest difference over the reference's largest value; infinite where shapes differ."""
    if value.shape != reference.shape:
        return math.inf
    difference = float((value.double() - reference).abs().max())
    scale = float(reference.abs().max())
    if not math.isfinite(difference):
        return math.inf
    return difference / scale if scale else (0.0 if difference == 0 else math.inf)
