"""Files of a trial for the report: gate weights and example predictions."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from repmode_cl.data.patches.dataset import VolumeDataset
from repmode_cl.nn import RepModeUNet
from repmode_cl.results.gates import write_gates
from repmode_cl.results.predictions import Prediction, prediction_path, write_prediction
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.utils.atomic_files import TEMPORARY_MARK

__all__ = ["write_gate_weights", "write_predictions"]


def write_gate_weights(path: Path, network: RepModeUNet) -> None:
    """Write each structure's gate weights, averaged over channels (paper, Fig. 6); null where training diverged.

    Gates that depend on the input have none to write.
    """

    def mean(weights: Tensor) -> float | None:
        value = float(weights.mean())
        return value if math.isfinite(value) else None  # JSON has no other number

    write_gates(
        path,
        {
            name: {
                block: {expert: mean(weights) for expert, weights in experts.items()}
                for block, experts in network.gate_weights(name).items()
            }
            for name in (network.structures if network.fusible else ())
        },
    )


def write_predictions(folder: Path, strategy: StructureStrategy, stream: StructureStream) -> None:
    """Predict the first test image of each structure, and write signal, target and prediction.

    Parameters
    ----------
    folder
        The trial's.
    strategy
        What predicts.
    stream
        What it learned.
    """
    for unfinished in (folder / "predictions").glob(
        f"*{TEMPORARY_MARK}*"
    ):  # by a process that was killed here
        unfinished.unlink()
    for experience in stream.test:
        for name in stream.names_of(experience):
            samples = [sample for sample in stream.held_out(experience) if sample.structure == name]
            if not samples:
                continue
            signal, target = VolumeDataset(samples[:1])[0]
            volumes = Prediction(signal[0].numpy(), target[0].numpy(), strategy.predict(signal[0], name))
            write_prediction(prediction_path(folder, name), volumes)
