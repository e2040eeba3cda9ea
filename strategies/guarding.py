"""Images that are learned from must have voxels of a size that the model was trained for, as those it predicts."""

from __future__ import annotations

from collections.abc import Sequence

from repmode_cl.strategies.preparing import origin_of

from repmode_cl.data.manifest import Manifest, Problem
from repmode_cl.data.prepare import voxel_size_of
from repmode_cl.data.voxel_guard import check_voxel_size, trained_voxels
from repmode_cl.errors import ImageError, ManifestError, RepmodeError
from repmode_cl.store import Model

__all__ = ["guard_voxels", "voxel_problems"]

_REMEDY = "state the right one in the column voxel_size_zyx, or give --force (force=True) to learn from it all the same"

#: Rows that are told one by one.
_TOLD = 5


def voxel_problems(
    model: Model, manifest: Manifest, structure: str, *, force: bool = False
) -> tuple[list[Problem], list[str]]:
    """Compare the voxel size of each image of a structure with those that the base was trained on.

    Parameters
    ----------
    model, manifest, structure
        The manifest's rows of `structure`; headers are read. Those that cannot be are left to whoever prepares them.
    force
        Make notes of problems.

    Returns
    -------
    list of Problem
        What is refused.
    list of str
        What a person should know; of many rows the first few.
    """
    trained = trained_voxels(origin_of(model), model.voxel_size)
    problems: list[Problem] = []
    notes: list[str] = []
    for row in manifest.for_structure(structure):
        try:
            found = voxel_size_of(row)
        except (RepmodeError, OSError):
            continue
        try:
            note = check_voxel_size(found, trained, row.signal.name, force, remedy=_REMEDY)
        except ImageError as error:
            problems.append(Problem(row.number, "voxel_size_zyx", str(error)))
        else:
            notes += [f"line {row.number}: {note}"] if note else []
    return problems, _shortened(notes)


def guard_voxels(model: Model, manifest: Manifest, structure: str, *, force: bool = False) -> list[str]:
    """Refuse images whose voxels are not of a size that the model was trained for; return notes.

    Raises
    ------
    ManifestError
        Naming each such row, unless `force`.
    """
    problems, notes = voxel_problems(model, manifest, structure, force=force)
    if problems:
        listed = "\n".join(f"  {line}" for line in _shortened([str(problem) for problem in problems]))
        raise ManifestError(
            f"{manifest.path}: voxels of another size than the model was trained on\n{listed}"
        )
    return notes


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _TOLD
    return [*lines[:_TOLD], *([f"and {more} more such images"] if more > 0 else [])]
