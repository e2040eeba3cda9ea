"""From an image file to a file of one structure's prediction: what `repmode-cl predict` does.

The file is brought onto the model's voxel size and z-scored as in training, predicted in Gaussian windows
with the structure's fused network, and brought back onto the file's own grid.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repmode_cl.data.normalise import normalise, resample, resample_to
from repmode_cl.data.readers import open_image
from repmode_cl.devices import resolve_device
from repmode_cl.errors import ImageError, RepmodeError, UnknownStructureError
from repmode_cl.inference.predict import sliding_window
from repmode_cl.inference.volume_io import write_ome_tiff

if TYPE_CHECKING:
    from repmode_cl.store import Model

__all__ = ["PredictedFile", "predict_file"]


@dataclass(frozen=True)
class PredictedFile:
    """What `predict_file` wrote, and how.

    Attributes
    ----------
    path
        The OME-TIFF: float32 (Z, Y, X) in z-score units.
    structure
        What it predicts.
    shape
        Voxels (Z, Y, X), those of the input.
    voxel_size
        um (z, y, x) of the input, or None where the file states none.
    grid
        Voxels (Z, Y, X) that the network saw.
    notes
        What a reader of the result should know: such as that an unknown voxel size was taken for the model's.
    seconds
        Wall time.
    """

    path: Path
    structure: str
    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None
    grid: tuple[int, int, int]
    notes: tuple[str, ...]
    seconds: float


def predict_file(
    model: Model | str | Path,
    structure: str,
    in_path: str | Path,
    out_path: str | Path,
    *,
    channel: str | int | None = None,
    window: Sequence[int] | None = None,
    overlap: float | None = None,
    device: str = "auto",
    scene: int | None = None,
    t: int | None = None,
    voxel_size: Sequence[float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PredictedFile:
    """Predict one structure of an image file.

    Parameters
    ----------
    model
        A model, or its folder.
    structure
        Name of one of its structures.
    in_path
        An image file with a transmitted-light channel.
    out_path
        OME-TIFF to write: float32 in z-score units, on the grid and with the voxel size of the input.
    channel
        Name or number (from 0) of the transmitted-light channel; None where the file has one channel.
    window, overlap
        Voxels (z, y, x) of a window on the model's grid, and the part its neighbour repeats (in [0, 1)); None
        takes the model's.
    device
        ``auto`` (cuda where there is one, else cpu), ``cpu``, ``cuda`` or ``cuda:N``.
    scene, t
        Which of several scenes or time points.
    voxel_size
        um (z, y, x) of the input, where the file states none or a wrong one.
    progress
        Called with the number of windows done and their total.

    Raises
    ------
    UnknownStructureError
        If the model has no such structure.
    ModelError
        If the model is missing or damaged.
    ImageError
        If the image cannot be read, is constant or not finite, or `out_path` is the input or no TIFF.
    """
    started = time.perf_counter()
    in_path, out_path = Path(in_path), Path(out_path)
    # All that can be refused is refused before the network is loaded and hours are spent.
    if out_path.suffix.lower() not in (".tif", ".tiff"):
        raise ImageError(f"{out_path}: predictions are OME-TIFFs; give a name that ends in .ome.tif")
    if out_path.exists() and in_path.exists() and out_path.samefile(in_path):
        raise ImageError(f"{out_path}: is the input; give the prediction a name of its own")
    if overlap is not None and not 0 <= overlap < 1:
        raise RepmodeError(f"overlap {overlap}: a number from 0 to below 1 is needed")
    chosen = resolve_device(device)
    if isinstance(model, (str, Path)):
        from repmode_cl.store import Model

        model = Model.open(model)
    if structure not in model.structures:
        raise UnknownStructureError(structure, model.structures, f"the model {model.path}")

    with open_image(in_path, scene=scene) as image:
        known = image.voxel_size if voxel_size is None else _micrometres(voxel_size)
        shape = image.shape
        volume = image.read(image.channel_index(channel), scene=scene, t=t)
    notes = []
    if model.voxel_size is not None and known is None:
        notes.append(
            f"{in_path.name} states no voxel size: it was taken to be the model's, {_um(model.voxel_size)}"
        )
    try:
        if model.voxel_size is not None and known is not None:
            order = int(model.preprocessing.get("order", 1))
            volume = resample(volume, known, model.voxel_size, order)
        grid = (volume.shape[0], volume.shape[1], volume.shape[2])
        volume = normalise(volume)
        network = model.fused(structure)
        if chosen.type != "cpu":
            # The model keeps what it fused, on the CPU.
            network = copy.deepcopy(network).to(chosen)
        found = sliding_window(
            network,
            volume,
            window=_three(window if window is not None else model.inference["window"]),
            overlap=float(model.inference["overlap"] if overlap is None else overlap),
            batch_size=int(model.inference["batch"]),
            device=chosen,
            progress=progress,
        )
    except ImageError as error:
        raise ImageError(f"{in_path}: {error}") from error
    if grid != shape:
        found = resample_to(found, shape, order=1)
    write_ome_tiff(
        out_path,
        found,
        known,
        channel_name=structure,
        description=f"{structure} predicted by repmode-cl from {in_path.name}, in z-score units",
    )
    return PredictedFile(out_path, structure, shape, known, grid, tuple(notes), time.perf_counter() - started)


def _micrometres(size: Sequence[float]) -> tuple[float, float, float]:
    if len(size) != 3 or not all(0 < float(one) < float("inf") for one in size):
        raise RepmodeError(f"voxel size {tuple(size)}: three positive numbers in um (z, y, x) are needed")
    z, y, x = (float(one) for one in size)
    return z, y, x


def _three(window: Sequence[int]) -> tuple[int, int, int]:
    if len(window) != 3 or any(int(size) < 1 for size in window):
        raise RepmodeError(f"window {tuple(window)}: three positive whole numbers (z, y, x) are needed")
    z, y, x = (int(size) for size in window)
    return z, y, x


def _um(voxel_size: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in voxel_size) + " um (z, y, x)"
