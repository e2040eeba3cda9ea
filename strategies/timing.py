"""Seconds of a training step and windows of an image, for estimates before anything is trained."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from repmode_cl.config import Config, TrainingConfig
from repmode_cl.data.geometry import VoxelSize
from repmode_cl.data.manifest import Row, as_written, read_manifest
from repmode_cl.data.phantom.field import SIMULATED_VOXEL
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.readers import Region, open_image
from repmode_cl.errors import ImageError
from repmode_cl.inference.windows import plan_windows
from repmode_cl.nn import RepModeUNet
from repmode_cl.nn.mode_block import fuse_under_autocast
from repmode_cl.nn.unet import checkpoint_activations
from repmode_cl.strategies.multi_net import PlainNetworks
from repmode_cl.training import Precision, make_adam, masked_mse
from repmode_cl.training.timing import median_seconds

__all__ = ["time_training", "windows_of_image", "windows_of_row"]

#: Of how many rows of a manifest the headers are read, to see how large its images are.
_HEADERS = 20
#: Windows of an image where no header can be read.
_ASSUMED_WINDOWS = 8


def windows_of_row(config: Config, row: Row) -> int:
    """Return how many windows the row's image is predicted in, once it is prepared; only its header is read.

    Raises
    ------
    ImageError, OSError
        If the header cannot be read.
    """
    with open_image(row.signal, scene=as_written(row.scene)) as image:
        shape = (row.region or Region()).shape_in(image.shape)
        return _windows(config, shape, row.voxel_size or image.voxel_size)


def windows_of_image(config: Config) -> float:
    """Return in how many windows an image is predicted: one of the simulator's, or the median of a manifest's."""
    if config.data.manifest is None:
        return _windows(config, config.data.simulate.shape, SIMULATED_VOXEL)
    rows, found = read_manifest(Path(config.data.manifest)).rows, []
    for row in rows[:: max(1, len(rows) // _HEADERS)]:
        with suppress(ImageError, OSError):  # `data check` says what is wrong with it
            found.append(windows_of_row(config, row))
    return statistics.median(found or [_ASSUMED_WINDOWS])


def _windows(config: Config, shape: Sequence[int], voxel: VoxelSize | None) -> int:
    settings = config.data.preprocessing
    grid = PreprocessingRecipe.of(settings).grid(shape, voxel, settings.voxel_size)
    return len(plan_windows(grid, config.window, config.inference.overlap))


def time_training(
    network: RepModeUNet | PlainNetworks,
    structure: str,
    training: TrainingConfig,
    patch: Sequence[int],
    precision: Precision,
    device: torch.device,
    repeats: int = 3,
) -> tuple[float, float]:
    """Return the median seconds of a training step of `structure` on noise, and of predicting one window.

    Parameters
    ----------
    network
        What is trainable is set; its weights are moved a little.
    structure
        One that it knows.
    training, patch
        Batch and micro-batches; voxels (z, y, x).
    precision, device
        What is computed in, and where.
    repeats
        Steps, and windows, that are timed after a first one.
    """
    network.to(device).train()
    checkpoint_activations(network, training.activation_checkpointing)
    fuse_under_autocast(network, training.fusing == "autocast")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = make_adam(trained, learning_rate=1e-5)
    parts = training.accumulate
    x = torch.randn(training.batch_size // parts, 1, *patch, device=device)
    names = [structure] * len(x)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(parts):
            with precision.autocast():
                output = network(x, names)
            masked_mse(output, x).backward()
        optimizer.step()

    step_time = median_seconds(step, device, repeats)
    network.eval()
    # Where weights depend on the image there is no fused network: the network itself predicts.
    plain: nn.Module = getattr(network, "predictor", network.fuse)(structure).eval()

    def window() -> None:
        with torch.no_grad():
            plain(x[:1])

    return step_time, median_seconds(window, device, repeats)
