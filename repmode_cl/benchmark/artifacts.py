"""What a run leaves for its report: validation curves, gate weights, example predictions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from torch import Tensor

from repmode_cl.data.patches.dataset import VolumeDataset
from repmode_cl.nn import RepModeUNet
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.utils.atomic_files import TEMPORARY_MARK, replacing, write_json

__all__ = ["write_gates", "write_predictions"]


def write_gates(path: Path, network: RepModeUNet) -> None:
    """Write each structure's gate weights, averaged over channels (paper, Fig. 6); null where training diverged."""

    def mean(weights: Tensor) -> float | None:
        found = float(weights.mean())
        return found if math.isfinite(found) else None  # JSON has no other number

    write_json(
        path,
        {
            name: {
                block: {expert: mean(weights) for expert, weights in experts.items()}
                for block, experts in network.gate_weights(name).items()
            }
            for name in network.structures
        },
    )


def write_predictions(folder: Path, strategy: StructureStrategy, stream: StructureStream) -> None:
    """Write the first test image of each structure as it is predicted now: signal, target, prediction, float16."""
    for left in folder.glob(f"*{TEMPORARY_MARK}*"):  # by a process that was killed here
        left.unlink()
    for experience in stream.test:
        for name in stream.names_of(experience):
            samples = [sample for sample in stream.held_out(experience) if sample.structure == name]
            if not samples:
                continue
            signal, target = VolumeDataset(samples[:1])[0]
            prediction = strategy.predict(signal[0], name)
            with replacing(folder / f"{name}.npz") as beside, beside.open("wb") as handle:
                np.savez_compressed(
                    handle,
                    signal=signal[0].numpy().astype(np.float16),
                    target=target[0].numpy().astype(np.float16),
                    prediction=np.asarray(prediction, np.float16),
                )
