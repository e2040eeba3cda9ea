"""The volume on which an exported file is compared with the model, besides the probe: part of a real image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.phantom import LIGHT_CHANNEL, simulate_field
from repmode_cl.data.phantom.field import SIMULATED_VOXEL, SMALLEST_SHAPE
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.resampling import resample_to
from repmode_cl.data.readers import Region, open_image
from repmode_cl.data.readers.location import as_location
from repmode_cl.data.voxel_size_check import check_voxel_size, trained_voxels
from repmode_cl.errors import ImageError
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.inference.predict_file import check_image_choice
from repmode_cl.inference.prepare_volume import prepare_volume
from repmode_cl.inference.provenance import input_name
from repmode_cl.inference.windows import checked_window_grid
from repmode_cl.store.snapshot import ModelSnapshot

__all__ = ["ParityVolume", "part_of_image", "simulated_volume"]

#: Size of the part, in windows along each axis: several windows overlap on each, and none is computed for nothing.
_WINDOWS = 1.5
#: Voxels (um) that the simulator makes.
_FINEST, _COARSEST = 0.05, 1.0


@dataclass(frozen=True)
class ParityVolume:
    """A volume on the model's grid.

    Attributes
    ----------
    name
        Name of the image, without folders.
    simulated
        Whether it is a simulated field, and no real image.
    intensities
        float32 (Z, Y, X), as in the image but for resampling.
    prepared
        The same, z-scored: the network's input.
    notes
        Remarks for a person.
    """

    name: str
    simulated: bool
    intensities: NDArray[np.float32]
    prepared: NDArray[np.float32]
    notes: tuple[str, ...] = ()


def part_of_image(
    model: ModelSnapshot, structure: str, path: str | Path, options: PredictionOptions
) -> ParityVolume:
    """Return the middle of an image, at most 1.5 windows along each axis, prepared as `predict` prepares an image.

    Parameters
    ----------
    model
        The model.
    structure
        Whose voxel sizes of training the image is compared with.
    path
        An image with transmitted light.
    options
        ``channel``, ``scene``, ``t``, ``voxel_size`` and ``force``.

    Raises
    ------
    ImageError
        If it cannot be read, its channel is not named, or it is too small or of a far other voxel size.
    """
    location = as_location(path)
    recipe = PreprocessingRecipe.from_json(model.preprocessing)
    with open_image(location, scene=options.scene, t=options.t) as image:
        check_image_choice(image, options, model.architecture.smallest_size)
        voxel = image.voxel_size if options.voxel_size is None else options.voxel_size
        trained = trained_voxels(model.entries[structure].provenance, model.voxel_size)
        note = check_voxel_size(voxel, trained, str(path), options.force)
        try:
            grid = recipe.grid(image.shape, voxel, model.voxel_size)
            checked_window_grid(
                image.shape,
                grid,
                _window(model),
                float(model.inference["overlap"]),
                model.architecture.smallest_size,
            )
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
        part = [min(size, most) for size, most in zip(grid, _most(model), strict=True)]
        # In voxels of the file, rounded up; at the borders of the part resampling sees less than of the whole image.
        sizes = [
            min(size, math.ceil(wanted * size / of_grid))
            for size, wanted, of_grid in zip(image.shape, part, grid, strict=True)
        ]
        z, y, x = (
            ((size - wanted) // 2, (size - wanted) // 2 + wanted)
            for size, wanted in zip(image.shape, sizes, strict=True)
        )
        channel = image.channel_index(options.channel)
        values = image.read(channel, Region(z, y, x), scene=options.scene, t=options.t)
    shape = recipe.grid(values.shape, voxel, model.voxel_size)
    resampled = None not in (voxel, model.voxel_size)
    return _volume(input_name(location), False, values, recipe, shape if resampled else None, note)


def simulated_volume(model: ModelSnapshot) -> ParityVolume:
    """Return a simulated field of cells, 1.5 windows along each axis, at the model's voxel size."""
    voxel = tuple(min(max(size, _FINEST), _COARSEST) for size in model.voxel_size or SIMULATED_VOXEL)
    shape = [max(size, least) for size, least in zip(_most(model), SMALLEST_SHAPE, strict=True)]
    light = simulate_field(0, 0, ["dna"], shape, voxel)[LIGHT_CHANNEL]
    recipe = PreprocessingRecipe.from_json(model.preprocessing)
    return _volume("simulated field", True, light, recipe, None, None)


def _volume(
    name: str,
    simulated: bool,
    values: NDArray[Any],
    recipe: PreprocessingRecipe,
    shape: tuple[int, int, int] | None,
    note: str | None,
) -> ParityVolume:
    prepared = prepare_volume(values, recipe, shape, name)
    intensities = values.astype(np.float32)
    if shape is not None:
        intensities = resample_to(
            values, shape, recipe.order, anti_alias=recipe.anti_alias, corners=recipe.before_resampling
        )
    return ParityVolume(name, simulated, intensities, prepared, () if note is None else (note,))


def _window(model: ModelSnapshot) -> Sequence[int]:
    return [int(size) for size in model.inference["window"]]


def _most(model: ModelSnapshot) -> list[int]:
    return [math.ceil(_WINDOWS * size) for size in _window(model)]
