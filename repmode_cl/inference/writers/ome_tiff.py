"""Writer of OME-TIFF: compressed tiles, with lower resolutions as SubIFDs, in a BigTIFF where it is needed."""

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

#: Most bytes of voxels in a classic TIFF: of the 4 GiB that it addresses, some are left for header and pages.
_CLASSIC = (1 << 32) - (1 << 25)

#: Level of compression. Last digits of predictions are noise: higher levels take several times as long for a few
#: percent.
_DEFLATE = 4

#: Bytes of tiles that wait to be compressed.
_WAITING = 32 << 20


def write_tiff(path: Path, metadata: ImageMetadata, channels: Sequence[Pyramid]) -> None:
    """Write an image as one OME-TIFF to `path`, replacing a file that is there.

    Parameters
    ----------
    path
        The file.
    metadata
        Of the image.
    channels
        Its voxels, a pyramid for each channel; of several time points all channels of the first, then of the next.
    """
    # Imported here for a fast start: predicting in memory needs no TIFF.
    import tifffile

    settings: dict[str, Any] = {
        "dtype": metadata.dtype,
        "photometric": "minisblack",
        "compression": "zlib",
        "compressionargs": {"level": _DEFLATE},
        "metadata": None,
        "buffersize": _WAITING,
    }
    if metadata.voxel_size is not None:
        # Software that does not read OME-XML reads the pixels' size here.
        settings["resolution"] = tuple(1e4 / size for size in metadata.voxel_size[:0:-1])
        settings["resolutionunit"] = "CENTIMETER"
    shapes = channels[0].shapes
    # The gain of compression is not known before; all lower levels together are at most a third of the first.
    big = metadata.nbytes * 4 // 3 > _CLASSIC
    with tifffile.TiffWriter(path, bigtiff=big, byteorder="<", ome=False) as tiff:
        for level, (z, y, x) in enumerate(shapes):
            tags: dict[str, Any] = {"subfiletype": 1, "software": False}
            if level == 0:
                tags = {
                    "description": ome_xml(metadata, software()),
                    "software": software(),
                    "subifds": len(shapes) - 1,
                }
            height, width = (min(TILE, -(-size // 16) * 16) for size in (y, x))
            tiff.write(
                _tiles(channels, level, (height, width)),
                shape=(len(channels) * z, y, x),
                tile=(height, width),
                **tags,
                **settings,
            )


def _tiles(channels: Sequence[Pyramid], level: int, size: tuple[int, int]) -> Iterator[NDArray[Any]]:
    """Yield the tiles of a level of all channels, those at the far ends padded to `size` (y, x)."""
    for channel in channels:
        for _, values in channel.tiles(level):
            plane = values[0]
            if plane.shape != size:
                tile = np.zeros(size, plane.dtype)
                tile[: plane.shape[0], : plane.shape[1]] = plane
                plane = tile
            yield plane
