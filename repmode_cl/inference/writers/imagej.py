"""Writer of ImageJ's own TIFF: an uncompressed hyperstack that ImageJ opens without any plugin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import ImageError
from repmode_cl.inference.writers.image_metadata import NAMESPACE, ImageMetadata, software
from repmode_cl.inference.writers.pyramid import Pyramid
from repmode_cl.utils.memory import format_bytes

__all__ = ["IMAGEJ_BYTES", "check_imagej", "write_imagej"]

#: Most bytes of voxels in a classic TIFF, the only one that ImageJ reads by itself: offsets have 32 bits, and some
#: room is left for header and pages.
IMAGEJ_BYTES = (1 << 32) - (1 << 25)

#: Bytes of a strip.
_STRIP = 8 << 20


def check_imagej(path: Path, nbytes: int) -> None:
    """Refuse a name or a size that an ImageJ hyperstack cannot have.

    Parameters
    ----------
    path
        The file.
    nbytes
        Bytes of its voxels.

    Raises
    ------
    ImageError
        If the suffix is not .tif or .tiff, the name says OME-TIFF, or the voxels take more than `IMAGEJ_BYTES`.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise ImageError(f"{path}: an ImageJ hyperstack is a TIFF; give a name that ends in .tif")
    if Path(path.stem).suffix.lower() == ".ome":
        raise ImageError(
            f"{path}: an ImageJ hyperstack is no OME-TIFF; give a name that ends in .tif without .ome before it"
        )
    if nbytes > IMAGEJ_BYTES:
        raise ImageError(
            f"{path}: its voxels take {format_bytes(nbytes)}, and ImageJ's own TIFF holds at most "
            f"{format_bytes(IMAGEJ_BYTES)}; write fewer bytes (--rescale LOW:HIGH:uint8, no --stack), or leave out "
            "--imagej: OME-TIFF has no such limit, and Fiji opens it by Bio-Formats"
        )


def write_imagej(path: Path, metadata: ImageMetadata, channels: Sequence[Pyramid]) -> None:
    """Write an image as an ImageJ hyperstack to `path`, replacing a file that is there.

    Planes follow one another as ImageJ has them, all channels of a plane before the next plane. Each channel has its
    colour and a range for display; its name is the label of each of its planes.

    Parameters
    ----------
    path
        The file; its name when whole was checked by `check_imagej`.
    metadata
        Of the image.
    channels
        Its voxels, a pyramid for each channel, of which only the full resolution is written.
    """
    # Imported here for a fast start: predicting in memory needs no TIFF.
    import tifffile

    z, y, x = metadata.shape
    names = [channel.name for channel in metadata.channels]
    ranges = [one.sampled_range() for one in channels]
    about: dict[str, Any] = {
        "axes": "ZCYX",
        "mode": "composite" if len(names) > 1 else "grayscale",
        "Labels": names * z,
        "LUTs": [_lookup_table(channel.colour) for channel in metadata.channels],
        "Ranges": tuple(float(end) for pair in ranges for end in pair),
        "min": float(ranges[0][0]),
        "max": float(ranges[0][1]),
        "Info": _info(metadata),
    }
    settings: dict[str, Any] = {}
    if metadata.voxel_size is not None:
        about |= {"spacing": metadata.voxel_size[0], "unit": "um"}
        settings["resolution"] = tuple(1 / size for size in metadata.voxel_size[:0:-1])
    rows = max(1, min(y, _STRIP // max(1, x * metadata.dtype.itemsize)))
    with tifffile.TiffWriter(path, imagej=True) as tiff:
        tiff.write(
            _strips(channels, z, y, rows),
            shape=(z, len(channels), y, x),
            dtype=metadata.dtype,
            photometric="minisblack",
            rowsperstrip=rows,
            metadata=about,
            software=software(),
            **settings,
        )


def _strips(channels: Sequence[Pyramid], planes: int, height: int, rows: int) -> Iterator[NDArray[Any]]:
    for plane in range(planes):
        for channel in channels:
            for row in range(0, height, rows):
                yield channel.rows(plane, row, min(row + rows, height))


def _lookup_table(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return black to the colour in 256 steps, (3, 256)."""
    table: NDArray[np.uint8] = (np.arange(256)[None] * np.asarray(colour)[:, None] // 255).astype(np.uint8)
    return table


def _info(metadata: ImageMetadata) -> str:
    """Return what ImageJ shows as the image's information: one fact in each line."""
    lines = [metadata.description, f"namespace: {NAMESPACE}"]
    if metadata.uuid is not None:
        lines.append(f"UUID: {metadata.uuid}")
    lines += [f"{key}: {value}" for key, value in metadata.about.items()]
    for number, channel in enumerate(metadata.channels, 1):
        lines += [f"channel {number} ({channel.name}) {key}: {value}" for key, value in channel.about.items()]
    return "\n".join(line.replace("\n", " ") for line in lines)
