"""Evidence that a stored structure still predicts what it did: digests for the same bits, and references.

The fused float32 kernels and the prediction of a probe volume have digests; they are the same bit for bit in
the same environment only. For every other one float64 references are kept: there, only rounding can differ.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.nn import Architecture, FoldedUNet, PlainUNet, RepModeUNet, fold_norms
from repmode_cl.store.digests import tensor_digest
from repmode_cl.store.environment import environment_fingerprint

__all__ = [
    "FLOAT32_TOLERANCE",
    "FLOAT64_TOLERANCE",
    "Proof",
    "kernel_digest",
    "on_cpu",
    "prediction_digest",
    "probe_shape",
    "probe_volume",
    "prove",
    "references",
    "relative_difference",
]

#: Largest difference from a float64 reference, relative to the reference's largest value, that another
#: environment may show: where it computes in float64, and where it predicts in float32.
FLOAT64_TOLERANCE = 1e-10
FLOAT32_TOLERANCE = 1e-3

_PROJECTIONS = 2
_SEED = 20230617


@dataclass(frozen=True)
class Proof:
    """What was computed of one structure when it was stored.

    Parameters
    ----------
    kernel_digest
        Of the fused float32 kernels of all blocks.
    prediction_digest
        Of the float32 prediction of the probe volume.
    reference_digest
        Of `references`, wherever they are kept.
    environment
        Fingerprint under which the first two are comparable bit for bit.
    float32_error
        How far the float32 prediction was from the float64 one, relative to the latter's largest value.
    references
        float64: ``prediction`` (Z, Y, X) and ``kernels.<block>`` (projections, C_out); empty if not loaded.
    """

    kernel_digest: str
    prediction_digest: str
    reference_digest: str
    environment: dict[str, Any]
    float32_error: float
    references: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the references, which are tensors."""
        return {
            "kernel_digest": self.kernel_digest,
            "prediction_digest": self.prediction_digest,
            "reference_digest": self.reference_digest,
            "environment": self.environment,
            "float32_error": self.float32_error,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Proof:
        """Read what `to_json` gave."""
        return cls(
            str(values["kernel_digest"]),
            str(values["prediction_digest"]),
            str(values["reference_digest"]),
            dict(values["environment"]),
            float(values["float32_error"]),
        )


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


def prove(network: RepModeUNet, structure: str) -> Proof:
    """Compute the proof of one structure, on the CPU, with the threads that torch now uses.

    Raises
    ------
    ModelError
        If the network does not predict finite numbers: such a structure is not worth storing.
    """
    network = on_cpu(network)
    kernels = network.kernels(structure)
    prediction = _predict(fold_norms(network.fuse(structure)), network.architecture)
    references_ = references(network, structure)
    if not bool(torch.isfinite(prediction).all()):
        raise ModelError(
            f"the network predicts numbers that are not finite for {structure!r}: its training diverged; "
            "train it again with a lower learning rate"
        )
    shape = probe_shape(network.architecture)
    return Proof(
        kernel_digest=tensor_digest(kernels),
        prediction_digest=tensor_digest({"prediction": prediction}),
        reference_digest=tensor_digest(references_),
        environment=environment_fingerprint(device="cpu", dtype=torch.float32, window=shape, batch=1),
        float32_error=relative_difference(prediction, references_["prediction"]),
        references=references_,
    )


def kernel_digest(network: RepModeUNet, structure: str) -> str:
    """Return the digest of the fused float32 kernels (GatRep, paper eq. 6) of a network on the CPU."""
    return tensor_digest(network.kernels(structure))


def prediction_digest(network: RepModeUNet, structure: str) -> tuple[str, Tensor]:
    """Return the digest of the probe's float32 prediction by a network on the CPU, and the prediction."""
    prediction = _predict(fold_norms(network.fuse(structure)), network.architecture)
    return tensor_digest({"prediction": prediction}), prediction


def references(network: RepModeUNet, structure: str, *, prediction: bool = True) -> dict[str, Tensor]:
    """Return what float64 arithmetic makes of the stored tensors of one structure.

    Parameters
    ----------
    network
        On the CPU.
    structure
        One that it knows.
    prediction
        Predict the probe too, not the kernels' projections alone.

    Returns
    -------
    dict
        ``kernels.<block>``: the fused kernel of each output channel times two seeded vectors of signs,
        (2, C_out): any change of a kernel moves them, and they are small.
        ``prediction``: the probe's, (Z, Y, X).
    """
    kernels = network.kernels(structure, torch.float64)
    found = {}
    for block, kernel in kernels.items():
        rows = kernel.reshape(kernel.shape[0], -1)
        found[f"kernels.{block}"] = _signs(block, rows.shape[1]) @ rows.T
    if prediction:
        plain = network.fuse(structure).double()
        with torch.no_grad():
            for block, kernel in kernels.items():
                cast(Tensor, plain.get_submodule(block).weight).copy_(kernel)
        found["prediction"] = _predict(plain, network.architecture)
    return found


def _signs(block: str, length: int) -> Tensor:
    """(projections, length) of +1 and -1 in float64, by the block's name."""
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


def on_cpu(network: RepModeUNet) -> RepModeUNet:
    """Return `network` if it is on the CPU, else a copy there."""
    if next(network.parameters()).device.type == "cpu":
        return network
    return copy.deepcopy(network).cpu()


def _predict(plain: PlainUNet | FoldedUNet, architecture: Architecture) -> Tensor:
    dtype = cast(Tensor, plain.get_submodule("head").weight).dtype
    with torch.inference_mode():
        return cast(Tensor, plain(probe_volume(architecture).to(dtype)[None, None]))[0, 0].clone()
