"""What a run leaves for its report: validation curves, gate weights, example predictions."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import StructureStrategy
from torch import Tensor

from repmode_cl.data.patches import VolumeDataset
from repmode_cl.files import TEMPORARY_MARK, replacing, write_json, write_text
from repmode_cl.nn import RepModeUNet

__all__ = ["parameter_bytes", "write_curve", "write_gates", "write_predictions"]

CURVE_COLUMNS = ("experience", "structure", "train_step", "metric", "value")


def write_curve(path: Path, curve: Sequence[Mapping[str, Any]]) -> None:
    """Write validation figures as CSV, one number a line."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "value": repr(float(row["value"]))} for row in curve)
    write_text(path, text.getvalue())


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


def parameter_bytes(network: torch.nn.Module, names: Sequence[str]) -> tuple[int, int]:
    """Return scalars and bytes of the named state-dict entries; counters of batch norms do not count."""
    state = network.state_dict()
    chosen = [state[name] for name in names if state[name].is_floating_point()]
    return sum(t.numel() for t in chosen), sum(t.numel() * t.element_size() for t in chosen)
