"""Check of a manifest: one list of all its problems, before hours of training are built on it.

Each row is checked by itself (files, channels, sizes, voxels) and compared with the others (duplicates, regions and
groups that straddle splits). Nothing stops at the first problem.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repmode_cl.config.schema import PatchConfig
from repmode_cl.data.geometry import VoxelSize, shape_text
from repmode_cl.data.manifest import Problem, Row, parse_manifest
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.validation.intensity import intensity_warnings, voxel_size_warning
from repmode_cl.data.validation.mismatched_pairs import check_duplicate_images, check_pairs
from repmode_cl.data.validation.regions import check_groups, check_regions, content_names
from repmode_cl.data.validation.rows import InspectedRow, inspect_rows
from repmode_cl.data.validation.thumbnails import thumbnail_frames
from repmode_cl.data.validation.voxels import ImageKey, VoxelFindings, image_key, measure_voxels

__all__ = ["inspect_manifest", "CheckOptions", "Inspection"]

#: Version of what `Inspection.as_json` returns.
_FORMAT = 1
#: Factor above which voxels that become larger are remarked on, where nothing is blurred before.
_MOST_WITHOUT_BLUR = 2


@dataclass(frozen=True)
class CheckOptions:
    """Extent of a manifest's check, and the training settings that its images must suit.

    Attributes
    ----------
    patch
        Training patch (z, y, x) in voxels after resampling; None takes the configuration's default.
    gap
        Fewest voxels of the file, along one axis at least, between regions of different splits; None takes
        half a patch, 0 only forbids overlaps.
    read_voxels
        Read all images and report damage, voxels that are not finite or all of one value, saturation, blank planes,
        pairs that do not belong together, and the same image in several files. False reads headers only.
    depth
        Depth of the network, which decides the smallest size of an image.
    voxel_size
        Voxel size (z, y, x) in um that images are resampled to; None keeps their own.
    recipe
        Other settings of preprocessing (`PreprocessingRecipe.of` of a configuration's ``data.preprocessing``): the
        axes that are resampled, a blur before that, and whether constant images are allowed. The default resamples all
        axes without a blur and refuses constant images.
    structures
        Structures whose images are checked; None checks all. A line that cannot be understood is always reported.
    thumbnails
        Most rows, spread evenly, that thumbnails are made of.
    workers
        Processes that read images.
    source
        Origin of patch, depth and preprocessing, in words, for a person to read.
    """

    patch: tuple[int, int, int] | None = None
    gap: int | tuple[int, int, int] | None = None
    read_voxels: bool = True
    depth: int = 4
    voxel_size: VoxelSize | None = (0.29, 0.29, 0.29)
    recipe: PreprocessingRecipe = field(default_factory=PreprocessingRecipe)
    structures: Collection[str] | None = None
    thumbnails: int = 0
    workers: int = 1
    source: str = "the configuration's defaults"

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """`patch`, or the configuration's default."""
        return self.patch or PatchConfig().size

    @property
    def text(self) -> str:
        """Training settings that images are checked for, and their origin, in one sentence."""
        grid = (
            "each image's own voxels"
            if self.voxel_size is None
            else f"voxels of {' x '.join(f'{edge:g}' for edge in self.voxel_size)} um"
        )
        return (
            f"checked for patches of {shape_text(self.patch_size)} (z, y, x) and depth {self.depth}, at {grid}: "
            f"{self.source}"
        )


@dataclass(frozen=True)
class Inspection:
    """Results of a manifest's check.

    Attributes
    ----------
    path
        The manifest.
    rows
        Its rows, as far as they can be understood.
    problems
        Errors and warnings, in the order of its lines.
    inspected
        The rows with the headers of their images.
    findings
        Results of reading the voxels; empty where only headers were read.
    best_matches
        Line of the best other signal and its R2, for rows that were compared with signals of other images.
    options
        Extent of the check, and the training settings that it was made for.
    """

    path: Path
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    inspected: tuple[InspectedRow, ...] = ()
    findings: VoxelFindings = field(default_factory=VoxelFindings)
    best_matches: dict[int, tuple[int, float]] = field(default_factory=dict)
    options: CheckOptions = field(default_factory=CheckOptions)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Problems that must be corrected."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Problems that a person should look at, and that may be in order."""
        return tuple(problem for problem in self.problems if problem.severity != "error")

    @property
    def pictured(self) -> frozenset[int]:
        """Lines of the rows that pictures were made of, as far as their images could be read."""
        return frozenset(one.row.number for one in _pictured(self.inspected, self.options))

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
            "checked_for": {
                "source": self.options.source,
                "patch": list(self.options.patch_size),
                "depth": self.options.depth,
                "voxel_size_zyx": self.options.voxel_size,
            },
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
            "pairs": [self._pair(number) for number in sorted(self.findings.fits)],
        }

    def _images(self) -> list[dict[str, Any]]:
        lines: dict[ImageKey, list[int]] = {}
        about: dict[ImageKey, dict[str, Any]] = {}
        for one in self.inspected:
            for column, image in one.images.items():
                key = image_key(image, one.row.region)
                statistics = self.findings.statistics.get(key)
                if statistics is None:
                    continue
                lines.setdefault(key, []).append(one.row.number)
                about[key] = {
                    "file": str(image.path),
                    "channel": image.header.channel_names[image.channel],
                    "column": column,
                    "shape": list(one.region.shape_in(image.shape)),
                    "dtype": image.header.dtype,
                    "voxel_size_zyx": one.voxel_size,
                    "min": statistics.low,
                    "max": statistics.high,
                    "mean": statistics.mean,
                    "std": statistics.deviation,
                    "percentiles": dict(zip(("1", "50", "99"), statistics.percentiles, strict=True)),
                    "histogram": {"edges": list(statistics.edges), "counts": list(statistics.counts)},
                    "saturated": statistics.saturated,
                    "constant_planes": list(statistics.constant_planes),
                    "sha256": statistics.digest,
                }
        return [{"lines": lines[key], **values} for key, values in about.items()]

    def _pair(self, number: int) -> dict[str, Any]:
        fit = self.findings.fits[number]
        best = self.best_matches.get(number)
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


def inspect_manifest(path: str | Path, options: CheckOptions | None = None) -> Inspection:
    """Check a manifest and all images that it names.

    Parameters
    ----------
    path
        The manifest.
    options
        Extent of the check and training settings; None takes the defaults.

    Returns
    -------
    Inspection
        Without problems where all is well.

    Raises
    ------
    ManifestError
        If the manifest itself cannot be read as a file.
    """
    options = options or CheckOptions()
    path = Path(path)
    rows, problems = parse_manifest(path)
    structures, recipe = options.structures, options.recipe
    rows = [row for row in rows if structures is None or row.structure in structures]
    inspected = inspect_rows(
        rows, depth=options.depth, voxel_size=options.voxel_size, recipe=recipe, workers=options.workers
    )
    for one in inspected:
        problems += one.problems
    problems += _voxel_size_warnings(inspected, options)
    problems += _scene_name_conflicts(inspected)
    half = tuple(math.ceil(size / 2) for size in options.patch_size)
    gap = (options.gap,) * 3 if isinstance(options.gap, int) else options.gap
    # A row with an unknown split is already reported; comparing it with others would only repeat that.
    unknown = {problem.row for problem in problems if problem.column == "split"}
    understood = [one for one in inspected if one.row.number not in unknown]
    names = content_names((row.signal for row in rows), options.read_voxels)
    problems += check_regions(understood, gap, half, options.voxel_size, recipe, names)
    problems += check_groups(one.row for one in understood)
    findings = VoxelFindings()
    best_matches: dict[int, tuple[int, float]] = {}
    if options.read_voxels:
        findings = _check_voxels(inspected, options, problems)
        problems += check_duplicate_images(understood, findings, names)
        mismatches, best_matches = check_pairs(inspected, findings, workers=options.workers)
        problems += mismatches
    order = {"error": 0, "warning": 1}
    problems.sort(key=lambda problem: (problem.row, order[problem.severity]))
    return Inspection(path, tuple(rows), tuple(problems), tuple(inspected), findings, best_matches, options)


def _pictured(inspected: Sequence[InspectedRow], options: CheckOptions) -> Sequence[InspectedRow]:
    """Return the rows that pictures are made of: at most as many as the options say, spread evenly."""
    if not options.thumbnails:
        return ()
    return inspected[:: max(1, math.ceil(len(inspected) / options.thumbnails))]


def _check_voxels(
    inspected: Sequence[InspectedRow], options: CheckOptions, problems: list[Problem]
) -> VoxelFindings:
    """Read the voxels of rows whose headers are in order, and add their problems."""
    recipe = options.recipe
    frames = thumbnail_frames(_pictured(inspected, options))
    findings = measure_voxels(
        inspected, thumbnails=frames, percentiles=recipe.percentiles, workers=options.workers
    )
    reported: set[ImageKey] = set()
    for one in inspected:
        for column, image in one.images.items():
            key = image_key(image, one.row.region)
            if key in findings.damaged:
                problems.append(Problem(one.row.number, column, findings.damaged[key], kind="image"))
            elif key in findings.constant:
                problems.append(_constant(one.row, column, findings.constant[key], recipe))
            elif key in findings.statistics and key not in reported:
                reported.add(key)
                place = f"{image.path}, channel {image.header.channel_names[image.channel]}"
                absent = findings.absent_chunks.get(key, (0, 0))
                problems += [
                    Problem(one.row.number, column, message, severity="warning", kind=kind)
                    for kind, message in intensity_warnings(findings.statistics[key], place, absent)
                ]
                if key in findings.flat_between_percentiles:
                    message = findings.flat_between_percentiles[key]
                    problems.append(_flat(one, column, message, recipe, options.voxel_size))
    return findings


def _constant(row: Row, column: str, message: str, recipe: PreprocessingRecipe) -> Problem:
    """Return the problem of an image whose voxels all have one value: an error, or a warning if accepted."""
    if recipe.empty == "refuse":
        return Problem(row.number, column, message, kind="image")
    if column == "target" and row.split in ("val", "test"):
        message += (
            f", and its row is in the split {row.split}: R2 is undefined on such an image; set its split to train, or "
            "leave the row out"
        )
        return Problem(row.number, column, message, kind="image")
    message += (
        "; it is prepared as zeros (empty: zeros)"
        if recipe.empty == "zeros"
        else "; it is kept (empty: keep)"
    )
    if column == "target" and row.split is None:
        message += ", which suits only training: set its split to train, or it may be held out, where R2 is undefined"
    return Problem(row.number, column, message, severity="warning", kind="constant")


def _flat(
    one: InspectedRow, column: str, message: str, recipe: PreprocessingRecipe, voxel_size: VoxelSize | None
) -> Problem:
    """Return the problem of an image with one value between its percentiles: an error, unless it is resampled."""
    own = one.voxel_size
    if own is None or voxel_size is None or recipe.target_voxel(own, voxel_size) == own:
        return Problem(one.row.number, column, message, kind="flat")
    message += "; resampling may change that"
    return Problem(one.row.number, column, message, severity="warning", kind="flat")


def _voxel_size_warnings(inspected: Sequence[InspectedRow], options: CheckOptions) -> list[Problem]:
    """Return warnings about voxel sizes that are unlikely, or lose detail by resampling, once for each file."""
    problems, reported = [], set()
    for one in inspected:
        row, signal = one.row, one.images.get("signal")
        if signal is None or (row.signal, row.voxel_size) in reported:
            continue
        reported.add((row.signal, row.voxel_size))
        warning = voxel_size_warning(one.voxel_size, row.signal) or _aliasing(one, options)
        if warning is not None:
            kind, message = warning
            column = "voxel_size_zyx" if row.voxel_size else "signal"
            problems.append(Problem(row.number, column, message, severity="warning", kind=kind))
    return problems


def _aliasing(one: InspectedRow, options: CheckOptions) -> tuple[str, str] | None:
    """Return kind and message where voxels become much larger without a blur; None where they do not."""
    own, wanted, recipe = one.voxel_size, options.voxel_size, options.recipe
    # `before_resampling` is the authors' way, which has no blur.
    if own is None or wanted is None or recipe.anti_alias or recipe.before_resampling:
        return None
    target = recipe.target_voxel(own, wanted)
    factor, axis = max((to / edge, axis) for edge, to, axis in zip(own, target, "zyx", strict=True))
    if factor <= _MOST_WITHOUT_BLUR:
        return None
    return (
        "detail lost",
        f"{one.row.signal}: along {axis} voxels become {factor:.3g} times as large ({own['zyx'.index(axis)]:g} to "
        f"{target['zyx'.index(axis)]:g} um) without a blur: finer detail turns into a pattern that is not there; set "
        "data.preprocessing.anti_alias: true, or a smaller voxel_size",
    )


def _scene_name_conflicts(inspected: Sequence[InspectedRow]) -> list[Problem]:
    """Return a problem for rows that name a scene differently than an earlier row does.

    Counted as two images, one scene could straddle splits.
    """
    problems = []
    first: dict[tuple[Path, int | None], Row] = {}
    for one in inspected:
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
