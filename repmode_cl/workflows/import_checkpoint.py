"""A checkpoint of the paper's authors as a new model directory, whose base then grows like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.voxel_size_check import voxel_size_record
from repmode_cl.errors import ModelError, StructureError
from repmode_cl.model import Model
from repmode_cl.nn.authors_state import network_of_authors_state
from repmode_cl.store.authors_checkpoint import read_authors_state
from repmode_cl.store.transaction import is_free
from repmode_cl.structures import DATASET_NAMES, check_structure_name
from repmode_cl.utils.atomic_files import sha256_file

__all__ = ["AUTHORS_RECIPE", "AUTHORS_VOXEL_SIZE", "AUTHORS_WINDOW", "import_checkpoint"]

#: How the authors' code prepares images: z-score, then cubic resampling of y and x.
AUTHORS_RECIPE = PreprocessingRecipe(axes="xy", order=3, before_resampling=True)
AUTHORS_VOXEL_SIZE = (0.29, 0.29, 0.29)

#: um (z, y, x) of the images of their collection, before they are resampled (paper, section 4.1).
_AUTHORS_IMAGES = (0.29, 0.108, 0.108)
#: Voxels (z, y, x) of their patches and windows.
AUTHORS_WINDOW = (32, 128, 128)


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    structures: Sequence[str],
    *,
    voxel_size: Sequence[float] | None = AUTHORS_VOXEL_SIZE,
    window: Sequence[int] = AUTHORS_WINDOW,
) -> Model:
    """Make a model directory of a checkpoint of the authors' network.

    Parameters
    ----------
    file
        Their checkpoint, or a bare state dict, written by ``torch.save``.
    out
        Folder of the model: a new or an empty one.
    structures
        Names of the tasks, in their order. The authors' code sorts its data sets by name, so that the twelve of the
        collection are `TWELVE_STRUCTURES`, in that order.
    voxel_size
        um (z, y, x) of the grid that it was trained on; None keeps each image's.
    window
        Voxels (z, y, x) of windows in prediction.

    Returns
    -------
    Model
        A base that prepares images as the authors' code does, predicts with its window weights, and can grow.

    Raises
    ------
    ModelError
        If the file is no such checkpoint, or `out` exists and is not an empty folder.
    StructureError
        If a name cannot be one of a structure, or stands there twice, or known ones are not in the order of their data
        sets.

    Notes
    -----
    A gate row is what their linear layer gives for the structure's one-hot, rounded to float32: column plus bias.

    With the authors' grid, new images may have any voxel size from that of their collection to that of the grid. With
    another one the sizes of the training images are not known.
    """
    file, out = Path(file), Path(out)
    names = [check_structure_name(name) for name in structures]
    if len(set(names)) < len(names):
        raise StructureError(f"a structure is named twice: {', '.join(names)}")
    _check_order(names)
    if not is_free(out):
        raise ModelError(f"{out} exists already: give a new folder")
    state, size = read_authors_state(file)
    try:
        network = network_of_authors_state(state, names, size)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error
    try:
        return Model.create(
            out,
            network,
            voxel_size=voxel_size,
            preprocessing=AUTHORS_RECIPE.to_json(),
            inference={"window": list(window), "overlap": 0.5, "batch": 8, "weights": "authors"},
            provenance={
                "imported": {
                    "from": file.name,
                    "sha256": sha256_file(file),
                    "what": "checkpoint of the code of RepMode's authors",
                },
                "patch": list(window),
                **(
                    _training_voxels()
                    if voxel_size is not None and tuple(voxel_size) == AUTHORS_VOXEL_SIZE
                    else {}
                ),
            },
        )
    except ModelError as error:
        raise ModelError(f"{file} cannot become a model: {error}") from error


def _check_order(names: Sequence[str]) -> None:
    """Refuse an order in which the authors' code cannot have numbered its tasks: each would get another's gates."""
    known = [name for name in names if name in DATASET_NAMES or name in DATASET_NAMES.values()]
    ordered = sorted(known, key=lambda name: DATASET_NAMES.get(name, name))
    if known != ordered:
        right = ", ".join(
            f"{name} ({DATASET_NAMES[name]})" if name in DATASET_NAMES else name for name in ordered
        )
        raise StructureError(
            f"the structures are named in the order {', '.join(known)}, and the authors' code numbers its tasks in the "
            f"alphabetical order of their data sets: {right}; name them in that order"
        )


def _training_voxels() -> dict[str, Any]:
    """Return the record of the voxel sizes that images may have had in training with the authors' grid."""
    return voxel_size_record([_AUTHORS_IMAGES, AUTHORS_VOXEL_SIZE])
