"""Preparation of a volume in memory: resampled and z-scored, as the images of a model's training were; of its truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.preprocessing.intensity_scales import recorded_target
from repmode_cl.data.preprocessing.normalisation import ZScore, normalise, z_score_of_volume
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.resampling import resample_to
from repmode_cl.errors import ImageError, ModelError
from repmode_cl.store.snapshot import ModelSnapshot

__all__ = ["prepare_volume", "target_scales", "target_score"]


def target_score(model: ModelSnapshot, structure: str) -> ZScore | None:
    """Return the z-score that a structure's predictions are in, which its truth must have; None: each image's own.

    Raises
    ------
    ModelError
        If the images of the model have a common one, and that of the structure is not recorded.
    """
    if not PreprocessingRecipe.from_json(model.preprocessing).data_set:
        return None
    scale = recorded_target(model.entries[structure].provenance, structure)
    if scale is None:
        raise ModelError(
            f"{model.path}: mean and deviation of the training targets of {structure} are not recorded, without which "
            "predictions cannot be compared with a truth: predict without --target, or add the structure again"
        )
    return ZScore(*scale)


def target_scales(model: ModelSnapshot, structures: Sequence[str]) -> dict[str, tuple[float, float]] | None:
    """Return ``data.preprocessing.targets`` by which the truth of structures is prepared; None: each image's own.

    Raises
    ------
    ModelError
        As of `target_score`.
    """
    scores = {name: target_score(model, name) for name in structures}
    return {
        name: (score.mean, score.deviation) for name, score in scores.items() if score is not None
    } or None


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
        given = recipe.light_score
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
        return normalise(volume, percentiles=recipe.percentiles, empty=recipe.empty, given=given)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
