"""Whether a volume's voxels are of a size that a structure was trained for: a number in a header is easily wrong.

A volume ten times too coarse is resampled without complaint, and predicted without sense. What training saw is kept
in the provenance of each structure, and compared with what is to be predicted, or learned besides.
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

#: Voxels may be so much larger or smaller, on each axis, than any that training saw.
LARGEST_FACTOR = 1.5

_REMEDY = (
    "state the right one (--voxel-size z,y,x, or the column voxel_size_zyx of a manifest), or give --force to go on "
    "all the same"
)

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
        Whether the three above were written down; earlier models do not have them.
    grid
        Voxel size that images are resampled to; None where they keep their own.
    """

    smallest: VoxelSize | None = None
    largest: VoxelSize | None = None
    unknown: int = 0
    recorded: bool = False
    grid: VoxelSize | None = None


def voxel_size_record(sizes: Iterable[Sequence[float] | None]) -> dict[str, Any]:
    """Return what the provenance keeps of the voxel sizes (um, z, y, x) of training images: JSON."""
    found = list(sizes)
    known = [tuple(float(step) for step in size) for size in found if size is not None]
    record: dict[str, Any] = {"unknown": len(found) - len(known)}
    if known:
        record["smallest"] = [min(axis) for axis in zip(*known, strict=True)]
        record["largest"] = [max(axis) for axis in zip(*known, strict=True)]
    return {_KEY: record}


def trained_voxels(provenance: Mapping[str, Any], grid: Sequence[float] | None) -> TrainedVoxels:
    """Read what `voxel_size_record` wrote.

    Parameters
    ----------
    provenance
        Of a structure: ``model.entries[name].provenance``. One without a record, or with one that cannot be
        understood (a pack may come from anywhere), counts as not recorded.
    grid
        ``model.voxel_size``.
    """
    to = None if grid is None else _three(grid)
    record = provenance.get(_KEY)
    if not isinstance(record, Mapping):
        return TrainedVoxels(grid=to)
    unknown, smallest, largest = (
        record.get("unknown"),
        _three(record.get("smallest")),
        _three(record.get("largest")),
    )
    if type(unknown) is not int or unknown < 0 or (smallest is None) != (largest is None):
        return TrainedVoxels(grid=to)
    return TrainedVoxels(smallest, largest, unknown, bool(unknown or smallest), to)


def check_voxel_size(
    found: Sequence[float] | None,
    trained: TrainedVoxels,
    where: str,
    force: bool = False,
    *,
    remedy: str = _REMEDY,
) -> str | None:
    """Compare the voxel size of a volume with those that a structure was trained on.

    Parameters
    ----------
    found
        um (z, y, x) that the file, or a person, states; None where nobody does.
    trained
        Of `trained_voxels`.
    where
        Names the volume in messages: a path, or a line of a manifest.
    force
        Say what is wrong instead of refusing.
    remedy
        What a person can do, for the error; what the commands offer by default.

    Returns
    -------
    str or None
        What a person should know; None where all is well. A voxel size that cannot be compared, because training
        images had none, is told and not refused, and so is one finer than the grid of a model whose images' own were
        not recorded: such images are resampled to it as those it was trained on were.

    Raises
    ------
    ImageError
        Unless `force`: if it is missing, or differs on an axis by more than `LARGEST_FACTOR` from all that training
        saw (where that was not recorded: if it is coarser than the model's grid by more).
    """
    wrong = _missing(trained) if found is None else _apart(_checked(found, where), trained)
    if wrong is None:
        return None
    text, refused = wrong
    text = f"{where}: {text}"
    if not refused:
        return text
    if not force:
        raise ImageError(f"{text}; {remedy}")
    return f"{text}; gone on with all the same, as asked"


def voxel_range_text(trained: TrainedVoxels) -> str:
    """Return the range of voxel sizes that training saw, in words; empty where that is not known."""
    return _said(trained) if trained.smallest is not None else ""


def _missing(trained: TrainedVoxels) -> tuple[str, bool] | None:
    """Say what is wrong with a volume that states no voxel size, and whether it is to be refused."""
    if trained.smallest is None and (trained.recorded or trained.grid is None):
        return None  # as in training
    if trained.unknown:
        return (
            "no voxel size is stated, as of some images that it was trained on: its own grid is used",
            False,
        )
    return f"no voxel size is stated, and the model was trained on voxels of {_said(trained)}", True


def _apart(found: VoxelSize, trained: TrainedVoxels) -> tuple[str, bool] | None:
    voxels = f"voxels of {_um(found)}"
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
    coarse = [axis for axis, a, b in zip("zyx", found, largest, strict=True) if a > b * limit]
    fine = [axis for axis, a, b in zip("zyx", found, smallest, strict=True) if a * limit < b]
    if not coarse and not fine:
        return None
    said = " and ".join(
        f"{word} on {', '.join(axes)}" for word, axes in (("coarser", coarse), ("finer", fine)) if axes
    )
    text = (
        f"{voxels}, more than {LARGEST_FACTOR:g} times {said} than those of {_said(trained)} that the model was "
        "trained on"
    )
    return text, trained.recorded or bool(coarse)


def _said(trained: TrainedVoxels) -> str:
    if trained.smallest is None or trained.largest is None:
        return "unknown size" if trained.grid is None else f"{_um(trained.grid)} (its grid)"
    if trained.smallest == trained.largest:
        return _um(trained.smallest)
    pairs = zip(trained.smallest, trained.largest, strict=True)
    ranges = " x ".join(f"{a:.4g}" if a == b else f"{a:.4g}-{b:.4g}" for a, b in pairs)
    return f"{ranges} um (z, y, x)"


def _um(size: Sequence[float]) -> str:
    return f"{' x '.join(f'{step:.4g}' for step in size)} um (z, y, x)"


def _checked(found: Sequence[float], where: str) -> VoxelSize:
    size = _three(found)
    if size is None:
        raise ImageError(
            f"{where}: voxel size {tuple(found)}: three positive numbers in um (z, y, x) are needed"
        )
    return size


def _three(size: object) -> VoxelSize | None:
    """Return three positive numbers, or None for anything else."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 3:
        return None
    if not all(isinstance(step, (int, float)) and math.isfinite(step) and step > 0 for step in size):
        return None
    z, y, x = (float(step) for step in size)
    return z, y, x
