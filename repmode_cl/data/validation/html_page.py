"""HTML page of thumbnails, with histograms and problems of each row, for a person to look through.

The page is one file that holds all pictures and loads nothing from elsewhere.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from repmode_cl.data.manifest import Problem
from repmode_cl.data.validation.manifest_check import Inspection
from repmode_cl.data.validation.rows import InspectedRow
from repmode_cl.data.validation.voxels import image_key
from repmode_cl.errors import counted
from repmode_cl.utils.atomic_files import write_text

__all__ = ["write_check_page", "render_page"]

#: Most problems that are listed above the pictures.
_MOST_LISTED = 200

_STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:1.5em;color:#222;background:#fff}
table{border-collapse:collapse}td,th{padding:.3em .6em;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}
img,svg{image-rendering:pixelated;width:112px;display:block}.error{color:#a00000}.warning{color:#7a4b00}
small{color:#555;word-break:break-all}ul{max-width:80em}
"""


def write_check_page(path: str | Path, inspection: Inspection) -> None:
    """Write the page, whole or not at all."""
    write_text(path, render_page(inspection))


def render_page(inspection: Inspection) -> str:
    """Return the page as HTML."""
    counts = f"{counted(len(inspection.errors), 'error')}, {counted(len(inspection.warnings), 'warning')}"
    by_row: dict[int, list[Problem]] = {}
    for problem in inspection.problems:
        by_row.setdefault(problem.row, []).append(problem)
    pictured = [one for one in inspection.inspected if one.row.number in inspection.findings.thumbnails]
    rows = counted(len(inspection.rows), "row")
    title = html.escape(f"{inspection.path.name}: {rows}, {counts}")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1>",
        *_list(inspection.problems),
        f"<h2>{len(pictured)} of {rows}</h2>" if pictured else "",
        "<table><tr><th>line<th>signal<th>target<th>histograms<th>problems",
        *(_row(inspection, one, by_row.get(one.row.number, [])) for one in pictured),
        "</table></html>\n",
    ]
    return "\n".join(parts)


def _list(problems: Sequence[Problem]) -> Iterator[str]:
    if not problems:
        return
    yield "<ul>"
    for problem in problems[:_MOST_LISTED]:
        yield f'<li class="{problem.severity}">{html.escape(str(problem))}'
    if len(problems) > _MOST_LISTED:
        yield f"<li>and {len(problems) - _MOST_LISTED} more"
    yield "</ul>"


def _row(inspection: Inspection, one: InspectedRow, problems: Iterable[Problem]) -> str:
    number = one.row.number
    cells = [f"<tr><td>{number}<br>{html.escape(one.row.structure)}<br><small>{one.row.split or ''}</small>"]
    charts = []
    for column, png in zip(("signal", "target"), inspection.findings.thumbnails[number], strict=True):
        image = one.images[column]
        channel = image.header.channel_names[image.channel]
        picture = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
        caption = html.escape(f"{image.path.name}, {channel}")
        cells.append(f'<td><img alt="{column} of line {number}" src="{picture}"><small>{caption}</small>')
        statistics = inspection.findings.statistics.get(image_key(image, one.row.region))
        if statistics is not None:
            charts.append(
                _histogram(statistics.counts, f"{column}: {statistics.low:g} to {statistics.high:g}")
            )
    fit = inspection.findings.fits.get(number)
    fit_text = "" if fit is None else f"<small>R2 {fit.r2:.3f}, chance {fit.chance:.3f}</small>"
    listed = "".join(
        f'<div class="{problem.severity}">{html.escape(problem.message)}</div>' for problem in problems
    )
    return "".join([*cells, "<td>", *charts, f"<td>{fit_text}{listed}"])


def _histogram(counts: Sequence[int], title: str) -> str:
    """Return bars whose height is the logarithm of the counts, so that a few saturated voxels are visible."""
    top = math.log1p(max(counts))
    bars = "".join(
        f'<rect x="{place}" y="{24 - 24 * math.log1p(count) / top:.1f}" width="1" height="24"/>'
        for place, count in enumerate(counts)
    )
    label = html.escape(title)
    return f'<svg viewBox="0 0 {len(counts)} 24" role="img" aria-label="{label}">{bars}</svg><small>{label}</small>'
