"""Comparison of an exported file with the model, and the difference that is allowed between them.

Both compute the same sums of float32 in another order, so they differ by rounding. How much rounding matters for a
structure was measured when it was stored: its proof holds how far the model's float32 prediction of the probe is from
float64. A runtime may be `FACTOR` times as far from the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repmode_cl.errors import RepmodeError
from repmode_cl.export.volumes import ParityVolume
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.inference.window_batches import Network
from repmode_cl.store.probe import probe_volume
from repmode_cl.store.proof import FLOAT32_TOLERANCE
from repmode_cl.store.registry import Entry
from repmode_cl.store.snapshot import ModelSnapshot

__all__ = ["FACTOR", "Parity", "ParityCheck", "tolerance_of"]

#: Allowed difference as a multiple of the float32 error that the structure's proof states: both predictions have
#: such an error, and a volume of thousands of times the probe's voxels holds rarer sums.
FACTOR = 16.0
#: The least error that is assumed: half a unit in the last place of a float32, relative.
_LEAST_ERROR = 2.0**-24


def tolerance_of(entry: Entry) -> float:
    """Return the largest difference from the model's prediction, relative to its largest value, that is allowed."""
    return min(FLOAT32_TOLERANCE, FACTOR * max(entry.proof.float32_error, _LEAST_ERROR))


@dataclass(frozen=True)
class Parity:
    """Differences between an exported file and the model, relative to the largest value of the model's prediction.

    Attributes
    ----------
    tolerance
        Largest difference that is allowed.
    float32_error
        Difference of the model's own float32 prediction of the probe from float64.
    probe, image
        Difference in the probe, and in the other volume through the model's windows.
    absolute
        The tolerance in z-score units, for the other volume.
    probe_shape, image_shape
        Voxels (z, y, x).
    image_name
        Of the other volume.
    simulated
        Whether that is a simulated field.
    runtime
        Name and version of what ran the file.
    """

    tolerance: float
    float32_error: float
    probe: float
    image: float
    absolute: float
    probe_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    image_name: str
    simulated: bool
    runtime: str

    def to_json(self) -> dict[str, Any]:
        """Return what the file states of it."""
        return {
            "relative_to": "largest value of the model's prediction",
            "tolerance": self.tolerance,
            "float32_error_of_the_model": self.float32_error,
            "probe": {"voxels_zyx": list(self.probe_shape), "difference": self.probe},
            "image": {
                "name": self.image_name,
                "simulated": self.simulated,
                "voxels_zyx": list(self.image_shape),
                "difference": self.image,
                "tolerance_in_z_scores": self.absolute,
            },
            "runtime": self.runtime,
        }

    @property
    def text(self) -> str:
        """Both differences in words."""
        return (
            f"differs from the model by {self.probe:.1e} (probe) and {self.image:.1e} ({self.image_name}) of the "
            f"largest value, allowed are {self.tolerance:.1e}"
        )


class ParityCheck:
    """The model's predictions of both volumes, made once and compared with those of each exported file.

    Parameters
    ----------
    model
        The model.
    structure
        One of its structures.
    volume
        The other volume.
    """

    def __init__(self, model: ModelSnapshot, structure: str, volume: ParityVolume) -> None:
        self._model, self._structure, self.volume = model, structure, volume
        self._probe = probe_volume(model.architecture)
        network = model.fused(structure)
        self.probe_prediction = self.predict_probe(network)
        self.image_prediction = self._predict_image(network)

    def compare(self, network: Network, runtime: str) -> Parity:
        """Run an exported file on both volumes.

        Parameters
        ----------
        network
            The file as a network.
        runtime
            Name and version of what runs it.

        Raises
        ------
        RepmodeError
            If it differs from the model by more than `tolerance_of` the structure.
        """
        entry = self._model.entries[self._structure]
        parity = Parity(
            tolerance=tolerance_of(entry),
            float32_error=entry.proof.float32_error,
            probe=largest_difference(self.predict_probe(network), self.probe_prediction),
            image=largest_difference(self._predict_image(network), self.image_prediction),
            absolute=tolerance_of(entry) * float(np.abs(self.image_prediction).max()),
            probe_shape=tuple(self._probe.shape),
            image_shape=self.volume.prepared.shape,
            image_name=self.volume.name,
            simulated=self.volume.simulated,
            runtime=runtime,
        )
        # Not `> tolerance`: a comparison with NaN is false.
        if not max(parity.probe, parity.image) <= parity.tolerance:
            raise RepmodeError(
                f"{self._structure} is not exported: run by {runtime}, the file {parity.text}; nothing was written. "
                "Try another version of the runtime, or another format"
            )
        return parity

    def predict_probe(self, network: Network) -> NDArray[np.float32]:
        """Return a network's prediction of the probe, float32 (Z, Y, X)."""
        with torch.no_grad():
            result: NDArray[np.float32] = network(self._probe[None, None])[0, 0].numpy()
        return result

    def _predict_image(self, network: Network) -> NDArray[np.float32]:
        settings = self._model.inference
        return sliding_window(
            network,
            self.volume.prepared,
            window=tuple(settings["window"]),
            overlap=settings["overlap"],
            batch_size=settings["batch"],
            weights=settings.get("weights", "floored"),
        )


def largest_difference(values: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the largest difference over the reference's largest value; infinite where shapes differ or NaNs are."""
    if values.shape != reference.shape:
        return float("inf")
    difference = float(np.abs(values.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max())
    if not np.isfinite(difference):
        return float("inf")
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))
