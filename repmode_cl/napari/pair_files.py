"""Files of a pair of volumes and its manifest, so that the command ``repmode-cl add`` can learn from two layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.manifest import Row, write_manifest
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.readers import Region
from repmode_cl.data.validation.regions import gap_in_file
from repmode_cl.errors import ImageError
from repmode_cl.inference.writers import write_ome_tiff
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.structures import check_structure_name

__all__ = ["needed_gap", "write_pair"]

# Fewest voxels of each part along the axis that is divided.
_SMALLEST = 16

# No structure has a name with a hyphen.
_LIGHT = "transmitted-light.ome.tif"


def needed_gap(model: ModelSnapshot, voxel_size: tuple[float, float, float] | None) -> tuple[int, ...]:
    """Return the voxels (z, y, x) of a file that ``add`` wants between what trains and what is held out.

    Parameters
    ----------
    model
        Half a patch of its base is what is needed.
    voxel_size
        Of the file, um (z, y, x); None if it is unknown.
    """
    provenance = model.entries[model.base_structures[0]].provenance
    # Models of earlier revisions record no patch: it was their window.
    half = tuple(math.ceil(size / 2) for size in provenance.get("patch", model.inference["window"]))
    return gap_in_file(half, voxel_size, model.voxel_size, PreprocessingRecipe.from_json(model.preprocessing))


def write_pair(
    folder: Path,
    structure: str,
    light: NDArray[Any],
    target: NDArray[Any],
    voxel_size: tuple[float, float, float] | None,
    gap: Sequence[int],
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
    gap
        Fewest voxels (z, y, x) between what trains and what is held out, of `needed_gap`.

    Returns
    -------
    Path
        The manifest: a row that trains, and one that tests. Of the longer of y and x the gap is left out; of the other
        voxels the last quarter tests.

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
    used = length - gap[axis]
    if used < 2 * _SMALLEST:
        raise ImageError(
            f"the layers have {length} voxels along {'zyx'[axis]}, the longer of y and x; at least "
            f"{2 * _SMALLEST + gap[axis]} are needed: {_SMALLEST} to learn from, {_SMALLEST} that are held out, and "
            f"{gap[axis]} between them (half a patch of the model); take larger images, or `repmode-cl add` with more "
            "than one"
        )
    test = length - max(_SMALLEST, used // 4)
    train = test - gap[axis]
    folder.mkdir(parents=True, exist_ok=True)
    files = {"light": folder / _LIGHT, "target": folder / f"{structure}.ome.tif"}
    for name, volume in (("light", light), ("target", target)):
        write_ome_tiff(files[name], volume.astype(np.float32), voxel_size, name)
    rows = []
    for number, (split, span) in enumerate((("train", (0, train)), ("test", (test, length)))):
        spans = [(0, size) for size in light.shape]
        spans[axis] = span
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
                voxel_size=voxel_size,
            )
        )
    manifest = folder / "manifest.csv"
    write_manifest(manifest, rows)
    return manifest
