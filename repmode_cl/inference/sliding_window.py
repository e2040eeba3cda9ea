"""Prediction of a volume in memory by a Gaussian sliding window (paper, section 4.1).

A network sees windows of the size that it was trained on; overlapping predictions are averaged with weights
that fall towards a window's borders, where a prediction has least context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmode_cl.errors import ImageError
from repmode_cl.inference.window_batches import Network, predict_batches
from repmode_cl.inference.windows import WindowGrid, WindowWeights, gaussian_weights

__all__ = ["sliding_window", "sliding_windows"]


def sliding_window(
    network: Network,
    volume: Tensor | NDArray[np.generic],
    *,
    window: Sequence[int],
    overlap: float = 0.5,
    batch_size: int = 4,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    weights: WindowWeights = "floored",
) -> NDArray[np.float32]:
    """Predict `volume` window by window and blend the predictions.

    Only the windows of one batch are on the device; the volume may be a memory map. Windows and batches are
    the same for the same arguments, so the same network gives the same bits on one machine.

    Parameters
    ----------
    network
        Maps float32 (N, 1, z, y, x) to (N, 1, z, y, x). Called without gradients; put it in evaluation mode
        before.
    volume
        (Z, Y, X), z-scored, on the network's voxel size.
    window
        Voxels (z, y, x) of a window; an axis in which the volume is smaller takes the volume's size.
    overlap
        Part of a window that its neighbour repeats.
    batch_size
        Windows computed at once.
    device
        Device of the network.
    progress
        Called with the number of windows done and their total.
    weights
        Weights of a window's voxels (`gaussian_weights`).

    Returns
    -------
    ndarray
        float32 (Z, Y, X), in the units of the network's output.

    Raises
    ------
    ImageError
        If `volume` does not have three axes.
    ValueError
        If a size or `overlap` is out of range, or the network's output has another shape than its input.
    """
    [result] = sliding_windows(
        [network],
        volume,
        window=window,
        overlap=overlap,
        batch_size=batch_size,
        device=device,
        progress=progress,
        weights=weights,
    )
    return result


def sliding_windows(
    networks: Sequence[Network],
    volume: Tensor | NDArray[np.generic],
    *,
    window: Sequence[int],
    overlap: float = 0.5,
    batch_size: int = 4,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    weights: WindowWeights = "floored",
) -> list[NDArray[np.float32]]:
    """Predict `volume` by several networks in one pass; parameters, results and errors of `sliding_window`.

    All networks are called with one batch, in their order, before the first is called with the next.
    """
    if volume.ndim != 3:
        raise ImageError(f"a volume has three axes (Z, Y, X), got the shape {tuple(volume.shape)}")
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    shape = tuple(int(size) for size in volume.shape)
    grid = WindowGrid(shape, window, overlap)
    of_voxels = gaussian_weights(grid.size, kind=weights)
    totals = [np.zeros(shape, np.float32) for _ in networks]
    weight = np.zeros(shape, np.float32)
    weighted = np.empty(grid.size, np.float32)
    done = 0
    for outputs in predict_batches(networks, _batches(volume, grid, batch_size), device):
        for index in range(len(outputs[0])):
            box = grid[done].slices
            for total, predictions in zip(totals, outputs, strict=True):
                np.multiply(predictions[index], of_voxels, out=weighted)
                total[box] += weighted
            weight[box] += of_voxels
            done += 1
        if progress is not None:
            progress(done, len(grid))
    for total in totals:
        total /= weight
    return totals


def _batches(volume: Tensor | NDArray[np.generic], grid: WindowGrid, batch_size: int) -> Iterator[Tensor]:
    """Cut windows as float32 on the CPU, each copied once."""
    for first in range(0, len(grid), batch_size):
        batch = torch.empty((min(batch_size, len(grid) - first), 1, *grid.size), dtype=torch.float32)
        for index in range(len(batch)):
            box = grid[first + index].slices
            if isinstance(volume, Tensor):
                batch[index, 0] = volume[box].detach()
            else:
                batch.numpy()[index, 0] = volume[box]
        yield batch
