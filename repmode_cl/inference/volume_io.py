"""Files of predicted volumes: OME-TIFF that viewers open at the right scale, or a raw `.npy` array.

Both are a header and then the voxels in one piece, so that a volume of any size can be written box by box.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import ImageError
from repmode_cl.files import replacing
from repmode_cl.inference.raw import RawVolume

__all__ = ["SUFFIXES", "begin_volume", "check_suffix", "write_ome_tiff"]

#: What the name of a prediction may end in.
SUFFIXES = (".tif", ".tiff", ".npy")

#: A classic TIFF addresses 4 GiB; some of them are left for the header and the pages' own.
_CLASSIC = (1 << 32) - (1 << 25)


def check_suffix(path: Path) -> str:
    """Return the suffix of a prediction's file, in lower case.

    Raises
    ------
    ImageError
        If it is none that can be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(
            f"{path}: predictions are written as OME-TIFF or .npy; give a name that ends in .ome.tif or .npy"
        )
    return suffix


def begin_volume(
    path: Path,
    suffix: str,
    shape: Sequence[int],
    voxel_size: Sequence[float] | None = None,
    channel_name: str | None = None,
    description: str | None = None,
    uuid: str | None = None,
) -> RawVolume:
    """Write the header of a float32 volume and return its voxels, zero until they are written.

    Parameters
    ----------
    path
        The file to make, under whatever name.
    suffix
        One of `SUFFIXES`: the format. TIFF becomes BigTIFF where the volume needs it.
    shape
        Voxels (Z, Y, X).
    voxel_size
        um (z, y, x); None writes none. No part of ``.npy``, as are the next.
    channel_name
        Name of the channel, as a rule the structure's.
    description
        Free text for the image: what made it and in which units.
    uuid
        Of the OME-TIFF; None takes a random one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = tuple(int(extent) for extent in shape)
    if suffix == ".npy":
        with path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": size})
            offset = file.tell()
        return RawVolume(path, size, np.float32, offset)
    # Imported here, because predicting in memory needs no TIFF.
    import tifffile

    metadata: dict[str, Any] = {"axes": "ZYX"}
    if voxel_size is not None:
        for axis, extent in zip("ZYX", voxel_size, strict=True):
            metadata[f"PhysicalSize{axis}"] = float(extent)
            metadata[f"PhysicalSize{axis}Unit"] = "µm"
    if channel_name is not None:
        metadata["Channel"] = {"Name": [channel_name]}
    if description is not None:
        metadata["Description"] = description
    if uuid is not None:
        metadata["UUID"] = uuid
    written = tifffile.imwrite(
        path,
        shape=size,
        dtype=np.float32,
        bigtiff=4 * size[0] * size[1] * size[2] > _CLASSIC,
        ome=True,
        photometric="minisblack",
        metadata=metadata,
        returnoffset=True,
    )
    return RawVolume(path, size, np.float32, int(written[0]))


def write_ome_tiff(
    path: str | Path,
    volume: NDArray[np.generic],
    voxel_size: Sequence[float] | None = None,
    channel_name: str | None = None,
    description: str | None = None,
) -> None:
    """Write one channel, whole or not at all.

    Parameters
    ----------
    path
        Ends in .tif or .tiff; an existing file is replaced.
    volume
        (Z, Y, X); written as float32.
    voxel_size, channel_name, description
        As of `begin_volume`.

    Raises
    ------
    ImageError
        If the suffix is no TIFF's or the volume does not have three axes.
    """
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise ImageError(f"{path}: predictions are written as OME-TIFF; give a name that ends in .ome.tif")
    if volume.ndim != 3:
        raise ImageError(f"{path}: a volume has three axes (Z, Y, X), got the shape {volume.shape}")
    with (
        replacing(path) as beside,
        begin_volume(beside, ".tif", volume.shape, voxel_size, channel_name, description) as file,
    ):
        z, y, x = (slice(0, size) for size in file.shape)
        file.write((z, y, x), volume)
