"""One page of thumbnails, with the histogram and the remarks of each row: for a person to look through.

It needs no network and holds all pictures itself.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repmode_cl.data.validation.voxels import key_of
from repmode_cl.errors import counted
from repmode_cl.utils.atomic_files import write_text

if TYPE_CHECKING:
    from repmode_cl.data.manifest import Problem
    from repmode_cl.data.validation.manifest_check import Inspection
    from repmode_cl.data.validation.rows import InspectedRow

__all__ = ["page", "write_page"]

#: Remarks listed at most above the pictures.
_LISTED = 200

_STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:1.5em;color:#222;background:#fff}
table{border-collapse:collapse}td,th{padding:.3em .6em;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}
img,svg{image-rendering:pixelated;width:112px;display:block}.error{color:#a00000}.warning{color:#7a4b00}
small{color:#555;word-break:break-all}ul{max-width:80em}
"""


def write_page(path: str | Path, found: Inspection) -> None:
    """Write the page, whole or not at all."""
    write_text(path, page(found))


def page(found: Inspection) -> str:
    """Return the page as HTML."""
    counts = f"{counted(len(found.errors), 'error')}, {counted(len(found.warnings), 'warning')}"
    remarks: dict[int, list[Problem]] = {}
    for problem in found.problems:
        remarks.setdefault(problem.row, []).append(problem)
    shown = [one for one in found.looked if one.row.number in found.seen.thumbnails]
    rows = counted(len(found.rows), "row")
    title = html.escape(f"{found.path.name}: {rows}, {counts}")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1>",
        *_list(found.problems),
        f"<h2>{len(shown)} of {rows}</h2>" if shown else "",
        "<table><tr><th>line<th>signal<th>target<th>histograms<th>remarks",
        *(_row(found, one, remarks.get(one.row.number, [])) for one in shown),
        "</table></html>\n",
    ]
    return "\n".join(parts)


def _list(problems: Sequence[Problem]) -> Iterator[str]:
    if not problems:
        return
    yield "<ul>"
    for problem in problems[:_LISTED]:
        yield f'<li class="{problem.severity}">{html.escape(str(problem))}'
    if len(problems) > _LISTED:
        yield f"<li>and {len(problems) - _LISTED} more"
    yield "</ul>"


def _row(found: Inspection, one: InspectedRow, problems: Iterable[Problem]) -> str:
    number = one.row.number
    cells = [f"<tr><td>{number}<br>{html.escape(one.row.structure)}<br><small>{one.row.split or ''}</small>"]
    charts = []
    for column, png in zip(("signal", "target"), found.seen.thumbnails[number], strict=True):
        image = one.images[column]
        channel = image.header.channel_names[image.channel]
        picture = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
        says = html.escape(f"{image.path.name}, {channel}")
        cells.append(f'<td><img alt="{column} of line {number}" src="{picture}"><small>{says}</small>')
        measured = found.seen.measures.get(key_of(image, one.row.region))
        if measured is not None:
            charts.append(_histogram(measured.counts, f"{column}: {measured.low:g} to {measured.high:g}"))
    fit = found.seen.fits.get(number)
    told = "" if fit is None else f"<small>R2 {fit.r2:.3f}, chance {fit.chance:.3f}</small>"
    said = "".join(
        f'<div class="{problem.severity}">{html.escape(problem.message)}</div>' for problem in problems
    )
    return "".join([*cells, "<td>", *charts, f"<td>{told}{said}"])


def _histogram(counts: Sequence[int], title: str) -> str:
    """Return bars whose height is the logarithm of the counts: a few saturated voxels must be seen."""
    top = math.log1p(max(counts))
    bars = "".join(
        f'<rect x="{place}" y="{24 - 24 * math.log1p(count) / top:.1f}" width="1" height="24"/>'
        for place, count in enumerate(counts)
    )
    label = html.escape(title)
    return f'<svg viewBox="0 0 {len(counts)} 24" role="img" aria-label="{label}">{bars}</svg><small>{label}</small>'
