"""Line charts, heat maps and bars as SVG and HTML text, so that they follow the reader's light or dark theme.

Colours are CSS classes (`s0`, `s1`, ... for strategies, `e0`, ... for experts), defined once in page.css. The page's
script draws the same charts again (page_charts.js), when a reader chooses what to see: the two must look alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from markupsafe import Markup

from repmode_cl.report.tables.number_format import number

__all__ = ["COLOURS", "Line", "line_chart", "nice_ticks", "heat_style", "stacked_bar"]


#: Colours that page.css has for strategies; beyond them they begin again.
COLOURS = 16

#: Beside lines of more points none is drawn with dots, but for one that is a dot.
DOTS = 16

_WIDTH, _HEIGHT = 270, 178
# On the left there is room for "\N{MINUS SIGN}0.005".
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 26

#: Ramp of the heat maps, worst to best; readable on light and dark pages alike.
_RAMP = ((0.0, (252, 243, 219)), (0.35, (186, 214, 186)), (0.7, (66, 145, 143)), (1.0, (18, 74, 98)))


@dataclass(frozen=True)
class Line:
    """One strategy in a chart.

    Attributes
    ----------
    style
        Number of its colour.
    label
        What the tooltip calls it.
    points
        (x, y) of the mean over seeds; NaN breaks the line.
    band
        (x, low, high) over seeds; empty for one seed.
    """

    style: int
    label: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = ()


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers within [low, high]."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(span / s - count))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_ticks: Sequence[tuple[float, str]],
    description: str,
    from_x: float | None = None,
) -> Markup:
    """Draw lines with markers and, where there are several seeds, bands.

    Parameters
    ----------
    lines
        What to draw, the last one on top.
    x_range, y_range
        Limits of the axes; what is outside is cut off.
    x_ticks
        (x, label) below the axis.
    description
        What a screen reader says.
    from_x
        Where the structure was learned: a thin vertical line.
    """
    (x0, x1), (y0, y1) = x_range, y_range
    x_span, y_span = (x1 - x0) or 1.0, (y1 - y0) or 1.0

    def px(x: float) -> float:
        return round(_LEFT + (x - x0) / x_span * (_WIDTH - _LEFT - _RIGHT), 1)

    def py(y: float) -> float:
        return round(_HEIGHT - _BOTTOM - (y - y0) / y_span * (_HEIGHT - _TOP - _BOTTOM), 1)

    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    view = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    out = [f'<svg class="chart" {view} role="img" aria-label="{escape(description)}">']
    ticks = nice_ticks(y0, y1)
    digits = max((len(f"{tick:.3f}".rstrip("0").split(".")[1]) for tick in ticks), default=1)
    for tick in ticks:
        kind = "zero" if tick == 0 and y0 < 0 else "grid"
        out.append(f'<line class="{kind}" x1="{_LEFT}" x2="{right}" y1="{py(tick)}" y2="{py(tick)}"/>')
        out.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{py(tick) + 3.5}" text-anchor="end">'
            f"{number(tick, digits)}</text>"
        )
    for k, (x, label) in enumerate(x_ticks):
        anchor = "end" if k == len(x_ticks) - 1 and px(x) > right - 12 and len(label) > 2 else "middle"
        out.append(
            f'<text class="tick" x="{px(x)}" y="{bottom + 15}" text-anchor="{anchor}">{escape(label)}</text>'
        )
    if from_x is not None and x0 < from_x <= x1:
        out.append(f'<line class="from" x1="{px(from_x)}" x2="{px(from_x)}" y1="{_TOP}" y2="{bottom}"/>')
    # A nested svg cuts off what leaves the frame, without ids that would have to be unique in the page.
    out.append(
        f'<svg x="0" y="{_TOP - 4}" width="{_WIDTH}" height="{bottom - _TOP + 8}" '
        f'viewBox="0 {_TOP - 4} {_WIDTH} {bottom - _TOP + 8}">'
    )
    for line in lines:
        if len(line.band) > 1:
            there = " ".join(f"{px(x)},{py(high)}" for x, _, high in line.band)
            back = " ".join(f"{px(x)},{py(low)}" for x, low, _ in reversed(line.band))
            out.append(f'<polygon class="band s{line.style % COLOURS}" points="{there} {back}"/>')
    dots = all(len(line.points) <= DOTS for line in lines)
    for line in lines:
        path, pen_up = [], True
        for x, y in line.points:
            if math.isnan(y):
                pen_up = True
                continue
            path.append(f"{'M' if pen_up else 'L'}{px(x)} {py(y)}")
            pen_up = False
        out.append(f'<path class="line s{line.style % COLOURS}" d="{"".join(path)}"/>')
        for x, y in line.points if dots or len(line.points) == 1 else ():
            if not math.isnan(y):
                out.append(
                    f'<circle class="dot s{line.style % COLOURS}" cx="{px(x)}" cy="{py(y)}" r="3">'
                    f"<title>{escape(line.label)}: {number(y, 3)}</title></circle>"
                )
    out.append("</svg></svg>")
    return Markup("".join(out))  # every text in it is escaped above


def heat_style(value: float, worst: float, best: float) -> str:
    """Return the inline style of a heat map's cell: a colour, and a text colour that can be read on it."""
    if math.isnan(value):
        return ""
    span = best - worst
    t = min(1.0, max(0.0, (value - worst) / span)) if span else 1.0
    red, green, blue = _ramp(t)
    # Relative luminance, roughly: dark text from the middle up.
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 132
    return f"background:rgb({red},{green},{blue});color:{'#14242b' if dark else '#fff'}"


def _ramp(t: float) -> tuple[int, int, int]:
    for (t0, c0), (t1, c1) in pairwise(_RAMP):
        if t <= t1:
            f = (t - t0) / (t1 - t0)
            red, green, blue = (round(a + f * (b - a)) for a, b in zip(c0, c1, strict=True))
            return red, green, blue
    return _RAMP[-1][1]


def stacked_bar(weights: Mapping[str, float], styles: Mapping[str, int]) -> Markup:
    """Draw the share of each expert as one bar.

    Parameters
    ----------
    weights
        Expert -> mean gate weight; they sum to 1.
    styles
        Expert -> number of its colour; those that have none are fresh experts of additions.
    """
    total = math.fsum(weights.values()) or 1.0
    parts = []
    for expert, weight in weights.items():
        share = 100.0 * weight / total
        kind = f"e{styles[expert]}" if expert in styles else "efresh"
        text = f"{share:.0f}" if share >= 7 else ""
        tip = escape(f"{expert}: {share:.1f} %")
        parts.append(f'<span class="part {kind}" style="width:{share:.2f}%" title="{tip}">{text}</span>')
    return Markup(f'<div class="bar">{"".join(parts)}</div>')  # every text in it is escaped above
