"""A raw array (``.npy``): voxels and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.writers.image_metadata import ImageMetadata
from repmode_cl.inference.writers.pyramid import Pyramid

__all__ = ["write_npy"]


def write_npy(path: Path, picture: ImageMetadata, channels: Sequence[Pyramid]) -> None:
    """Write the one channel of a picture as (Z, Y, X) under the name `path`, which is made anew."""
    [channel] = channels
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(picture.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": picture.shape})
        offset = file.tell()
    with RawVolume(path, picture.shape, picture.dtype, offset) as volume:
        for box, values in channel.whole():
            volume.write(box, values)
        volume.sync()
