"""Preparation of a volume in memory: resampled and z-scored, as the images of a model's training were."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.preprocessing.normalisation import normalise, z_score_of_volume
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.resampling import resample_to
from repmode_cl.errors import ImageError

__all__ = ["prepare_volume"]


def prepare_volume(
    volume: NDArray[Any], recipe: PreprocessingRecipe, shape: tuple[int, int, int] | None, name: str
) -> NDArray[np.float32]:
    """Return a network's input: a volume resampled and z-scored.

    Parameters
    ----------
    volume
        (Z, Y, X).
    recipe
        The model's preprocessing.
    shape
        Voxels (Z, Y, X) on the model's grid; None keeps the volume's grid.
    name
        Name of the volume, for messages.

    Returns
    -------
    ndarray
        float32 (Z, Y, X).

    Raises
    ------
    ImageError
        If the voxels are no real numbers, one is not finite, or all are equal.
    """
    if volume.dtype.kind not in "uif":
        raise ImageError(f"{name}: an image of real numbers is needed, not of {volume.dtype}")
    try:
        score = z_score_of_volume(volume, empty=recipe.empty) if recipe.before_resampling else None
        if shape is not None:
            volume = resample_to(
                volume,
                shape,
                recipe.order,
                anti_alias=recipe.anti_alias,
                corners=recipe.before_resampling,
            )
        if score is not None:
            return score(volume)
        return normalise(volume, percentiles=recipe.percentiles, empty=recipe.empty)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
