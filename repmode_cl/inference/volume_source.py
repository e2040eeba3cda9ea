"""Sources of the windows of a prediction from disk: the file itself, or a copy on the network's grid.

A file whose rows can be read one by one, on the network's voxel size, is read where it lies. Any other is
resampled (or just decoded) once, box by box, into a raw file beside the output: windows overlap, and
each plane would be decoded and resampled many times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.data.preprocessing.normalisation import ZScore, strips, z_score
from repmode_cl.data.preprocessing.resample_box import resample_box, resample_tiles
from repmode_cl.data.readers import ImageReader, Region
from repmode_cl.inference.raw_volume import RawVolume

__all__ = ["FileSource", "VolumeSource", "copy_resampled", "read_z_scored", "z_score_of"]


class VolumeSource(Protocol):
    """A volume that is read box by box."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (Z, Y, X)."""

    def read(self, box: Box) -> NDArray[Any]:
        """Return a box (slices with both ends) as a new array."""


@dataclass(frozen=True)
class FileSource:
    """One channel of an image file.

    Attributes
    ----------
    image
        Open.
    channel, scene, t
        As in its `read`.
    dtype
        Type of the voxels that are returned; None keeps the file's.
    """

    image: ImageReader
    channel: int
    scene: int | str | None = None
    t: int | None = None
    dtype: type[np.generic] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (Z, Y, X)."""
        return self.image.shape

    def read(self, box: Box) -> NDArray[Any]:
        """Return a box (slices with both ends)."""
        z, y, x = ((part.start, part.stop) for part in box)
        values = self.image.read(self.channel, Region(z, y, x), scene=self.scene, t=self.t)
        return values if self.dtype is None else values.astype(self.dtype, copy=False)


def copy_resampled(
    source: VolumeSource,
    target: RawVolume,
    order: int,
    memory: int,
    *,
    anti_alias: bool = False,
    corners: bool = False,
) -> None:
    """Fill `target` with `source` resampled to its size, within about `memory` bytes; equal sizes are copied.

    Parameters
    ----------
    source, target
        The same field on two grids.
    order
        Order of the spline.
    memory
        Bytes.
    anti_alias
        Blur axes that lose voxels first.
    corners
        As of `repmode_cl.data.preprocessing.resampling.resample_to`.
    """
    for box in resample_tiles(source.shape, target.shape, order, memory, anti_alias=anti_alias):
        if source.shape == target.shape:
            target.write(box, source.read(box))
        else:
            values = resample_box(
                source.read, source.shape, target.shape, box, order, anti_alias=anti_alias, corners=corners
            )
            target.write(box, values)


def z_score_of(
    source: VolumeSource,
    *,
    percentiles: tuple[float, float] | None = None,
    empty: str = "refuse",
    given: ZScore | None = None,
) -> ZScore:
    """Measure the mean and deviation of a volume; the same bits as `normalise` of the whole array.

    Parameters
    ----------
    source
        Read twice, or four times with `percentiles`, or once with `given`.
    percentiles, empty, given
        As in `repmode_cl.data.preprocessing.normalisation.z_score`.

    Raises
    ------
    ImageError
        If a voxel is not finite or all are equal.
    """

    def pieces() -> Iterator[NDArray[Any]]:
        return (source.read(box) for box in strips(source.shape))

    z, y, x = source.shape
    return z_score(pieces, z * y * x, percentiles=percentiles, empty=empty, given=given)


def read_z_scored(source: VolumeSource, score: ZScore, box: Box) -> NDArray[np.float32]:
    """Return the z-score of a box, float32 (z, y, x), computed plane by plane."""
    values = source.read(box)
    result = np.empty(values.shape, np.float32)
    for z, plane in enumerate(values):
        result[z] = score(plane)
    return result
