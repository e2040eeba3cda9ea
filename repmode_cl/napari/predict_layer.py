"""Prediction of a volume in memory: prepared as in training, predicted, brought back onto its own grid.

`repmode_cl.inference.predict_file` does the same from disk to disk, to the same values but for rounding where the image
is resampled. Nothing here uses napari or Qt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.resampling import resample_to
from repmode_cl.data.voxel_size_check import check_voxel_size, trained_voxels
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.inference.predict_file import fused_network_on
from repmode_cl.inference.prepare_volume import prepare_volume
from repmode_cl.inference.sliding_window import sliding_window, sliding_windows
from repmode_cl.inference.streaming.memory_plan import activation_bytes
from repmode_cl.inference.trust_channels import (
    confidence_text,
    extra_channels,
    spread_key,
    window_networks,
)
from repmode_cl.inference.windows import WindowGrid, checked_window_grid
from repmode_cl.model import Model
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.memory import available_memory, format_bytes

__all__ = ["predict_volume", "VolumeRequest", "PredictedVolume"]

#: Most float32 arrays in memory at once: of the image's size (itself, one result), and of the prepared grid's size
#: (resampled, z-scored, sum, weights).
_IMAGE_ARRAYS, _GRID_ARRAYS = 2, 4


@dataclass(frozen=True)
class VolumeRequest:
    """Request to predict structures of a volume.

    Attributes
    ----------
    model
        Open.
    structures
        Names.
    voxel_size
        um (z, y, x) of the volume; None where it is unknown.
    name
        Name of the volume, for messages.
    force
        Continue where the voxel size is missing or far from those of the training images.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    remedy
        Advice in messages about a voxel size that is missing or far off.
    confidence
        Predict each window flipped too, for a volume of the half-width of an interval about each prediction.
    volumes
        Number of volumes whose results are kept in memory: this one and, of a film, others of the same size.
    """

    model: Model
    structures: tuple[str, ...]
    voxel_size: tuple[float, float, float] | None
    name: str
    force: bool = False
    device: str = "auto"
    remedy: str = "state the right one, or continue by force"
    confidence: bool = False
    volumes: int = 1

    def check(self) -> tuple[str, ...]:
        """Check the structures and the voxel size, and return notes on the latter for the user.

        Raises
        ------
        RepmodeError
            If no structure is named, one is not in the model, the voxel size is missing or far off, or the model has no
            calibration for the confidence.
        """
        if not self.structures:
            raise RepmodeError("no structure is chosen; choose at least one")
        entries, notes = self.model.entries, []
        for name in self.structures:
            if name not in entries:  # removed from the model since it was opened
                raise RepmodeError(f"the model {self.model.path} has no {name!r} any more; open it again")
            trained = trained_voxels(entries[name].provenance, self.model.voxel_size)
            notes.append(
                check_voxel_size(self.voxel_size, trained, self.name, self.force, remedy=self.remedy)
            )
            if self.confidence:
                notes.append(f"{name}: {confidence_text(self.model, name)}")
        return tuple(dict.fromkeys(note for note in notes if note is not None))


@dataclass(frozen=True)
class PredictedVolume:
    """Prediction of one structure.

    Attributes
    ----------
    structure
        Its name.
    values
        float32 (Z, Y, X) on the volume's own grid, in z-score units.
    limits
        Lower and upper value to display: half of the voxels are dark, so that the image below is visible, and one in
        a thousand is saturated.
    extent
        Least and largest value.
    digest
        Digest of the structure in the model.
    confidence
        What the interval claims, where the values are its half-width; empty for a prediction.
    """

    structure: str
    values: NDArray[np.float32]
    limits: tuple[float, float]
    extent: tuple[float, float]
    digest: str
    confidence: str = ""


def predict_volume(
    request: VolumeRequest,
    read: Callable[[], NDArray[Any]],
    shape: Sequence[int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[PredictedVolume]:
    """Predict one structure after the other.

    Parameters
    ----------
    request
        What to predict.
    read
        Returns the volume (Z, Y, X), real numbers; called once, after everything that can be refused without it.
    shape
        Its voxels (Z, Y, X).
    progress
        Called with the number of windows done and their total, of all structures together, after each batch. An
        exception that it raises ends the prediction: so it is cancelled.

    Yields
    ------
    PredictedVolume
        One for each structure, as soon as it is finished.

    Raises
    ------
    RepmodeError
        If the request, the volume or the model cannot be used, or memory is too small.
    """
    request.check()
    model, device = request.model, resolve_device(request.device)
    recipe = PreprocessingRecipe.from_json(model.preprocessing)
    window, overlap = model.inference["window"], float(model.inference["overlap"])
    try:
        grid_shape = recipe.grid(shape, request.voxel_size, model.voxel_size, remedy="State the right one")
        grid = checked_window_grid(shape, grid_shape, window, overlap, model.architecture.smallest_size)
    except ImageError as error:
        raise ImageError(f"{request.name}: {error}") from error
    batch = min(int(model.inference["batch"]), len(grid))
    kept = (request.volumes - 1) * len(request.structures) * (1 + request.confidence)
    _check_memory(model, shape, grid, batch, device, twice=request.confidence, kept=kept)
    resampled = None not in (request.voxel_size, model.voxel_size)
    prepared = prepare_volume(read(), recipe, grid_shape if resampled else None, request.name)
    total = len(grid) * len(request.structures)
    for number, structure in enumerate(request.structures):
        network = fused_network_on(model, structure, device)
        before = number * len(grid)

        def report(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        report(0, 0)
        networks = {structure: network}
        if request.confidence:
            networks = dict(window_networks(model, networks, device, confidence=True).networks)
        how: dict[str, Any] = {
            "window": grid.size,
            "overlap": overlap,
            "batch_size": batch,
            "device": device,
            "progress": report,
            "weights": model.inference.get("weights", "floored"),
        }
        try:
            if request.confidence:
                results = sliding_windows(list(networks.values()), prepared, **how)
            else:
                results = [sliding_window(network, prepared, **how)]
        except torch.OutOfMemoryError as error:
            raise RepmodeError(
                f"the device {device} has too little memory for {batch} windows; choose cpu"
            ) from error
        # As in predictions from disk: linear, whatever order images are prepared with.
        found = {
            key: resample_to(values, shape, 1, corners=recipe.before_resampling)
            for key, values in zip(networks, results, strict=True)
        }
        del results
        digest = model.entries[structure].digest
        yield _volume(structure, found.pop(structure), digest)
        if request.confidence:
            [channel] = extra_channels(model, structure, PredictionOptions(confidence=True))
            half_width = channel.convert(found.pop(spread_key(structure))).astype(np.float32, copy=False)
            yield _volume(structure, half_width, digest, confidence_text(model, structure))


def _volume(
    structure: str, values: NDArray[np.float32], digest: str, confidence: str = ""
) -> PredictedVolume:
    extent = float(values.min()), float(values.max())
    limits = (0.0, max(1.0, _limits(values)[1])) if confidence else _limits(values)
    return PredictedVolume(structure, values, limits, extent, digest, confidence)


def _check_memory(
    model: Model,
    shape: Sequence[int],
    grid: WindowGrid,
    batch: int,
    device: torch.device,
    *,
    twice: bool,
    kept: int,
) -> None:
    """Refuse a prediction that does not fit into the free memory; with a confidence there are two results.

    `kept` more results of the image's size stay in memory.
    """
    image_voxels, grid_voxels = (int(np.prod(size, dtype=np.int64)) for size in (shape, grid.shape))
    need = 4 * ((_IMAGE_ARRAYS + twice + kept) * image_voxels + (_GRID_ARRAYS + twice) * grid_voxels)
    if device.type == "cpu":
        need += activation_bytes(model.architecture.width, model.architecture.depth, grid.size, batch)
    free = available_memory()
    if need > free:
        raise RepmodeError(
            f"about {format_bytes(need)} of memory are needed and {format_bytes(free)} are free; predict the file by "
            "the command repmode-cl predict, which works in any memory, and open the result"
        )


def _limits(values: NDArray[np.float32]) -> tuple[float, float]:
    # A part of a large volume has nearly the percentiles of all of it.
    sample = values.reshape(-1)[:: max(1, values.size >> 22)]
    low, high = (float(limit) for limit in np.percentile(sample, (50, 99.9)))
    return (low, high) if low < high else (low, low + 1)
