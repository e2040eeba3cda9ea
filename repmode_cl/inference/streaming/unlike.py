"""Scores of windows against the training images, in files next to an unfinished output, and what is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.streaming.blocks import BlockPlan
from repmode_cl.inference.unlike import ImageScore
from repmode_cl.inference.windows import WindowWeights, gaussian_weights, summed_weights
from repmode_cl.inference.writers.image_metadata import ChannelMetadata, ImageMetadata

__all__ = ["UNKNOWN", "open_scores", "with_unlike", "write_map", "write_scores"]

#: Said of a structure that was stored without statistics of its training images.
UNKNOWN = "unknown: the model has no statistics of this structure's training images"


def open_scores(folder: Path, name: str, windows: int, *, new: bool) -> RawVolume:
    """Open the file of the scores of a structure's windows: float32, in one row, in the windows' order.

    Parameters
    ----------
    folder
        Of the journal.
    name
        Of the structure: part of the file's name.
    windows
        Number of windows.
    new
        Make the file; else it must be there.
    """
    return RawVolume(folder / f"{name}.scores", (1, 1, windows), new=new)


def write_scores(file: RawVolume, start: int, scores: NDArray[np.float32]) -> None:
    """Write the scores of the windows from number `start` on."""
    file.write((slice(0, 1), slice(0, 1), slice(start, start + len(scores))), scores[None, None])


def _read_scores(file: RawVolume) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = file.read((slice(0, 1), slice(0, 1), slice(0, file.shape[2])))[0, 0]
    return scores


def write_map(folder: Path, name: str, result: Path, blocks: BlockPlan, weights: WindowWeights) -> None:
    """Write the scores as a volume on the network's grid, blended as predictions are.

    Parameters
    ----------
    folder
        Of the journal.
    name
        Of the structure.
    result
        The file to write.
    blocks
        Of the prediction: the volume is made block by block.
    weights
        Of a window's voxels.
    """
    grid = blocks.grid
    of_voxels = gaussian_weights(grid.size, kind=weights)
    with open_scores(folder, name, len(grid), new=False) as file, RawVolume(result, grid.shape) as volume:
        scores = _read_scores(file)
        for number in range(len(blocks)):
            box = blocks[number].final
            total = summed_weights(grid, of_voxels, box, scores)
            volume.write(box, total / summed_weights(grid, of_voxels, box))
        volume.sync()


def with_unlike(metadata: ImageMetadata, unlike: Mapping[str, ImageScore]) -> ImageMetadata:
    """Return the metadata of a file with how unlike the training images of each structure its input is."""

    def about(channel: ChannelMetadata) -> Mapping[str, str]:
        name = channel.about.get("structure")
        if name is None:
            return channel.about
        if (score := unlike.get(name)) is None:
            return {**channel.about, "unlike_training": UNKNOWN}
        numbers = {key: value for key, value in score.to_json().items() if value is not None}
        texts = {f"unlike_training_{key}": f"{value:.4g}" for key, value in numbers.items()}
        return {**channel.about, "unlike_training": score.text, **texts}

    channels = tuple(dataclasses.replace(channel, about=about(channel)) for channel in metadata.channels)
    return dataclasses.replace(metadata, channels=channels)
