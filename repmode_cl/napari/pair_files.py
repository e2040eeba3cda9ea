"""Files of a pair of volumes and its manifest, so that the command ``repmode-cl add`` can learn from two layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.manifest import Row, write_manifest
from repmode_cl.data.readers import Region
from repmode_cl.errors import ImageError
from repmode_cl.inference.writers import write_ome_tiff
from repmode_cl.structures import check_structure_name

__all__ = ["HELD_OUT", "write_pair"]

#: Parts of the longer of y and x that train and that are held out; what is between them is left out.
HELD_OUT = (0.7, 0.75)
_SMALLEST = 16


def write_pair(
    folder: Path,
    structure: str,
    light: NDArray[Any],
    target: NDArray[Any],
    voxel_size: Sequence[float] | None,
) -> Path:
    """Write two volumes of one field, and a manifest in which one end of the field is held out.

    Parameters
    ----------
    folder
        Folder of the files, which are replaced.
    structure
        Name of the target.
    light, target
        (Z, Y, X) of one shape.
    voxel_size
        um (z, y, x), or None.

    Returns
    -------
    Path
        The manifest: a row that trains, and one that tests.

    Raises
    ------
    ImageError
        If the shapes differ, or the field is too small to hold a part of it out.
    """
    check_structure_name(structure)
    if light.shape != target.shape:
        raise ImageError(
            f"the light has {light.shape} voxels (z, y, x) and the structure {target.shape}: both layers must show the "
            "same voxels"
        )
    axis = 1 if light.shape[1] >= light.shape[2] else 2
    length = light.shape[axis]
    train, test = (int(part * length) for part in HELD_OUT)
    if length - test < _SMALLEST:
        raise ImageError(
            f"the layers have {length} voxels along {'zyx'[axis]}, of which the last quarter is held out: at least "
            f"{4 * _SMALLEST} are needed; take larger images, or `repmode-cl add` with several"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = {"light": folder / "light.ome.tif", "target": folder / f"{structure}.ome.tif"}
    for name, volume in (("light", light), ("target", target)):
        write_ome_tiff(files[name], volume.astype(np.float32), voxel_size, name)
    rows = []
    for number, (split, span) in enumerate((("train", (0, train)), ("test", (test, length)))):
        spans = [(0, size) for size in light.shape]
        spans[axis] = span
        size = None if voxel_size is None else (voxel_size[0], voxel_size[1], voxel_size[2])
        rows.append(
            Row(
                number=number + 2,
                structure=structure,
                signal=files["light"],
                signal_channel=None,
                target=files["target"],
                target_channel=None,
                region=Region(*spans),
                split=split,
                voxel_size=size,
            )
        )
    manifest = folder / "manifest.csv"
    write_manifest(manifest, rows)
    return manifest
