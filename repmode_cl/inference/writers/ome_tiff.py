"""OME-TIFF: compressed tiles, with lower resolutions as SubIFDs, in a BigTIFF where it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.inference.writers.image_metadata import ImageMetadata, software
from repmode_cl.inference.writers.ome_xml import ome_xml
from repmode_cl.inference.writers.pyramid import TILE, Pyramid

__all__ = ["write_tiff"]

#: A classic TIFF addresses 4 GiB; some of them are left for the header and the pages' own.
_CLASSIC = (1 << 32) - (1 << 25)

#: Predictions are floats whose last digits are noise: higher levels take several times as long for a few percent.
_DEFLATE = 4

#: Bytes of tiles that wait to be compressed.
_WAITING = 32 << 20


def write_tiff(path: Path, picture: ImageMetadata, channels: Sequence[Pyramid]) -> None:
    """Write a picture as one OME-TIFF under the name `path`, which is made anew.

    Parameters
    ----------
    path
        The file.
    picture
        What it is.
    channels
        Its voxels, a pyramid for each channel.
    """
    # Imported here, because predicting in memory needs no TIFF.
    import tifffile

    settings: dict[str, Any] = {
        "dtype": picture.dtype,
        "photometric": "minisblack",
        "compression": "zlib",
        "compressionargs": {"level": _DEFLATE},
        "metadata": None,
        "buffersize": _WAITING,
    }
    if picture.voxel_size is not None:
        # Software that does not read OME-XML takes the pixels' size from here.
        settings["resolution"] = tuple(1e4 / size for size in picture.voxel_size[:0:-1])
        settings["resolutionunit"] = "CENTIMETER"
    shapes = channels[0].shapes
    # What compression saves is not known before, and a third of the first level is all that the others can be.
    big = picture.nbytes * 4 // 3 > _CLASSIC
    with tifffile.TiffWriter(path, bigtiff=big, byteorder="<", ome=False) as tiff:
        for level, (z, y, x) in enumerate(shapes):
            own: dict[str, Any] = {"subfiletype": 1, "software": False}
            if level == 0:
                own = {
                    "description": ome_xml(picture, software()),
                    "software": software(),
                    "subifds": len(shapes) - 1,
                }
            height, width = (min(TILE, -(-size // 16) * 16) for size in (y, x))
            tiff.write(
                _tiles(channels, level, (height, width)),
                shape=(len(channels) * z, y, x),
                tile=(height, width),
                **own,
                **settings,
            )


def _tiles(channels: Sequence[Pyramid], level: int, size: tuple[int, int]) -> Iterator[NDArray[Any]]:
    for channel in channels:
        for _, values in channel.tiles(level):
            plane = values[0]
            if plane.shape != size:
                tile = np.zeros(size, plane.dtype)
                tile[: plane.shape[0], : plane.shape[1]] = plane
                plane = tile
            yield plane
