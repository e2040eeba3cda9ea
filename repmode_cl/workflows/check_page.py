"""Page of a manifest's check: gathers from the inspection what a person looks through."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.manifest import Problem
from repmode_cl.data.validation.intensity import SATURATED
from repmode_cl.data.validation.manifest_check import Inspection
from repmode_cl.data.validation.problem_groups import ProblemGroup, group_problems, line_ranges
from repmode_cl.data.validation.rows import InspectedRow
from repmode_cl.data.validation.thumbnails import Thumbnail, ThumbnailFrame
from repmode_cl.data.validation.voxels import image_key
from repmode_cl.errors import counted
from repmode_cl.inference.display_colours import colour_of
from repmode_cl.report.data_check.page import (
    CheckPage,
    Histogram,
    ImagePair,
    ProblemLine,
    ProblemMark,
    ScaledPicture,
    scale_bar,
    write_page,
)
from repmode_cl.report.page.chart_data import readable
from repmode_cl.report.page.overlay import overlay
from repmode_cl.report.page.slices import jpeg_data_uri

__all__ = ["write_check_page"]

#: Messages that the page lists in all, and quality of its pictures.
_MOST_LISTED, _QUALITY = 400, 85


def write_check_page(path: str | Path, inspection: Inspection) -> None:
    """Write the page of a manifest's check, whole or not at all.

    Parameters
    ----------
    path
        The page: one file that holds all pictures and loads nothing from elsewhere.
    inspection
        Of a check with `CheckOptions.thumbnails` above 0.
    """
    groups = _groups(inspection)
    marks: dict[int, list[ProblemMark]] = {}
    for line, group in enumerate(groups, 1):
        for row in dict.fromkeys(problem.row for problem in group.problems):
            marks.setdefault(row, []).append(ProblemMark(group.problems[0].kind, group.severity, line))
    frames = {key: one.frame for key, one in inspection.findings.thumbnails.items()}
    bars = {in_um: _bar(frames.values(), in_um) for in_um in (True, False)}
    pictured = [one for one in inspection.inspected if one.row.number in inspection.pictured]
    options = inspection.options
    grid = "their own" if options.voxel_size is None else f"resampled to {_size_text(options.voxel_size)} µm"
    page = CheckPage(
        title=inspection.path.name,
        summary=f"{counted(len(inspection.errors), 'error')}, {counted(len(inspection.warnings), 'warning')}"
        if inspection.problems
        else "no problem found",
        settings=(
            ("rows", str(len(inspection.rows))),
            ("structures", ", ".join(readable(name) for name in inspection.structures)),
            ("checked for", options.source.replace("`", "")),
            ("patch (z, y, x)", f"{_size_text(options.patch_size)} voxels"),
            ("network", f"depth {options.depth}"),
            ("voxels", grid),
        ),
        problems=_problem_lines(groups),
        pairs=tuple(_pair(inspection, one, bars, tuple(marks.get(one.row.number, ()))) for one in pictured),
        rows=len(inspection.rows),
        notes=_scale_notes(list(frames.values())),
    )
    write_page(path, page)


def _groups(inspection: Inspection) -> list[ProblemGroup]:
    """Return errors grouped by their reason, and warnings by kind, as the terminal has them."""
    same: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in inspection.errors:
        same.setdefault((problem.kind, problem.column, _reason(problem)), []).append(problem)
    return [
        *(ProblemGroup(tuple(problems)) for problems in same.values()),
        *group_problems(inspection.warnings),
    ]


def _reason(problem: Problem) -> str:
    """Return the message without what differs between rows: the file that it begins with, and numbers."""
    _, separator, rest = problem.message.partition(": ")
    message = rest if separator and re.search(r"[/\\]", problem.message.split(": ")[0]) else problem.message
    return re.sub(r"\d+", "#", message)


def _problem_lines(groups: Sequence[ProblemGroup]) -> tuple[ProblemLine, ...]:
    lines = []
    room = _MOST_LISTED
    for group in groups:
        first = group.problems[0]
        others = [str(problem) for problem in group.problems[1:] if problem.message != first.message]
        listed = others[: max(0, room)]
        room -= 1 + len(listed)
        if len(listed) < len(others):
            listed.append(f"and {len(others) - len(listed)} more; --json lists all")
        lines.append(
            ProblemLine(
                group.severity,
                first.kind,
                f"{first.column}: {first.message}" if first.column else first.message,
                tuple(line_ranges(problem.row for problem in group.problems)),
                len(group.problems),
                tuple(listed),
            )
        )
    return tuple(lines)


def _bar(frames: Iterable[ThumbnailFrame], in_um: bool) -> float:
    """Return the length of the scale bar of all pictures of one scale."""
    alike = [frame for frame in frames if frame.in_um == in_um and frame.enlarged == 1]
    return scale_bar(alike[0].longest, min(frame.extent[1] for frame in alike)) if alike else 0.0


def _scale_notes(frames: Sequence[ThumbnailFrame]) -> tuple[str, ...]:
    notes = []
    in_um, in_voxels = [[one for one in frames if one.in_um == known] for known in (True, False)]
    if in_um:
        one_scale = all(frame.enlarged == 1 for frame in in_um)
        notes.append(
            "all pictures with a bar in µm are to one scale"
            + ("" if one_scale else ", but for those whose bar says otherwise")
        )
    if in_voxels:
        notes.append("where no voxel size is known the bar is in voxels, and sizes in µm cannot be compared")
    return tuple(notes)


def _pair(
    inspection: Inspection, one: InspectedRow, bars: Mapping[bool, float], marks: tuple[ProblemMark, ...]
) -> ImagePair:
    row, findings = one.row, inspection.findings
    pictures = [_picture(inspection, one, column, bars) for column in ("signal", "target")]
    histograms = []
    for column in ("signal", "target"):
        image = one.images.get(column)
        statistics = None if image is None else findings.statistics.get(image_key(image, row.region))
        if statistics is not None:
            saturated = statistics.saturated >= SATURATED
            histograms.append(
                Histogram(
                    column,
                    statistics.counts,
                    f"{statistics.low:g}",
                    f"{statistics.high:g}",
                    f"{statistics.saturated:.2%} of voxels have the largest value" if saturated else "",
                )
            )
    overlay = _overlay(inspection, one, pictures)
    if overlay is not None:
        pictures.append(overlay)
    return ImagePair(
        line=row.number,
        structure=readable(row.structure),
        split=row.split or "",
        facts=_facts(one),
        pictures=tuple(pictures),
        histograms=tuple(histograms),
        fit=_fit_text(inspection, row.number),
        marks=marks,
    )


def _picture(
    inspection: Inspection, one: InspectedRow, column: str, bars: Mapping[bool, float]
) -> ScaledPicture:
    image = one.images.get(column)
    if image is None:
        path = one.row.signal if column == "signal" else one.row.target
        return ScaledPicture(column, caption=path.name, missing="cannot be read")
    caption = f"{image.path.name}, {image.header.channel_names[image.channel]}"
    made = inspection.findings.thumbnails.get((one.row.number, column))
    if made is None:
        key = image_key(image, one.row.region)
        alike = key in inspection.findings.constant
        reason = "all voxels have one value" if alike else "cannot be used"
        return ScaledPicture(column, caption=caption, missing=reason)
    start = one.region.resolve(image.shape)[0].start
    return _scaled(column, made, made.grey, f"{caption}, plane {start + made.plane}", bars)


def _scaled(
    title: str, made: Thumbnail, pixels: NDArray[np.uint8], caption: str, bars: Mapping[bool, float]
) -> ScaledPicture:
    frame = made.frame
    height, width = frame.extent
    larger = frame.enlarged
    note = (
        ""
        if larger == 1
        else f"shown {larger:g} times larger"
        if larger > 1
        else f"shown {1 / larger:g} times smaller"
    )
    return ScaledPicture(
        title,
        jpeg_data_uri(pixels, _QUALITY),
        caption,
        width=width * larger / frame.longest,
        aspect=width / height,
        extent=width,
        bar=bars[frame.in_um] if larger == 1 else scale_bar(frame.longest / larger, width),
        unit="µm" if frame.in_um else "voxels",
        note=note,
    )


def _overlay(
    inspection: Inspection, one: InspectedRow, pictures: Sequence[ScaledPicture]
) -> ScaledPicture | None:
    thumbnails = inspection.findings.thumbnails
    made = [thumbnails.get((one.row.number, column)) for column in ("signal", "target")]
    signal, target = made
    if signal is None or target is None:
        return None
    if signal.grey.shape != target.grey.shape or signal.plane != target.plane:
        return ScaledPicture("overlay", missing="the images differ in size")
    mixed = overlay(signal.grey, target.grey, colour_of(one.row.structure))
    first = pictures[0]
    return ScaledPicture(
        "overlay",
        jpeg_data_uri(mixed, _QUALITY),
        "signal grey, target in colour",
        width=first.width,
        aspect=first.aspect,
        extent=first.extent,
        bar=first.bar,
        unit=first.unit,
        note=first.note,
    )


def _facts(one: InspectedRow) -> str:
    image = one.images.get("signal") or one.images.get("target")
    if image is None:
        return ""
    shape = f"{_size_text(one.region.shape_in(image.shape))} voxels (z, y, x)"
    size = one.voxel_size
    return f"{shape}, " + ("no voxel size" if size is None else f"{_size_text(size)} µm")


def _fit_text(inspection: Inspection, number: int) -> str:
    fit = inspection.findings.fits.get(number)
    if fit is None:
        return ""
    text = f"The signal explains {_percent(fit.r2)} of the target"
    if fit.chance >= 1:
        return f"{text}; the images are too small to say what chance gives."
    if fit.r2 <= fit.chance:
        return f"{text}, no more than chance (up to {_percent(fit.chance)})."
    return f"{text}; chance gives up to {_percent(fit.chance)}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _size_text(size: Iterable[float]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(f"{edge:g}" for edge in size)
