"""Writer of raw arrays (``.npy``): voxels and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.writers.image_metadata import ImageMetadata
from repmode_cl.inference.writers.pyramid import Pyramid

__all__ = ["write_npy"]


def write_npy(path: Path, metadata: ImageMetadata, channels: Sequence[Pyramid]) -> None:
    """Write the only channel of an image as (Z, Y, X) to `path`, replacing a file that is there."""
    [channel] = channels
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(metadata.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": metadata.shape})
        offset = file.tell()
    with RawVolume(path, metadata.shape, metadata.dtype, offset) as volume:
        for box, values in channel.strips():
            volume.write(box, values)
        volume.sync()
