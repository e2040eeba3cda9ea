"""Predict structures of a volume that is in memory: prepared as in training, predicted, brought back onto its own grid.

The same as `repmode_cl.inference.predict_file` does from disk to disk, to the same values but for rounding where the
image is resampled. Nothing here knows napari or Qt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.data.preprocessing.recipe import Recipe
from repmode_cl.data.preprocessing.resampling import resample_to
from repmode_cl.data.voxel_size_check import check_voxel_size, trained_voxels
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.identity import window_grid
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.inference.streaming.memory_plan import activation_bytes
from repmode_cl.inference.windows import WindowGrid
from repmode_cl.model import Model
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.memory import available_memory, format_bytes

__all__ = ["Prediction", "Request", "predict_volume"]

#: Arrays in float32 that are held at once at the most: of the image's size (itself, one result), and of the prepared
#: grid's (resampled, z-scored, sum, weights).
_OWN, _PREPARED = 2, 4


@dataclass(frozen=True)
class Request:
    """What is to be predicted.

    Attributes
    ----------
    model
        Open.
    structures
        Names.
    voxel_size
        um (z, y, x) of the volume; None where nobody knows.
    name
        Of the volume, for messages.
    force
        Go on where the voxel size is missing or far from those that were trained.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    remedy
        What a person can do about a voxel size that is missing or far off.
    """

    model: Model
    structures: tuple[str, ...]
    voxel_size: tuple[float, float, float] | None
    name: str
    force: bool = False
    device: str = "auto"
    remedy: str = "state the right one, or go on by force"

    def notes(self) -> tuple[str, ...]:
        """Check the structures and the voxel size, and return what a person should know of the latter.

        Raises
        ------
        RepmodeError
            If no structure is named, one is not in the model, or the voxel size is missing or far off.
        """
        if not self.structures:
            raise RepmodeError("no structure is chosen; choose at least one")
        entries, found = self.model.entries, []
        for name in self.structures:
            if name not in entries:  # removed from the model since it was opened
                raise RepmodeError(f"the model {self.model.path} has no {name!r} any more; open it again")
            trained = trained_voxels(entries[name].provenance, self.model.voxel_size)
            found.append(
                check_voxel_size(self.voxel_size, trained, self.name, self.force, remedy=self.remedy)
            )
        return tuple(dict.fromkeys(note for note in found if note is not None))


@dataclass(frozen=True)
class Prediction:
    """One structure, predicted.

    Attributes
    ----------
    structure
        Its name.
    values
        float32 (Z, Y, X) on the volume's own grid, in z-score units.
    limits
        Lower and upper value to show: half of the voxels are dark, so that what lies below is seen, and one in a
        thousand is saturated.
    extent
        Least and largest value.
    digest
        Of the structure in the model.
    """

    structure: str
    values: NDArray[np.float32]
    limits: tuple[float, float]
    extent: tuple[float, float]
    digest: str


def predict_volume(
    request: Request,
    read: Callable[[], NDArray[Any]],
    shape: Sequence[int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Prediction]:
    """Predict one structure after the other.

    Parameters
    ----------
    request
        What.
    read
        Gives the volume (Z, Y, X), real numbers; called once, after all that can be refused without it.
    shape
        Its voxels (Z, Y, X).
    progress
        Called with the number of windows done and their total, of all structures together, after each batch. What
        it raises ends the prediction, which is how it is cancelled.

    Yields
    ------
    Prediction
        As soon as it is there.

    Raises
    ------
    RepmodeError
        If the request, the volume or the model will not do, or memory is too small.
    """
    request.notes()
    model, device = request.model, resolve_device(request.device)
    recipe = Recipe.from_json(model.preprocessing)
    settings = model.inference
    try:
        grid_shape = recipe.grid(shape, request.voxel_size, model.voxel_size)
        part, least = float(settings["overlap"]), model.architecture.smallest_size
        grid = window_grid(shape, grid_shape, settings["window"], part, least)
    except ImageError as error:
        raise ImageError(f"{request.name}: {error}") from error
    batch = min(int(settings["batch"]), len(grid))
    _check_memory(model, shape, grid, batch, device)
    known = None not in (request.voxel_size, model.voxel_size)
    prepared = _prepared(read(), recipe, grid_shape if known else None, request.name)
    total = len(grid) * len(request.structures)
    for number, structure in enumerate(request.structures):
        network = model.fused(structure)
        if device.type != "cpu":
            # The model keeps what it fused, on the CPU.
            network = copy.deepcopy(network).to(device)
        before = number * len(grid)

        def tell(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        tell(0, 0)
        try:
            values = sliding_window(
                network,
                prepared,
                window=grid.size,
                overlap=float(settings["overlap"]),
                batch_size=batch,
                device=device,
                progress=tell,
            )
        except torch.OutOfMemoryError as error:
            raise RepmodeError(
                f"the device {device} has too little memory for {batch} windows; choose cpu"
            ) from error
        # As predictions from disk: linear, whatever order images are prepared with.
        values = resample_to(values, shape, 1)
        extent = float(values.min()), float(values.max())
        yield Prediction(structure, values, _limits(values), extent, model.entries[structure].digest)


def _prepared(
    volume: NDArray[Any], recipe: Recipe, shape: tuple[int, int, int] | None, name: str
) -> NDArray[np.float32]:
    """Return what the network sees; `shape` None keeps the volume's grid."""
    if volume.dtype.kind not in "uif":
        raise ImageError(f"{name}: an image of real numbers is needed, not of {volume.dtype}")
    try:
        if shape is not None:
            volume = resample_to(volume, shape, recipe.order, anti_alias=recipe.anti_alias)
        return normalise(volume, percentiles=recipe.percentiles, empty=recipe.empty)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def _check_memory(
    model: Model, shape: Sequence[int], grid: WindowGrid, batch: int, device: torch.device
) -> None:
    own, prepared = (int(np.prod(size, dtype=np.int64)) for size in (shape, grid.shape))
    need = 4 * (_OWN * own + _PREPARED * prepared)
    if device.type == "cpu":
        need += activation_bytes(model.architecture.width, model.architecture.depth, grid.size, batch)
    free = available_memory()
    if need > free:
        raise RepmodeError(
            f"about {format_bytes(need)} of memory are needed and {format_bytes(free)} are free; predict the file by "
            "the command repmode-cl predict, which works in any memory, and open the result"
        )


def _limits(values: NDArray[np.float32]) -> tuple[float, float]:
    # A part of a large volume tells as much as all of it.
    some = values.reshape(-1)[:: max(1, values.size >> 22)]
    low, high = (float(limit) for limit in np.percentile(some, (50, 99.9)))
    return (low, high) if low < high else (low, low + 1)
