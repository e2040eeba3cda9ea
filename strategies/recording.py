"""What a run leaves for people: validation curves, gate weights, example predictions, TensorBoard events."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import Evaluation, StructureStrategy
from torch.utils.tensorboard import SummaryWriter

from repmode_cl.data.patches import VolumeDataset
from repmode_cl.files import replacing, write_json, write_text
from repmode_cl.nn import RepModeUNet

__all__ = ["Events", "write_curve", "write_gates", "write_predictions"]

CURVE_COLUMNS = ("experience", "structure", "train_step", "metric", "value")


def write_curve(path: Path, curve: Sequence[Mapping[str, Any]]) -> None:
    """Write validation figures as CSV, one number a line."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "value": repr(float(row["value"]))} for row in curve)
    write_text(path, text.getvalue())


def write_gates(path: Path, network: RepModeUNet) -> None:
    """Write each structure's gate weights, averaged over channels (paper, Fig. 6)."""
    write_json(
        path,
        {
            name: {
                block: {expert: float(weights.mean()) for expert, weights in experts.items()}
                for block, experts in network.gate_weights(name).items()
            }
            for name in network.structures
        },
    )


def write_predictions(folder: Path, strategy: StructureStrategy, stream: StructureStream) -> None:
    """Write the first test image of each structure as it is predicted now: signal, target, prediction, float16."""
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


class Events:
    """TensorBoard events of one run: loss, learning rate, validation and test figures per structure."""

    def __init__(self, folder: Path, every: int = 10) -> None:
        self._writer = SummaryWriter(str(folder))
        self._every = every
        self._steps = 0
        self._seen = 0

    def after_step(self, strategy: StructureStrategy) -> None:
        """Write the training loss now and then; steps count on over experiences."""
        self._steps += 1
        if self._steps % self._every == 0 and strategy.last_loss is not None:
            self._writer.add_scalar("train/mse", float(strategy.last_loss), self._steps)
            self._writer.add_scalar(
                "train/learning_rate", strategy.optimizer.param_groups[0]["lr"], self._steps
            )

    def after_validation(self, strategy: StructureStrategy) -> None:
        """Write what was validated since the last time."""
        for row in strategy.progress.curve[self._seen :]:
            self._writer.add_scalar(f"val/{row['structure']}/{row['metric']}", row["value"], self._steps)
        self._seen = len(strategy.progress.curve)
        self._writer.flush()

    def after_experience(self, step: int, figures: Evaluation) -> None:
        """Write the test figures after experience `step`."""
        for structure, metrics in figures.items():
            for metric, value in metrics.items():
                self._writer.add_scalar(f"test/{structure}/{metric}", value, step)
        self._writer.flush()

    def resumed(self, steps: int, seen: int) -> None:
        """Go on counting after a resumed run's steps and validation figures."""
        self._steps, self._seen = steps, seen

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def parameter_bytes(network: torch.nn.Module, names: Sequence[str]) -> tuple[int, int]:
    """Return scalars and bytes of the named state-dict entries; counters of batch norms do not count."""
    state = network.state_dict()
    chosen = [state[name] for name in names if state[name].is_floating_point()]
    return sum(t.numel() for t in chosen), sum(t.numel() * t.element_size() for t in chosen)
