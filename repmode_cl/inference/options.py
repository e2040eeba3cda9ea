"""What a prediction is asked for, and what it says of a file that it wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from repmode_cl.inference.rescale import Rescale
from repmode_cl.inference.window_batches import Network

__all__ = ["PredictedFile", "Settings"]


@dataclass(frozen=True)
class PredictedFile:
    """What `predict_file` wrote, and how.

    Attributes
    ----------
    path
        OME-TIFF, OME-Zarr or ``.npy``.
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
        Wall time of this call, in which all structures were predicted together.
    values
        What the numbers are: ``z-score units``, or how they were rescaled.
    metrics
        ``mse``, ``mae``, ``r2`` and ``pearson`` on the model's grid, where the truth was named.
    existed
        Whether the file was there already, and nothing was done.
    """

    path: Path
    structure: str
    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None
    grid: tuple[int, int, int]
    notes: tuple[str, ...]
    seconds: float
    values: str = "z-score units"
    metrics: Mapping[str, float] | None = None
    existed: bool = False


class Settings(TypedDict, total=False):
    """The keywords of `predict_file`, which says what they mean."""

    channel: str | int | None
    window: Sequence[int] | None
    overlap: float | None
    device: str
    scene: int | str | None
    t: int | None
    voxel_size: Sequence[float] | None
    force: bool
    rescale: Rescale | str | None
    stack: bool
    targets: Mapping[str, str | int] | None
    memory: int | str | None
    restart: bool
    keep: bool
    networks: Mapping[str, Network] | None
    progress: Callable[[int, int], None] | None
    status: Callable[[str], None] | None
    stop_after_windows: int | None
