"""Previews of a prediction from disk to disk: of a part, before anything else; or of results already computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.data.preprocessing.normalisation import ZScore
from repmode_cl.inference.preview import PREVIEW_SIZE, preview_box
from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.sliding_window import sliding_windows
from repmode_cl.inference.streaming.outputs import result_path
from repmode_cl.inference.volume_source import VolumeSource, read_z_scored
from repmode_cl.inference.window_batches import Network
from repmode_cl.inference.windows import WindowGrid, WindowWeights

__all__ = ["part_to_predict", "predict_part", "read_results"]

#: A part is predicted before the whole where it has at most this share of the windows.
_SHARE = 1 / 3


def part_to_predict(grid: WindowGrid) -> Box | None:
    """Return the part that is worth predicting by itself before the whole; None where the whole is done soon.

    Parameters
    ----------
    grid
        Windows of the whole.
    """
    box = preview_box(grid.shape)
    part = WindowGrid([one.stop - one.start for one in box], grid.size, grid.overlap)
    return box if len(part) <= _SHARE * len(grid) else None


def predict_part(
    source: VolumeSource,
    score: ZScore,
    box: Box,
    grid: WindowGrid,
    networks: Mapping[str, Network],
    *,
    batch: int,
    device: torch.device,
    weights: WindowWeights,
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Return the z-scored light of a part, and what each network predicts of it by windows of the whole's size."""
    light = read_z_scored(source, score, box)
    predictions = sliding_windows(
        list(networks.values()),
        light,
        window=grid.size,
        overlap=grid.overlap,
        batch_size=batch,
        device=device,
        weights=weights,
    )
    return light, dict(zip(networks, predictions, strict=True))


def read_results(
    source: VolumeSource, score: ZScore, grid: WindowGrid, folder: Path, names: Iterable[str]
) -> tuple[Box, NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Return a box, the z-scored light in it, and the results of a finished prediction there."""
    box = preview_box(grid.shape, round(math.prod(PREVIEW_SIZE) / _SHARE))
    predictions = {}
    for name in names:
        with RawVolume(result_path(folder, name), grid.shape, new=False) as result:
            predictions[name] = result.read(box)
    return box, read_z_scored(source, score, box), predictions
