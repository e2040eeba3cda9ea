"""Compare what a structure comes to now with its proof: bit for bit, or within a tolerance and never called more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from repmode_cl.nn import RepModeUNet
from repmode_cl.store.environment import describe_difference, environment_fingerprint
from repmode_cl.store.observe import (
    Observed,
    kernel_digest,
    prediction_digest,
    references,
    relative_difference,
)
from repmode_cl.store.probe import probe_shape
from repmode_cl.store.proof import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, Proof

__all__ = ["Finding", "compare"]


@dataclass(frozen=True)
class Finding:
    """How what was computed compares with a proof.

    Parameters
    ----------
    status
        ``bit-identical``, ``within tolerance`` or ``failed``.
    detail
        What was compared, or what is wrong.
    observed
        Digests of what was computed.
    """

    status: Literal["bit-identical", "within tolerance", "failed"]
    detail: str
    observed: Observed


def compare(
    network: RepModeUNet,
    structure: str,
    proof: Proof,
    stored: Mapping[str, Tensor],
    *,
    prediction: bool = True,
) -> Finding:
    """Compute kernels and prediction of a structure with torch's present threads, and compare them with its proof.

    Parameters
    ----------
    network
        On the CPU; its tensors were found to be those recorded.
    structure
        One that it knows.
    proof
        Made when the structure was stored.
    stored
        The proof's float64 references.
    prediction
        Whether the probe is predicted too.
    """
    window = probe_shape(network.architecture)
    now = environment_fingerprint(device="cpu", dtype=torch.float32, window=window, batch=1)
    kernels = kernel_digest(network, structure)
    digest, values = None, None
    if prediction:
        digest, values = prediction_digest(network, structure, folded=proof.folded)
    observed = Observed(kernels, digest)
    what = "kernels and prediction" if prediction else "kernels"
    if prediction and not proof.folded:
        what += " with unfolded norms"
    if now == proof.environment:
        wrong = [
            name
            for name, found, recorded in (
                ("fused kernels", kernels, proof.kernel_digest),
                ("prediction", digest or proof.prediction_digest, proof.prediction_digest),
            )
            if found != recorded
        ]
        if wrong:
            return Finding(
                "failed", f"{' and '.join(wrong)} not as recorded, in the same environment", observed
            )
        return Finding(
            "bit-identical", f"{what}, {now['threads']} thread{'s' if now['threads'] > 1 else ''}", observed
        )
    computed = references(network, structure, prediction=prediction)
    worst = max(
        relative_difference(value, stored[key]) if key in stored else float("inf")
        for key, value in computed.items()
    )
    difference = describe_difference(proof.environment, now)
    elsewhere = "allowed in another environment"
    # Not `worst > ...`: a comparison with NaN is false.
    if not worst <= FLOAT64_TOLERANCE:
        return Finding(
            "failed",
            f"{what} differ by {worst:.1e} from the references, {elsewhere} is {FLOAT64_TOLERANCE:.0e}: {difference}",
            observed,
        )
    if values is not None:
        single = relative_difference(values, stored["prediction"])
        if not single <= FLOAT32_TOLERANCE:
            return Finding(
                "failed",
                f"the float32 prediction differs by {single:.1e} from the reference, {elsewhere} is "
                f"{FLOAT32_TOLERANCE:.0e}: {difference}",
                observed,
            )
        what += f", float32 to {single:.1e} of {FLOAT32_TOLERANCE:.0e}"
    return Finding("within tolerance", f"other environment: {difference}; {what}", observed)
