"""Images that a model has learned from: new splits follow it, and none of them is held out.

One check for adding, replacing, their dry run, and comparing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from repmode_cl.config import PreprocessingConfig
from repmode_cl.data.manifest import SPLITS, Problem, Row
from repmode_cl.data.preprocessing.prepare import image_part_of, voxel_size_of
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.split_record import ImagePart, TrainingRecords
from repmode_cl.data.validation.regions import gap_in_file
from repmode_cl.errors import RepmodeError

__all__ = ["follow_records", "learned_images", "record_notes"]

_DID = {"train": "trained", "val": "validated"}


def follow_records(
    rows: Iterable[Row], records: TrainingRecords, digest: Callable[[Path], str]
) -> dict[int, str]:
    """Return the split that the image of each row has in a model, by row number, for images that the model knows.

    Parameters
    ----------
    rows
        Rows of a manifest.
    records
        Of the model.
    digest
        Content of a signal file.
    """
    parts = _parts(rows, records, digest)
    return {row.number: split for row, part in parts if (split := records.split_of(part)) is not None}


def learned_images(
    rows: Iterable[Row],
    splits: Mapping[int, str],
    records: TrainingRecords,
    *,
    patch: Sequence[int],
    preprocessing: PreprocessingConfig,
    digest: Callable[[Path], str],
) -> list[Problem]:
    """Return a problem for each row that is held out, although the model has learned from its image.

    Parameters
    ----------
    rows, splits
        Rows, and the split of each by its number.
    records
        Of the model.
    patch
        Voxels (z, y, x) of a training patch; half of one must lie between what was trained on and what is held out.
    preprocessing
        Says to which voxels images are resampled.
    digest
        Content of a signal file.
    """
    problems = []
    held_out = (row for row in rows if splits[row.number] != "train")
    for row, part in _parts(held_out, records, digest):
        split = splits[row.number]
        gap = (0, 0, 0) if part.box is None else _gap(row, patch, preprocessing)
        found: dict[str, list[str]] = {}
        for name in records.learned_from:
            known = records.records[name].meeting(part, gap)
            if known is not None and SPLITS.index(known) < SPLITS.index(split):
                found.setdefault(known, []).append(name)
        if not found:
            continue
        known = min(found, key=SPLITS.index)
        listed = " and ".join(f"{_DID[how]} {', '.join(names)}" for how, names in found.items())
        message = (
            f"{row.signal.name} is held out ({split}), but it{' or what lies near it' * (part.box is not None)} "
            f"{listed} of the model: figures on it would be better than on an unseen image; set its split to "
            f"{known}, or leave the row out"
        )
        problems.append(Problem(row.number, "split", message, kind="split"))
    return problems


def record_notes(
    rows: Iterable[Row], splits: Mapping[int, str], records: TrainingRecords, followed: Mapping[int, str]
) -> list[str]:
    """Return what a person should know: images that keep the split of the model, and what cannot be compared.

    Parameters
    ----------
    rows, splits
        Rows that are prepared, and the split of each by its number.
    records
        Of the model.
    followed
        Of `follow_records`.
    """
    notes = []
    if unrecorded := records.unrecorded:
        notes.append(
            f"the model does not record which images trained {', '.join(unrecorded)}, as those of earlier versions: "
            "it cannot be checked that no held-out image is among them"
        )
    counts = Counter(splits[row.number] for row in rows if row.split is None and row.number in followed)
    if counts:
        listed = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
        notes.append(f"images that the model knows keep the split that they had there: {listed}")
    return notes


def _parts(
    rows: Iterable[Row], records: TrainingRecords, digest: Callable[[Path], str]
) -> Iterator[tuple[Row, ImagePart]]:
    """Yield the rows whose file a record names, with the part that they stand for; headers are read only of these."""
    known = {content for record in records.records.values() for content in record.images}
    if not known:
        return
    for row in rows:
        try:
            content = digest(row.signal)
            if ImagePart.of(content, None, None, None, ()).content not in known:
                continue
            yield row, image_part_of(row, content)
        except (RepmodeError, OSError):
            continue  # reported where the image is prepared


def _gap(row: Row, patch: Sequence[int], preprocessing: PreprocessingConfig) -> tuple[int, ...]:
    half = tuple(math.ceil(size / 2) for size in patch)
    recipe = PreprocessingRecipe.of(preprocessing)
    return gap_in_file(half, voxel_size_of(row), preprocessing.voxel_size, recipe)
