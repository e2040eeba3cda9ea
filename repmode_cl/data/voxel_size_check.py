"""Check of a volume's voxel size against the images that a structure was trained on: headers are easily wrong.

A volume ten times too coarse would be resampled without complaint and predicted without sense. The voxel sizes of
training images are kept in the provenance of each structure, and compared with those of new images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repmode_cl.errors import ImageError

__all__ = [
    "LARGEST_FACTOR",
    "TrainedVoxels",
    "check_voxel_size",
    "voxel_range_text",
    "trained_voxels",
    "voxel_size_record",
]

VoxelSize = tuple[float, float, float]

#: Largest factor, on each axis, by which voxels may be larger or smaller than those of all training images.
LARGEST_FACTOR = 1.5

_REMEDY = "state the right one with --voxel-size z,y,x, or give --force to predict it anyway"

#: Key of the provenance.
_KEY = "voxel_sizes"


@dataclass(frozen=True)
class TrainedVoxels:
    """Voxel sizes of the images that a structure was trained on, before any resampling, in um (z, y, x).

    Attributes
    ----------
    smallest, largest
        Of each axis by itself, over the images whose voxel size was known; None where there is none.
    unknown
        Number of images whose voxel size was not known; they kept their own grid.
    recorded
        Whether the three above are in the provenance; earlier models do not have them.
    grid
        Voxel size that images are resampled to; None where they keep their own.
    """

    smallest: VoxelSize | None = None
    largest: VoxelSize | None = None
    unknown: int = 0
    recorded: bool = False
    grid: VoxelSize | None = None


def voxel_size_record(sizes: Iterable[Sequence[float] | None]) -> dict[str, Any]:
    """Return the record of training images' voxel sizes (um, z, y, x) for the provenance, as JSON values."""
    stated = list(sizes)
    known = [tuple(float(step) for step in size) for size in stated if size is not None]
    record: dict[str, Any] = {"unknown": len(stated) - len(known)}
    if known:
        record["smallest"] = [min(axis) for axis in zip(*known, strict=True)]
        record["largest"] = [max(axis) for axis in zip(*known, strict=True)]
    return {_KEY: record}


def trained_voxels(provenance: Mapping[str, Any], grid: Sequence[float] | None) -> TrainedVoxels:
    """Read the record of `voxel_size_record`.

    Parameters
    ----------
    provenance
        Of a structure: ``model.entries[name].provenance``. One without a record, or with one that cannot be
        understood (a pack may come from anywhere), counts as not recorded.
    grid
        ``model.voxel_size``.
    """
    grid_size = None if grid is None else _to_voxel_size(grid)
    record = provenance.get(_KEY)
    if not isinstance(record, Mapping):
        return TrainedVoxels(grid=grid_size)
    unknown, smallest, largest = (
        record.get("unknown"),
        _to_voxel_size(record.get("smallest")),
        _to_voxel_size(record.get("largest")),
    )
    if type(unknown) is not int or unknown < 0 or (smallest is None) != (largest is None):
        return TrainedVoxels(grid=grid_size)
    return TrainedVoxels(smallest, largest, unknown, bool(unknown or smallest), grid_size)


def check_voxel_size(
    stated: Sequence[float] | None,
    trained: TrainedVoxels,
    where: str,
    force: bool = False,
    *,
    remedy: str = _REMEDY,
) -> str | None:
    """Compare the voxel size of a volume with those that a structure was trained on.

    Parameters
    ----------
    stated
        Voxel size in um (z, y, x) that the file or the user states; None where neither does.
    trained
        Of `trained_voxels`.
    where
        Name of the volume in messages: a path, or a line of a manifest.
    force
        Return the message instead of raising the error.
    remedy
        Advice in the error; by default the options of `predict`.

    Returns
    -------
    str or None
        Warning for the user; None where all is well. A voxel size that cannot be compared, because training images had
        none, is reported and not refused. So is one finer than the grid of a model whose images' own sizes were not
        recorded: such images are resampled to it as the training images were.

    Raises
    ------
    ImageError
        Unless `force`: if it is missing, or differs on an axis by more than `LARGEST_FACTOR` from those of all
        training images (where these were not recorded: if it is coarser than the model's grid by more).
    """
    wrong = (
        _check_unstated(trained) if stated is None else _check_range(_validated_size(stated, where), trained)
    )
    if wrong is None:
        return None
    text, refused = wrong
    text = f"{where}: {text}"
    if not refused:
        return text
    if not force:
        raise ImageError(f"{text}; {remedy}")
    return f"{text}; used anyway, because of force"


def voxel_range_text(trained: TrainedVoxels) -> str:
    """Return the range of the training images' voxel sizes, in words; empty where it is not known."""
    return _range_text(trained) if trained.smallest is not None else ""


def _check_unstated(trained: TrainedVoxels) -> tuple[str, bool] | None:
    """Return the problem of a volume without a voxel size, and whether it is refused."""
    if trained.smallest is None and (trained.recorded or trained.grid is None):
        return None  # as in training
    if trained.unknown:
        return (
            "no voxel size is stated, as of some images that it was trained on: its own grid is used",
            False,
        )
    return f"no voxel size is stated, and the model was trained on voxels of {_range_text(trained)}", True


def _check_range(stated: VoxelSize, trained: TrainedVoxels) -> tuple[str, bool] | None:
    voxels = f"voxels of {_um(stated)}"
    if trained.recorded and trained.smallest is None:
        if trained.grid is None:
            return None
        return (
            f"{voxels}: the images that the model was trained on stated no voxel size, so that nobody can tell if this "
            "fits",
            False,
        )
    smallest, largest = trained.smallest or trained.grid, trained.largest or trained.grid
    if smallest is None or largest is None:
        return None
    # Headers round, and a limit that is met exactly is met.
    limit = LARGEST_FACTOR * (1 + 1e-6)
    coarse = [axis for axis, a, b in zip("zyx", stated, largest, strict=True) if a > b * limit]
    fine = [axis for axis, a, b in zip("zyx", stated, smallest, strict=True) if a * limit < b]
    if not coarse and not fine:
        return None
    directions = " and ".join(
        f"{word} on {', '.join(axes)}" for word, axes in (("coarser", coarse), ("finer", fine)) if axes
    )
    text = (
        f"{voxels}, more than {LARGEST_FACTOR:g} times {directions} than those of {_range_text(trained)} that the "
        "model was trained on"
    )
    return text, trained.recorded or bool(coarse)


def _range_text(trained: TrainedVoxels) -> str:
    if trained.smallest is None or trained.largest is None:
        return "unknown size" if trained.grid is None else f"{_um(trained.grid)} (its grid)"
    if trained.smallest == trained.largest:
        return _um(trained.smallest)
    pairs = zip(trained.smallest, trained.largest, strict=True)
    ranges = " x ".join(f"{a:.4g}" if a == b else f"{a:.4g}-{b:.4g}" for a, b in pairs)
    return f"{ranges} um (z, y, x)"


def _um(size: Sequence[float]) -> str:
    return f"{' x '.join(f'{step:.4g}' for step in size)} um (z, y, x)"


def _validated_size(stated: Sequence[float], where: str) -> VoxelSize:
    size = _to_voxel_size(stated)
    if size is None:
        raise ImageError(
            f"{where}: voxel size {tuple(stated)}: three positive numbers in um (z, y, x) are needed"
        )
    return size


def _to_voxel_size(size: object) -> VoxelSize | None:
    """Return three positive numbers, or None for anything else."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 3:
        return None
    if not all(isinstance(step, (int, float)) and math.isfinite(step) and step > 0 for step in size):
        return None
    z, y, x = (float(step) for step in size)
    return z, y, x
