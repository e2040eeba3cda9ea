"""The page of a manifest's check: its problems, and the images of its rows to look through, without a network.

It is made of plain values, so that a report needs no image readers; `repmode_cl.workflows.check_page` gathers them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.report.html import render
from repmode_cl.report.page.svg import histogram
from repmode_cl.utils.atomic_files import write_text

__all__ = [
    "CheckPage",
    "Histogram",
    "ImagePair",
    "ProblemLine",
    "ProblemMark",
    "ScaledPicture",
    "scale_bar",
    "write_page",
]


@dataclass(frozen=True)
class ScaledPicture:
    """Picture of an image at the scale of the page.

    Attributes
    ----------
    title
        What it shows: signal, target or overlay.
    uri
        Data URI; "" where there is no picture.
    caption
        File, channel and plane.
    missing
        Reason why there is no picture.
    width
        Part of the widest place that it takes, 0 to 1.
    aspect
        Width divided by height.
    extent
        Its width in `unit`.
    bar
        Length of the scale bar in `unit`.
    unit
        "µm" or "voxels".
    note
        How its scale differs from that of the others; "" where it does not.
    """

    title: str
    uri: str = ""
    caption: str = ""
    missing: str = ""
    width: float = 1.0
    aspect: float = 1.0
    extent: float = 1.0
    bar: float = 0.0
    unit: str = "µm"
    note: str = ""

    @property
    def bar_text(self) -> str:
        """Length of the scale bar with its unit."""
        unit = self.unit.removesuffix("s") if self.bar == 1 else self.unit
        return f"{self.bar:g} {unit}"

    @property
    def bar_width(self) -> str:
        """Length of the scale bar as a part of the widest place."""
        return f"{100 * self.width * self.bar / self.extent:.2f}%"


@dataclass(frozen=True)
class Histogram:
    """Frequencies of an image's values.

    Attributes
    ----------
    title
        What image it is of.
    counts
        Voxels in each of the bins.
    low, high
        Smallest and largest value.
    saturated
        Share of voxels at the largest value where that is notable; "" elsewhere.
    """

    title: str
    counts: tuple[int, ...]
    low: str
    high: str
    saturated: str = ""


@dataclass(frozen=True)
class ProblemMark:
    """Mention of a problem beside an image: its kind, severity and the number of its line in the list."""

    kind: str
    severity: str
    line: int


@dataclass(frozen=True)
class ImagePair:
    """The images of a row.

    Attributes
    ----------
    line
        Of the manifest.
    structure, split
        Of the row; `split` may be "".
    facts
        Size of the images, in words.
    pictures
        Signal, target and, of two images that can be read, overlay.
    histograms
        Of those images that were measured.
    fit
        How well signal and target fit, as a sentence; "" where that was not measured.
    marks
        Problems of the row.
    """

    line: int
    structure: str
    split: str
    facts: str
    pictures: tuple[ScaledPicture, ...]
    histograms: tuple[Histogram, ...]
    fit: str
    marks: tuple[ProblemMark, ...]


@dataclass(frozen=True)
class ProblemLine:
    """One reason, with all rows that it concerns.

    Attributes
    ----------
    severity, kind
        Of the problems.
    message
        Of the first.
    ranges
        Lines of the manifest, as (first, last); 0 is the file as a whole.
    count
        Number of problems.
    others
        Messages of the other problems, with their lines, where they differ.
    """

    severity: str
    kind: str
    message: str
    ranges: tuple[tuple[int, int], ...]
    count: int
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckPage:
    """All that the page of a manifest's check shows.

    Attributes
    ----------
    title
        Name of the manifest.
    summary
        Numbers of errors and warnings, in words.
    settings
        (name, value) of what was checked.
    problems
        Errors first.
    pairs
        Rows that are shown.
    rows
        Number of rows of the manifest.
    notes
        What a reader should know about the scale of the pictures.
    """

    title: str
    summary: str
    settings: tuple[tuple[str, str], ...]
    problems: tuple[ProblemLine, ...]
    pairs: tuple[ImagePair, ...]
    rows: int
    notes: tuple[str, ...] = ()


def write_page(path: str | Path, page: CheckPage) -> None:
    """Write the page, whole or not at all."""
    shown = {pair.line for pair in page.pairs}
    text = render(
        "data_check/page.jinja",
        title=page.title,
        settings=page.settings,
        notes=(),
        page=page,
        shown=shown,
        charts={
            (pair.line, one.title): histogram(
                one.counts, f"{one.title} of line {pair.line}, {one.low} to {one.high}"
            )
            for pair in page.pairs
            for one in pair.histograms
        },
    )
    write_text(path, text)


def scale_bar(longest: float, narrowest: float) -> float:
    """Return the length of a scale bar, 1, 2 or 5 times a power of ten, for pictures of one scale.

    Parameters
    ----------
    longest
        Extent that fills the widest place.
    narrowest
        Width of the narrowest picture, which the bar shall not exceed unless it would be too short to be seen.
    """
    most = max(0.1 * longest, min(0.3 * longest, narrowest))
    power = 10.0 ** math.floor(math.log10(most))
    return float(f"{max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)) * power:.6g}")
