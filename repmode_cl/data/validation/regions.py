"""Rows of one image against one another: duplicates, regions that overlap, and groups that straddle splits."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from repmode_cl.data.manifest import Problem, Row
from repmode_cl.data.preprocessing.content_digest import content_digest, stamp_of
from repmode_cl.data.preprocessing.recipe import Recipe
from repmode_cl.data.validation.rows import InspectedRow

__all__ = ["check_groups", "check_regions", "same_files"]

Triple = tuple[float, float, float]
Span = tuple[slice, slice, slice]

#: Lines that one message names at most.
_LINES = 20


def check_groups(rows: Iterable[Row]) -> list[Problem]:
    """Return the rows whose named group stands in another split already."""
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
    looked: Sequence[InspectedRow],
    gap: tuple[int, int, int] | None,
    half_patch: tuple[int, ...],
    voxel_size: Triple | None,
    recipe: Recipe,
    names: dict[Path, object],
) -> list[Problem]:
    """Compare the rows of each image with one another.

    Parameters
    ----------
    looked
        Rows; those whose signal was not found are left out.
    gap
        Fewest voxels of the file between regions of different splits; None takes `half_patch`.
    half_patch
        In voxels of `voxel_size`.
    voxel_size
        (z, y, x) in um that images will be resampled to; None for their own.
    recipe
        Says which axes will be.
    names
        A name for each file that copies of it share, of `same_files`.
    """
    fields: dict[object, list[InspectedRow]] = defaultdict(list)
    for one in looked:
        signal = one.images.get("signal")
        if signal is not None:
            fields[names[one.row.signal], signal.header.scene, signal.t].append(one)
    problems: list[Problem] = []
    for members in fields.values():
        needed: tuple[int, ...] | None = gap
        voxel = members[0].voxel_size
        if needed is None:
            needed = half_patch
            if voxel is not None and voxel_size is not None:  # half a patch, in voxels of the file
                target = recipe.target_voxel(voxel, voxel_size)
                needed = tuple(
                    math.ceil(n * b / a - 1e-6) for n, a, b in zip(half_patch, voxel, target, strict=True)
                )
        problems += _one_image(members, needed)
    return problems


@dataclass
class _Box:
    """All rows of one image that stand for the same voxels of it."""

    span: Span
    rows: list[InspectedRow] = field(default_factory=list)


def _one_image(members: list[InspectedRow], needed: tuple[int, ...]) -> Iterator[Problem]:
    boxes: dict[tuple[tuple[int, int], ...], _Box] = {}
    for one in members:
        span = one.region.resolve(one.images["signal"].shape)
        key = tuple((part.start, part.stop) for part in span)
        boxes.setdefault(key, _Box(span)).rows.append(one)
    said: dict[tuple[int, str], list[int]] = defaultdict(list)
    for box in boxes.values():
        _within(box, said)
    for first, second in _near(list(boxes.values()), needed):
        _between(first, second, needed, said)
    for (number, message), lines in sorted(said.items()):
        lines = sorted(set(lines))
        listed = ("line " if len(lines) == 1 else "lines ") + ", ".join(map(str, lines[:_LINES]))
        listed += f" and {len(lines) - _LINES} more" if len(lines) > _LINES else ""
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


def _within(box: _Box, said: dict[tuple[int, str], list[int]]) -> None:
    """Compare rows that stand for the same voxels, each with the first one of its kind."""
    first: dict[object, InspectedRow] = {}
    by_structure: dict[tuple[str, int], InspectedRow] = {}
    by_split: dict[str, list[int]] = defaultdict(list)
    for one in sorted(box.rows, key=lambda one: one.row.number):
        number, split, kind = one.row.number, one.row.split, _structure(one)
        same = first.setdefault((kind, _target(one)), one)
        if same is not one:
            said[number, "is the same as {lines}: remove one"].append(same.row.number)
        elif by_structure.setdefault(kind, one) is not one:
            said[number, "the region overlaps that of {lines}, of the same structure"].append(
                by_structure[kind].row.number
            )
        elif split:
            for other, numbers in by_split.items():
                if other != split:
                    message = f"the region ({split}) overlaps that of {{lines}} ({other})"
                    said[number, message] += numbers[: _LINES + 1]
        if split:
            by_split[split].append(number)
    # For the comparison with other boxes a few rows of each kind stand for thousands.
    kept: dict[object, list[InspectedRow]] = defaultdict(list)
    for one in box.rows:
        alike = kept[_structure(one), one.row.split]
        if len(alike) <= _LINES:
            alike.append(one)
    box.rows = [one for alike in kept.values() for one in alike]


def _between(one: _Box, other: _Box, needed: tuple[int, ...], said: dict[tuple[int, str], list[int]]) -> None:
    """Compare the rows of two boxes that overlap or are too near."""
    apart = [max(q.start - p.stop, p.start - q.stop) for p, q in zip(one.span, other.span, strict=True)]
    overlap = max(apart) < 0
    pairs = itertools.product(one.rows, other.rows)
    for first, second in (sorted(pair, key=lambda looked: looked.row.number) for pair in pairs):
        a, b = first.row, second.row
        if overlap and _structure(first) == _structure(second):
            message = "the region overlaps that of {lines}, of the same structure"
        elif a.split == b.split or not a.split or not b.split:
            continue
        elif overlap:
            message = f"the region ({b.split}) overlaps that of {{lines}} ({a.split})"
        else:
            message = (
                f"the region ({b.split}) is only {max(apart)} voxels from {{lines}} ({a.split}); keep "
                f"{', '.join(map(str, needed))} voxels along z, y or x between splits (half a patch), or check "
                "with the patch that is trained with"
            )
        lines = said[b.number, message]
        if len(lines) <= _LINES:  # what overlaps everything is told by its first lines
            lines.append(a.number)


def _near(boxes: list[_Box], needed: tuple[int, ...]) -> Iterator[tuple[_Box, _Box]]:
    """Yield the pairs of boxes that overlap, or are nearer than `needed` along every axis.

    A sweep along the axis that tells most of them apart: a field cut into thousands of regions is compared in
    about as many steps.
    """
    axis = max(range(3), key=lambda axis: len({box.span[axis].start for box in boxes}))
    boxes = sorted(boxes, key=lambda box: box.span[axis].start)
    open_boxes: list[_Box] = []
    for box in boxes:
        start = box.span[axis].start
        open_boxes = [one for one in open_boxes if start - one.span[axis].stop < needed[axis]]
        for one in open_boxes:
            distances = [
                max(q.start - p.stop, p.start - q.stop) for p, q in zip(one.span, box.span, strict=True)
            ]
            if max(distances) < 0 or all(d < least for d, least in zip(distances, needed, strict=True)):
                yield one, box
        open_boxes.append(box)


def same_files(paths: Iterable[Path], compare_content: bool) -> dict[Path, object]:
    """Return a name for each file that copies of it share; only files of one size can be copies."""
    names: dict[Path, object] = {path: path.absolute() for path in dict.fromkeys(paths)}
    if not compare_content:
        return names
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in names:
        with suppress(OSError, ValueError):  # what cannot be read is told where its header is
            if path.is_file() or path.is_dir():  # a pipe would be waited for
                # Of a file without a look at what it names: there may be a hundred thousand.
                size = stamp_of(path).size if path.is_dir() else path.stat().st_size
                sizes[size].append(path)
    for alike in sizes.values():
        if len(alike) > 1:
            for path in alike:
                with suppress(OSError):
                    names[path] = content_digest(path)
    return names
