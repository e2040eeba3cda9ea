"""Write a predicted volume as an OME-TIFF that viewers open at the right scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import ImageError
from repmode_cl.files import replacing

__all__ = ["write_ome_tiff"]


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
    voxel_size
        um (z, y, x); None writes none.
    channel_name
        Name of the channel, as a rule the structure's.
    description
        Free text for the image: what made it and in which units.

    Raises
    ------
    ImageError
        If the suffix is no TIFF's or the volume does not have three axes.
    """
    # Imported here, because predicting in memory needs no TIFF.
    import tifffile

    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise ImageError(f"{path}: predictions are written as OME-TIFF; give a name that ends in .ome.tif")
    if volume.ndim != 3:
        raise ImageError(f"{path}: a volume has three axes (Z, Y, X), got the shape {volume.shape}")
    metadata: dict[str, Any] = {"axes": "ZYX"}
    if voxel_size is not None:
        for axis, size in zip("ZYX", voxel_size, strict=True):
            metadata[f"PhysicalSize{axis}"] = float(size)
            metadata[f"PhysicalSize{axis}Unit"] = "µm"
    if channel_name is not None:
        metadata["Channel"] = {"Name": [channel_name]}
    if description is not None:
        metadata["Description"] = description
    with replacing(path) as beside:
        tifffile.imwrite(
            beside,
            np.ascontiguousarray(volume, np.float32),
            ome=True,
            photometric="minisblack",
            metadata=metadata,
        )
