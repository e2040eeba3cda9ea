"""Proofs that a stored structure still predicts what it did: digests of the same bits, and float64 references.

The fused float32 kernels and the prediction of a probe volume have digests, which are comparable only in
the same environment. For every other environment float64 references are stored: there, only rounding can differ.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.nn import RepModeUNet
from repmode_cl.store.probe import (
    ComputedDigests,
    float64_references,
    kernel_digest,
    predict_probe,
    prediction_digest,
    probe_shape,
    relative_difference,
)
from repmode_cl.utils.environment import describe_difference, environment_fingerprint
from repmode_cl.utils.tensor_digests import tensor_digest

__all__ = [
    "FLOAT32_TOLERANCE",
    "FLOAT64_TOLERANCE",
    "FOLDING_TOLERANCE",
    "Proof",
    "ProofComparison",
    "compare_with_proof",
    "on_cpu",
    "prove",
]


#: Largest difference from a float64 reference, relative to the reference's largest value, that another
#: environment may show: where it computes in float64, and where it predicts in float32.
FLOAT64_TOLERANCE = 1e-10
FLOAT32_TOLERANCE = 1e-3

#: Largest difference that folding batch norms into kernels may make, relative to the largest value of the unfolded
#: prediction. A structure beyond it is predicted unfolded: more slowly, and right.
FOLDING_TOLERANCE = 1e-4
_LARGEST = 1e300


@dataclass(frozen=True)
class Proof:
    """Digests and errors of one structure, computed when it was stored.

    Parameters
    ----------
    kernel_digest
        Of the fused float32 kernels of all blocks.
    prediction_digest
        Of the float32 prediction of the probe volume.
    reference_digest
        Of `references`, wherever these are stored.
    environment
        Fingerprint of the environment in which the first two are comparable bit for bit.
    float32_error
        How far the float32 prediction was from the float64 one, relative to the latter's largest value.
    folding_error
        How far predictions with folded norms are from those without: max |difference| on the probe over max
        |unfolded| (`FOLDING_TOLERANCE`). None in proofs without it, which predicted with folded norms.
    references
        float64: ``prediction`` (Z, Y, X) and ``kernels.<block>`` (projections, C_out); empty if not loaded.
    """

    kernel_digest: str
    prediction_digest: str
    reference_digest: str
    environment: dict[str, Any]
    float32_error: float
    folding_error: float | None = None
    references: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the references, which are tensors."""
        return {
            "kernel_digest": self.kernel_digest,
            "prediction_digest": self.prediction_digest,
            "reference_digest": self.reference_digest,
            "environment": self.environment,
            "float32_error": self.float32_error,
        } | ({} if self.folding_error is None else {"folding_error": self.folding_error})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Proof:
        """Read the values that `to_json` returns."""
        return cls(
            str(values["kernel_digest"]),
            str(values["prediction_digest"]),
            str(values["reference_digest"]),
            dict(values["environment"]),
            float(values["float32_error"]),
            None if "folding_error" not in values else float(values["folding_error"]),
        )

    @property
    def folded(self) -> bool:
        """True if the structure is predicted with batch norms folded into its kernels."""
        return self.folding_error is None or self.folding_error <= FOLDING_TOLERANCE


def prove(network: RepModeUNet, structure: str) -> Proof:
    """Compute the proof of one structure, on the CPU, with the threads that torch now uses.

    In addition to the network it needs the memory of one layer and of the probe's activations.

    Raises
    ------
    ModelError
        If the network does not predict finite numbers: such a structure is not worth storing.
    """
    network = on_cpu(network)
    unfolded = predict_probe(network, structure, folded=False)
    if not bool(torch.isfinite(unfolded).all()):
        raise ModelError(
            f"the network predicts numbers that are not finite for {structure!r}: its training diverged; "
            "train it again with a lower learning rate"
        )
    prediction = predict_probe(network, structure)
    error = _folding_error(prediction, unfolded)
    if error > FOLDING_TOLERANCE:
        prediction = unfolded
    references = float64_references(network, structure)
    shape = probe_shape(network.architecture)
    return Proof(
        kernel_digest=kernel_digest(network, structure),
        prediction_digest=tensor_digest({"prediction": prediction}),
        reference_digest=tensor_digest(references),
        environment=environment_fingerprint(device="cpu", dtype=torch.float32, window=shape, batch=1),
        float32_error=relative_difference(prediction, references["prediction"]),
        folding_error=error,
        references=references,
    )


def _folding_error(folded: Tensor, unfolded: Tensor) -> float:
    """Return the largest difference over the largest value (over 1 where all is 0), finite for JSON."""
    difference = float((folded.double() - unfolded.double()).abs().max())
    scale = float(unfolded.abs().max()) or 1.0
    return min(difference / scale, _LARGEST) if math.isfinite(difference) else _LARGEST


def on_cpu(network: RepModeUNet) -> RepModeUNet:
    """Return `network` if it is on the CPU, else a copy there."""
    if next(network.parameters()).device.type == "cpu":
        return network
    return copy.deepcopy(network).cpu()


@dataclass(frozen=True)
class ProofComparison:
    """Result of comparing a structure with its proof.

    Parameters
    ----------
    status
        ``bit-identical``, ``within tolerance`` or ``failed``.
    detail
        In words: what was compared, or what is wrong.
    computed
        Digests of what was computed.
    """

    status: Literal["bit-identical", "within tolerance", "failed"]
    detail: str
    computed: ComputedDigests


def compare_with_proof(
    network: RepModeUNet,
    structure: str,
    proof: Proof,
    stored: Mapping[str, Tensor],
    *,
    prediction: bool = True,
) -> ProofComparison:
    """Compute kernels and prediction of a structure with torch's present threads, and compare them with its proof.

    Parameters
    ----------
    network
        On the CPU; its tensors were checked to be those recorded.
    structure
        One of its structures.
    proof
        Computed when the structure was stored.
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
    digests = ComputedDigests(kernels, digest)
    what = "kernels and prediction" if prediction else "kernels"
    if prediction and not proof.folded:
        what += " with unfolded norms"
    if now == proof.environment:
        wrong = [
            name
            for name, here, recorded in (
                ("fused kernels", kernels, proof.kernel_digest),
                ("prediction", digest or proof.prediction_digest, proof.prediction_digest),
            )
            if here != recorded
        ]
        if wrong:
            return ProofComparison(
                "failed", f"{' and '.join(wrong)} not as recorded, in the same environment", digests
            )
        return ProofComparison(
            "bit-identical", f"{what}, {now['threads']} thread{'s' if now['threads'] > 1 else ''}", digests
        )
    computed = float64_references(network, structure, prediction=prediction)
    worst = max(
        relative_difference(value, stored[key]) if key in stored else float("inf")
        for key, value in computed.items()
    )
    difference = describe_difference(proof.environment, now)
    # Not `worst > ...`: a comparison with NaN is false.
    if not worst <= FLOAT64_TOLERANCE:
        return ProofComparison(
            "failed",
            f"{what} differ by {worst:.1e} from the references, allowed in another environment is "
            f"{FLOAT64_TOLERANCE:.0e}: {difference}",
            digests,
        )
    if values is not None:
        single = relative_difference(values, stored["prediction"])
        if not single <= FLOAT32_TOLERANCE:
            return ProofComparison(
                "failed",
                f"the float32 prediction differs by {single:.1e} from the reference, allowed in another "
                f"environment is {FLOAT32_TOLERANCE:.0e}: {difference}",
                digests,
            )
        what += f", float32 to {single:.1e} of {FLOAT32_TOLERANCE:.0e}"
    return ProofComparison("within tolerance", f"other environment: {difference}; {what}", digests)
