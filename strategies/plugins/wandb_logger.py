"""Weights & Biases, offline: a logger of Avalanche that writes a run into a folder, which ``wandb sync`` can send.

Avalanche 0.6 has one too, which calls what present versions of wandb no longer have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metric_results import AlternativeValues
from avalanche.logging import BaseLogger
from PIL.Image import Image

__all__ = ["OfflineWandB"]


class OfflineWandB(BaseLogger):
    """Logger of numbers, histograms and pictures into an offline run.

    Parameters
    ----------
    project_name, run_name
        As wandb shows them.
    folder
        Existing folder of the run.

    Raises
    ------
    ImportError
        If wandb is not installed.
    """

    def __init__(self, project_name: str, run_name: str, folder: str | Path) -> None:
        super().__init__()
        import wandb  # takes a second, and is not everywhere

        self.wandb = wandb
        self.run = wandb.init(
            project=project_name,
            name=run_name,
            dir=str(folder),
            mode="offline",
            reinit="create_new",
            save_code=False,
        )
        # The x axis of all metrics; wandb's own step must never fall, and Avalanche's does between phases.
        self.run.define_metric("iteration", hidden=True)
        self.run.define_metric("*", step_metric="iteration")

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Log a number, a picture, or the histogram of a tensor; wandb has no other values."""
        if isinstance(value, AlternativeValues):
            value = value.best_supported_value(Image, torch.Tensor, float, int)
        if isinstance(value, torch.Tensor):
            values = value.detach().float().cpu()
            value = values.item() if values.numel() == 1 else self.wandb.Histogram(values.flatten().tolist())
        elif isinstance(value, Image):
            value = self.wandb.Image(value)
        elif not isinstance(value, float | int):
            return
        self.run.log({name: value, "iteration": int(x_plot)})

    def close(self) -> None:
        """End the run, so that all of it is on disk."""
        self.run.finish()
