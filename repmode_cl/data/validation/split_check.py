"""Rows of one image in several splits: what is held out must not be trained on. Checked before every training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from repmode_cl.config import PreprocessingConfig
from repmode_cl.data.manifest import Manifest, Problem, Row
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.validation.regions import check_groups, check_regions
from repmode_cl.data.validation.rows import inspect_rows
from repmode_cl.errors import ManifestError, counted

__all__ = ["refuse_split_problems", "split_problems"]

#: Rows that a message lists at most.
_LISTED = 5


def split_problems(
    rows: Iterable[Row],
    splits: Mapping[int, str],
    *,
    patch: Sequence[int],
    preprocessing: PreprocessingConfig,
    digest: Callable[[Path], str],
    workers: int = 1,
) -> list[Problem]:
    """Return the rows whose region is repeated, or lies too near to one of another split.

    Parameters
    ----------
    rows
        Rows that train or are held out.
    splits
        Split of each, by its number; decided for those whose group names none.
    patch
        Voxels (z, y, x) of a training patch; half of one must lie between splits.
    preprocessing
        Says to which voxels images are resampled.
    digest
        Content of a signal file: copies of a file are one image. An image that has no digest is not checked.
    workers
        Processes that read headers.
    """
    images: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        try:
            name = digest(row.signal)
        except OSError:
            continue  # reported where it is read
        # A row without a group has the split of its image: its own, if it names one.
        images[name].append(replace(row, split=splits[row.number]) if row.group is not None else row)
    shared: list[Row] = []
    for members in images.values():
        # Headers are read only of images that could be a problem: most are in one split, once for each structure.
        several = len({splits[row.number] for row in members}) > 1
        if several or len({row.structure for row in members}) < len(members):
            shared += members
    half = tuple(math.ceil(size / 2) for size in patch)
    recipe = PreprocessingRecipe.of(preprocessing)
    voxel_size = preprocessing.voxel_size
    inspected = inspect_rows(shared, depth=1, voxel_size=voxel_size, recipe=recipe, workers=workers)
    names: dict[Path, object] = {row.signal: digest(row.signal) for row in shared}
    problems = check_regions(inspected, None, half, voxel_size, recipe, names)
    problems += check_groups(row for members in images.values() for row in members)
    return sorted(problems, key=lambda problem: problem.row)


def refuse_split_problems(manifest: Manifest, problems: Sequence[Problem]) -> None:
    """Refuse what `split_problems` found.

    Raises
    ------
    ManifestError
        Naming the first rows.
    """
    if problems:
        raise ManifestError(split_problems_message(manifest, problems))


def split_problems_message(manifest: Manifest, problems: Sequence[Problem]) -> str:
    """Return a message that names the first rows of `problems`."""
    more = len(problems) - _LISTED
    lines = [f"  {problem}" for problem in problems[:_LISTED]] + [f"  and {more} more"] * (more > 0)
    listed = "\n".join(lines)
    return (
        f"{manifest.path}: {counted(len(problems), 'row')} with a region or split that cannot be trained on: what is "
        f"held out would be known from training, or an image would count twice\n{listed}"
    )
