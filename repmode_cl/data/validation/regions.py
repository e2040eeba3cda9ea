"""Comparison of the rows of one image: duplicates, regions that overlap, and groups that straddle splits."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from repmode_cl.data.geometry import Box, VoxelSize
from repmode_cl.data.manifest import Problem, Row
from repmode_cl.data.preprocessing.content_digest import content_digest, file_stamp
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.validation.rows import InspectedRow

__all__ = ["check_groups", "check_regions", "content_names", "gap_in_file"]

#: Most lines that one message names.
_MOST_LINES = 20


def check_groups(rows: Iterable[Row]) -> list[Problem]:
    """Return a problem for each row whose named group is already in another split."""
    problems = []
    first: dict[str, Row] = {}
    for row in rows:
        if row.group is None or row.split is None:
            continue
        other = first.setdefault(row.group, row)
        if other.split != row.split:
            message = (
                f"group {row.group!r} straddles splits: {row.split} here, {other.split} on line "
                f"{other.number}; a group stays in one"
            )
            problems.append(Problem(row.number, "group", message, kind="split"))
    return problems


def check_regions(
    inspected: Sequence[InspectedRow],
    gap: tuple[int, int, int] | None,
    half_patch: tuple[int, ...],
    voxel_size: VoxelSize | None,
    recipe: PreprocessingRecipe,
    names: dict[Path, object],
) -> list[Problem]:
    """Compare the rows of each image with one another.

    Parameters
    ----------
    inspected
        Rows; those without a readable signal are skipped.
    gap
        Fewest voxels of the file between regions of different splits; None takes `half_patch`.
    half_patch
        In voxels of `voxel_size`.
    voxel_size
        (z, y, x) in um that images will be resampled to; None for their own.
    recipe
        Decides which axes are resampled.
    names
        Names of the files, of `content_names`.
    """
    fields: dict[object, list[InspectedRow]] = defaultdict(list)
    for one in inspected:
        signal = one.images.get("signal")
        if signal is not None:
            fields[names[one.row.signal], signal.header.scene, signal.t].append(one)
    problems: list[Problem] = []
    for members in fields.values():
        needed = gap or gap_in_file(half_patch, members[0].voxel_size, voxel_size, recipe)
        problems += _check_image(members, needed)
    return problems


def gap_in_file(
    half_patch: tuple[int, ...],
    voxel: VoxelSize | None,
    voxel_size: VoxelSize | None,
    recipe: PreprocessingRecipe,
) -> tuple[int, ...]:
    """Return half a patch (z, y, x), given in voxels of `voxel_size`, in voxels of a file with the size `voxel`."""
    if voxel is None or voxel_size is None:
        return half_patch
    target = recipe.target_voxel(voxel, voxel_size)
    return tuple(math.ceil(n * b / a - 1e-6) for n, a, b in zip(half_patch, voxel, target, strict=True))


@dataclass
class _RowsOfBox:
    """All rows of one image that stand for the same voxels of it."""

    box: Box
    rows: list[InspectedRow] = field(default_factory=list)


def _check_image(members: list[InspectedRow], needed: tuple[int, ...]) -> Iterator[Problem]:
    boxes: dict[tuple[tuple[int, int], ...], _RowsOfBox] = {}
    for one in members:
        box = one.region.resolve(one.images["signal"].shape)
        key = tuple((part.start, part.stop) for part in box)
        boxes.setdefault(key, _RowsOfBox(box)).rows.append(one)
    messages: dict[tuple[int, str], list[int]] = defaultdict(list)
    for rows in boxes.values():
        _check_same_box(rows, messages)
    for first, second in _close_boxes(list(boxes.values()), needed):
        _check_box_pair(first, second, needed, messages)
    for (number, message), lines in sorted(messages.items()):
        lines = sorted(set(lines))
        listed = ("line " if len(lines) == 1 else "lines ") + ", ".join(map(str, lines[:_MOST_LINES]))
        listed += f" and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
        column = "region" if "region" in message else ""
        yield Problem(number, column, message.format(lines=listed), kind="split" if column else "duplicate")
    splits = sorted({one.row.split for one in members if one.row.split is not None})
    for one in members:
        row = one.row
        if row.split is None and row.group is None and len(splits) > 1:
            what = f"names no split, but other rows of this image are in {' and '.join(splits)}; name it"
            yield Problem(row.number, "split", what, kind="split")


def _structure(one: InspectedRow) -> tuple[str, int]:
    return one.row.structure, one.images["signal"].channel


def _target(one: InspectedRow) -> tuple[object, ...]:
    target = one.images.get("target")
    return (one.row.target, one.row.target_channel if target is None else target.channel)


def _check_same_box(box: _RowsOfBox, messages: dict[tuple[int, str], list[int]]) -> None:
    """Compare rows that stand for the same voxels, each with the first one of its structure and channel."""
    first: dict[object, InspectedRow] = {}
    by_structure: dict[tuple[str, int], InspectedRow] = {}
    by_split: dict[str, list[int]] = defaultdict(list)
    for one in sorted(box.rows, key=lambda one: one.row.number):
        number, split, structure = one.row.number, one.row.split, _structure(one)
        same = first.setdefault((structure, _target(one)), one)
        if same is not one:
            messages[number, "is the same as {lines}: remove one"].append(same.row.number)
        elif by_structure.setdefault(structure, one) is not one:
            messages[number, "the region overlaps that of {lines}, of the same structure"].append(
                by_structure[structure].row.number
            )
        elif split:
            for other, numbers in by_split.items():
                if other != split:
                    message = f"the region ({split}) overlaps that of {{lines}} ({other})"
                    messages[number, message] += numbers[: _MOST_LINES + 1]
        if split:
            by_split[split].append(number)
    # For the comparison with other boxes a few rows of each structure and split stand for thousands.
    representatives: dict[object, list[InspectedRow]] = defaultdict(list)
    for one in box.rows:
        alike = representatives[_structure(one), one.row.split]
        if len(alike) <= _MOST_LINES:
            alike.append(one)
    box.rows = [one for alike in representatives.values() for one in alike]


def _check_box_pair(
    one: _RowsOfBox, other: _RowsOfBox, needed: tuple[int, ...], messages: dict[tuple[int, str], list[int]]
) -> None:
    """Compare the rows of two boxes that overlap or are too near."""
    distances = _distances(one.box, other.box)
    overlap = max(distances) < 0
    pairs = itertools.product(one.rows, other.rows)
    for first, second in (sorted(pair, key=lambda member: member.row.number) for pair in pairs):
        a, b = first.row, second.row
        if overlap and _structure(first) == _structure(second):
            message = "the region overlaps that of {lines}, of the same structure"
        elif a.split == b.split or not a.split or not b.split:
            continue
        elif overlap:
            message = f"the region ({b.split}) overlaps that of {{lines}} ({a.split})"
        else:
            message = (
                f"the region ({b.split}) is only {max(distances)} voxels from {{lines}} ({a.split}); keep "
                f"{', '.join(map(str, needed))} voxels along z, y or x between splits (half a patch), or check "
                "with the patch that is trained with"
            )
        lines = messages[b.number, message]
        if len(lines) <= _MOST_LINES:  # a row that overlaps everything is reported with the first lines only
            lines.append(a.number)


def _close_boxes(boxes: list[_RowsOfBox], needed: tuple[int, ...]) -> Iterator[tuple[_RowsOfBox, _RowsOfBox]]:
    """Yield the pairs of boxes that overlap, or are nearer than `needed` along every axis.

    They are found by a sweep along the axis that separates most of them, so that a field cut into thousands of
    regions is compared in about as many steps.
    """
    axis = max(range(3), key=lambda axis: len({rows.box[axis].start for rows in boxes}))
    open_boxes: list[_RowsOfBox] = []
    for rows in sorted(boxes, key=lambda rows: rows.box[axis].start):
        start = rows.box[axis].start
        open_boxes = [one for one in open_boxes if start - one.box[axis].stop < needed[axis]]
        for one in open_boxes:
            distances = _distances(one.box, rows.box)
            if max(distances) < 0 or all(d < least for d, least in zip(distances, needed, strict=True)):
                yield one, rows
        open_boxes.append(rows)


def _distances(one: Box, other: Box) -> list[int]:
    """Return the voxels between two boxes along each axis; negative where they overlap."""
    return [max(b.start - a.stop, a.start - b.stop) for a, b in zip(one, other, strict=True)]


def content_names(paths: Iterable[Path], compare_content: bool) -> dict[Path, object]:
    """Return a name for each file, the same for copies of one content; only files of one size can be copies.

    Parameters
    ----------
    paths
        Files and folders of images.
    compare_content
        Read files of the same size and name them by their content; else every path has its own name.
    """
    names: dict[Path, object] = {path: path.absolute() for path in dict.fromkeys(paths)}
    if not compare_content:
        return names
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in names:
        with suppress(OSError, ValueError):  # the check of headers reports what cannot be read
            if path.is_file() or path.is_dir():  # opening a pipe would wait for ever
                # Of the file only, not of the files it names: there may be a hundred thousand.
                size = file_stamp(path).size if path.is_dir() else path.stat().st_size
                sizes[size].append(path)
    for alike in sizes.values():
        if len(alike) > 1:
            for path in alike:
                with suppress(OSError):
                    names[path] = content_digest(path)
    return names
