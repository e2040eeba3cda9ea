"""Everything wrong with a manifest in one list, before hours of training are built on it.

Each row is looked at by itself (files, channels, sizes, voxels) and against the others (duplicates, regions
and groups that straddle splits), and nothing stops at the first problem.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repmode_cl.config.schema import PatchConfig
from repmode_cl.data.manifest import Problem, Row, parse_manifest
from repmode_cl.data.preprocessing.recipe import Recipe
from repmode_cl.data.validation.intensity import remarks, size_remark
from repmode_cl.data.validation.mismatched_pairs import check_belonging, check_twins
from repmode_cl.data.validation.regions import check_groups, check_regions, same_files
from repmode_cl.data.validation.rows import InspectedRow, look_at_rows
from repmode_cl.data.validation.voxels import Key, VoxelFindings, key_of, read_voxels

__all__ = ["Inspection", "check_manifest", "inspect_manifest"]


Triple = tuple[float, float, float]

#: Version of what `Inspection.as_json` returns.
_FORMAT = 1


@dataclass(frozen=True)
class Inspection:
    """What was found in a manifest.

    Attributes
    ----------
    path
        The manifest.
    rows
        Its rows, as far as they are understood.
    problems
        Errors and warnings, in the order of its lines.
    looked
        The rows with what the headers of their images say.
    seen
        What the voxels say; empty where only headers were read.
    others
        For rows that were compared with signals of other images: line of the best, and R2.
    """

    path: Path
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    looked: tuple[InspectedRow, ...] = ()
    seen: VoxelFindings = field(default_factory=VoxelFindings)
    others: dict[int, tuple[int, float]] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What must be put right."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What a person should look at."""
        return tuple(problem for problem in self.problems if problem.severity != "error")

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures, in the order they first appear."""
        return tuple(dict.fromkeys(row.structure for row in self.rows))

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON values; docs/data-check.md describes them."""
        return {
            "format": _FORMAT,
            "manifest": str(self.path),
            "ok": not self.errors,
            "rows": len(self.rows),
            "structures": list(self.structures),
            "problems": [
                {
                    "line": p.row,
                    "column": p.column,
                    "severity": p.severity,
                    "kind": p.kind,
                    "message": p.message,
                }
                for p in self.problems
            ],
            "images": self._images(),
            "pairs": [self._pair(number) for number in sorted(self.seen.fits)],
        }

    def _images(self) -> list[dict[str, Any]]:
        lines: dict[Key, list[int]] = {}
        about: dict[Key, dict[str, Any]] = {}
        for one in self.looked:
            for column, image in one.images.items():
                key = key_of(image, one.row.region)
                found = self.seen.measures.get(key)
                if found is None:
                    continue
                lines.setdefault(key, []).append(one.row.number)
                about[key] = {
                    "file": str(image.path),
                    "channel": image.header.channel_names[image.channel],
                    "column": column,
                    "shape": list(one.region.shape_in(image.shape)),
                    "dtype": image.header.dtype,
                    "voxel_size_zyx": one.voxel_size,
                    "min": found.low,
                    "max": found.high,
                    "mean": found.mean,
                    "std": found.deviation,
                    "percentiles": dict(zip(("1", "50", "99"), found.percentiles, strict=True)),
                    "histogram": {"edges": list(found.edges), "counts": list(found.counts)},
                    "saturated": found.saturated,
                    "constant_planes": list(found.constant_planes),
                    "sha256": found.digest,
                }
        return [{"lines": lines[key], **values} for key, values in about.items()]

    def _pair(self, number: int) -> dict[str, Any]:
        fit = self.seen.fits[number]
        best = self.others.get(number)
        return {
            "line": number,
            "r2": fit.r2,
            "chance": fit.chance,
            "best": fit.best,
            "shift_zyx": list(fit.shift),
            "related": fit.related,
            "shifted": fit.shifted,
            "other": None if best is None else {"line": best[0], "r2": best[1]},
        }


def check_manifest(
    path: str | Path,
    *,
    patch: tuple[int, int, int] | None = None,
    gap: int | tuple[int, int, int] | None = None,
    read_voxels: bool = True,
    depth: int = 4,
    voxel_size: Triple | None = (0.29, 0.29, 0.29),
    recipe: Recipe | None = None,
    structures: Collection[str] | None = None,
    workers: int = 1,
) -> list[Problem]:
    """Return every error of a manifest and of what it points to, in the order of its lines.

    Parameters are those of `inspect_manifest`, which returns warnings and measurements too.

    Raises
    ------
    ManifestError
        If the manifest itself cannot be read as a file.
    """
    found = inspect_manifest(
        path,
        patch=patch,
        gap=gap,
        read_voxels=read_voxels,
        depth=depth,
        voxel_size=voxel_size,
        recipe=recipe,
        structures=structures,
        workers=workers,
    )
    return list(found.errors)


def inspect_manifest(
    path: str | Path,
    *,
    patch: tuple[int, int, int] | None = None,
    gap: int | tuple[int, int, int] | None = None,
    read_voxels: bool = True,
    depth: int = 4,
    voxel_size: Triple | None = (0.29, 0.29, 0.29),
    recipe: Recipe | None = None,
    structures: Collection[str] | None = None,
    pictures: int = 0,
    workers: int = 1,
) -> Inspection:
    """Look at a manifest and all that it points to.

    Parameters
    ----------
    path
        The manifest.
    patch
        Training patch (z, y, x) in voxels after resampling; None takes the configuration's default.
    gap
        Fewest voxels of the file, along one axis at least, between regions of different splits; None takes
        half a patch, 0 asks only that they do not overlap.
    read_voxels
        Read all images: damage, voxels that are not finite or all alike, saturation, blank planes, pairs that do
        not belong together, the same image in several files. False reads headers.
    depth
        Depth of the network: what it cannot take is too small.
    voxel_size
        Voxel size (z, y, x) in um that images will be resampled to; None for their own.
    recipe
        How they will be prepared besides (`Recipe.of` of a configuration's ``data.preprocessing``): which axes are
        resampled, and whether constant images are taken. None is the default: all axes, and they are not.
    structures
        Look at the images of these alone; None looks at all. A line that cannot be understood is always told.
    pictures
        Rows at most that thumbnails are made of, spread evenly.
    workers
        Processes that read images.

    Returns
    -------
    Inspection
        Without problems where all is well.

    Raises
    ------
    ManifestError
        If the manifest itself cannot be read as a file.
    """
    path = Path(path)
    rows, problems = parse_manifest(path)
    rows = [row for row in rows if structures is None or row.structure in structures]
    recipe = recipe or Recipe()
    looked = look_at_rows(rows, depth=depth, voxel_size=voxel_size, recipe=recipe, workers=workers)
    for one in looked:
        problems += one.problems
    problems += _voxel_sizes(looked)
    problems += _scene_names(looked)
    half = tuple(math.ceil(size / 2) for size in patch or PatchConfig().size)
    needed = (gap, gap, gap) if isinstance(gap, int) else gap
    # Where a row's split is unknown already, comparing it with others would only repeat that.
    unknown = {problem.row for problem in problems if problem.column == "split"}
    understood = [one for one in looked if one.row.number not in unknown]
    names = same_files((row.signal for row in rows), read_voxels)
    problems += check_regions(understood, needed, half, voxel_size, recipe, names)
    problems += check_groups(one.row for one in understood)
    seen = VoxelFindings()
    others: dict[int, tuple[int, float]] = {}
    if read_voxels:
        seen = _voxels(looked, pictures, workers, voxel_size, recipe, problems)
        problems += check_twins(understood, seen, names)
        found, others = check_belonging(looked, seen, workers=workers)
        problems += found
    order = {"error": 0, "warning": 1}
    problems.sort(key=lambda problem: (problem.row, order[problem.severity]))
    return Inspection(path, tuple(rows), tuple(problems), tuple(looked), seen, others)


def _voxels(
    looked: Sequence[InspectedRow],
    pictures: int,
    workers: int,
    voxel_size: Triple | None,
    recipe: Recipe,
    problems: list[Problem],
) -> VoxelFindings:
    """Read the voxels of rows whose headers are in order, and add what is wrong with them."""
    step = max(1, math.ceil(len(looked) / pictures)) if pictures else 1
    wanted = [one.row.number for one in looked[::step]] if pictures else []
    seen = read_voxels(looked, pictures=wanted, percentiles=recipe.percentiles, workers=workers)
    said: set[Key] = set()
    for one in looked:
        for column, image in one.images.items():
            key = key_of(image, one.row.region)
            if key in seen.damaged:
                problems.append(Problem(one.row.number, column, seen.damaged[key], kind="image"))
            elif key in seen.constant:
                problems.append(_constant(one.row, column, seen.constant[key], recipe))
            elif key in seen.measures and key not in said:
                said.add(key)
                place = f"{image.path}, channel {image.header.channel_names[image.channel]}"
                problems += [
                    Problem(one.row.number, column, message, severity="warning", kind=kind)
                    for kind, message in remarks(seen.measures[key], place, seen.absent.get(key, (0, 0)))
                ]
                if key in seen.flat:
                    problems.append(_flat(one, column, seen.flat[key], recipe, voxel_size))
    return seen


def _constant(row: Row, column: str, message: str, recipe: Recipe) -> Problem:
    """Return what it means that all voxels of an image are alike: an error, or zeros to learn from."""
    if recipe.empty != "zeros":
        return Problem(row.number, column, message, kind="image")
    if column == "target" and row.split in ("val", "test"):
        message += (
            f", and its row is in the split {row.split}: nothing has an R2 on such an image; name its split "
        )
        message += "train, or leave it out"
        return Problem(row.number, column, message, kind="image")
    message += "; it is taken as zeros (empty: zeros)"
    if column == "target" and row.split is None:
        message += ", in training alone: name its split train, or it may be held out, where nothing has an R2"
    return Problem(row.number, column, message, severity="warning", kind="constant")


def _flat(one: InspectedRow, column: str, message: str, recipe: Recipe, voxel_size: Triple | None) -> Problem:
    """Return what it means that an image is all alike between its percentiles: an error, unless it is resampled."""
    own = one.voxel_size
    if own is None or voxel_size is None or recipe.target_voxel(own, voxel_size) == own:
        return Problem(one.row.number, column, message, kind="flat")
    message += "; resampling may change that"
    return Problem(one.row.number, column, message, severity="warning", kind="flat")


def _voxel_sizes(looked: Sequence[InspectedRow]) -> list[Problem]:
    """Return what is unlikely about voxel sizes, once for each file."""
    problems, said = [], set()
    for one in looked:
        row, signal = one.row, one.images.get("signal")
        if signal is None or (row.signal, row.voxel_size) in said:
            continue
        said.add((row.signal, row.voxel_size))
        remark = size_remark(one.voxel_size, row.signal)
        if remark is not None:
            kind, message = remark
            column = "voxel_size_zyx" if row.voxel_size else "signal"
            problems.append(Problem(row.number, column, message, severity="warning", kind=kind))
    return problems


def _scene_names(looked: Sequence[InspectedRow]) -> list[Problem]:
    """Return rows that call a scene otherwise than an earlier row: taken as two images, one could straddle splits."""
    problems = []
    first: dict[tuple[Path, int | None], Row] = {}
    for one in looked:
        signal = one.images.get("signal")
        if signal is None:
            continue
        row = one.row
        other = first.setdefault((row.signal, signal.header.scene), row)
        if other.scene != row.scene:
            message = (
                f"{row.scene!r} is the scene that line {other.number} calls {other.scene!r}: use one of them"
            )
            problems.append(Problem(row.number, "scene", message, kind="split"))
    return problems
