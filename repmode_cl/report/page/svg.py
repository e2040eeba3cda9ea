"""Line charts and bars as SVG and HTML text, and the colours of heat maps.

Colours are CSS classes (`s0`, `s1`, ... for strategies, `e0`, ... for experts), defined once in page.css, so that
everything follows the reader's light or dark theme. Lines are written in the units of the data, five digits each, and
scaled to the frame by the view box: the page's script reads from them what it shows where a reader points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

from markupsafe import Markup

from repmode_cl.utils.number_format import number

__all__ = ["COLOURS", "Line", "line_chart", "nice_ticks", "heat_style", "histogram", "stacked_bar"]


#: Colours that page.css has for strategies; further strategies use them again.
COLOURS = 16

#: A chart with a line of more points has no dots, except for a line that is one point.
DOTS = 16

_WIDTH, _HEIGHT = 270, 178
# On the left there is room for "\N{MINUS SIGN}0.005".
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 26

#: Room for dots around the frame; page_views.js has the same.
_PADDING = 5

#: Colours of the heat maps, worst to best; readable on light and dark pages alike.
_HEAT_COLOURS = ((0.0, (252, 243, 219)), (0.35, (186, 214, 186)), (0.7, (66, 145, 143)), (1.0, (18, 74, 98)))


@dataclass(frozen=True)
class Line:
    """One strategy in a chart.

    Attributes
    ----------
    strategy
        Its number in the run, which gives the colour.
    label
        What the tooltip calls it.
    points
        (x, y) of the mean over seeds; NaN breaks the line.
    band
        (x, low, high) over seeds; empty for one seed.
    """

    strategy: int
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
    x_name: str = "step",
    learned_at: float | None = None,
    clamp: bool = False,
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
    x_name
        What the tooltip calls x.
    learned_at
        Where the structure was learned: a thin vertical line.
    clamp
        Draw points below or above the frame on its edge, marked by a triangle.
    """
    (x0, x1), (y0, y1) = x_range, y_range
    x_span, y_span = (x1 - x0) or 1.0, (y1 - y0) or 1.0
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    # Units of the data in a pixel.
    x_unit, y_unit = x_span / (right - _LEFT), y_span / (bottom - _TOP)

    def px(x: float) -> float:
        return round(_LEFT + (x - x0) / x_unit, 1)

    def py(y: float) -> float:
        return round(bottom - (y - y0) / y_unit, 1)

    view = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    out = [f'<svg class="chart" {view} role="img" aria-label="{escape(description)}"><g class="y-axis">']
    ticks = nice_ticks(y0, y1)
    digits = max((len(f"{tick:.3f}".rstrip("0").split(".")[1]) for tick in ticks), default=1)
    for tick in ticks:
        kind = "zero" if tick == 0 and y0 < 0 else "grid"
        out.append(f'<line class="{kind}" x1="{_LEFT}" x2="{right}" y1="{py(tick)}" y2="{py(tick)}"/>')
        out.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{py(tick) + 3.5}" text-anchor="end">'
            f"{number(tick, digits)}</text>"
        )
    out.append("</g>")
    for k, (x, label) in enumerate(x_ticks):
        anchor = "end" if k == len(x_ticks) - 1 and px(x) > right - 12 and len(label) > 2 else "middle"
        out.append(
            f'<text class="tick" x="{px(x)}" y="{bottom + 15}" text-anchor="{anchor}">{escape(label)}</text>'
        )
    if learned_at is not None and x0 < learned_at <= x1:
        out.append(
            f'<line class="learned" x1="{px(learned_at)}" x2="{px(learned_at)}" y1="{_TOP}" y2="{bottom}"/>'
        )
    # A nested svg scales the data to the frame, and cuts off what leaves it. Its y axis points down.
    box = (
        x0 - _PADDING * x_unit,
        -(y1 + _PADDING * y_unit),
        x_span + 2 * _PADDING * x_unit,
        y_span + 2 * _PADDING * y_unit,
    )
    out.append(
        f'<svg class="lines" x="{_LEFT - _PADDING}" y="{_TOP - _PADDING}" '
        f'width="{right - _LEFT + 2 * _PADDING}" height="{bottom - _TOP + 2 * _PADDING}" '
        f'preserveAspectRatio="none" viewBox="{" ".join(_short(end) for end in box)}" data-x="{escape(x_name)}">'
        '<g transform="scale(1 -1)">'
    )
    dots = all(len(line.points) <= DOTS for line in lines)
    shown = [_clamped(line, y0, y1) if clamp else line for line in lines]
    out += (_line(line, dots=dots or len(line.points) == 1) for line in shown)
    out.append("</g></svg>")
    for line in lines if clamp else ():
        for x, y in line.points:
            if y < y0 or y > y1:
                edge, tip = (bottom, 3) if y < y0 else (_TOP, -3)
                out.append(
                    f'<path class="line s{line.strategy % COLOURS}" d="M{px(x) - 4} {edge - tip}h8l-4 {2 * tip}z"/>'
                )
    out.append("</svg>")
    return Markup("".join(out))  # every text in it is escaped above


def _clamped(line: Line, low: float, high: float) -> Line:
    points = ((x, y if math.isnan(y) else min(max(y, low), high)) for x, y in line.points)
    return replace(line, points=tuple(points))


def _line(line: Line, *, dots: bool) -> str:
    """Return a band, a line and its dots in the units of the data."""
    colour = f"s{line.strategy % COLOURS}"
    parts = [f'<g data-strategy="{line.strategy}">']
    values = [number(y, 3) for _, y in line.points if not math.isnan(y)] if dots else []
    parts.append(f"<title>{escape(line.label)}{': ' if values else ''}{', '.join(values)}</title>")
    if len(line.band) > 1:
        there = " ".join(f"{_short(x)},{_short(high)}" for x, _, high in line.band)
        back = " ".join(f"{_short(x)},{_short(low)}" for x, low, _ in reversed(line.band))
        parts.append(f'<polygon class="band {colour}" points="{there} {back}"/>')
    path, marks, pen_up = [], [], True
    for x, y in line.points:
        if math.isnan(y):
            pen_up = True
            continue
        at = f"{_short(x)} {_short(y)}"
        path.append(f"{'M' if pen_up else 'L'}{at}")
        marks.append(f"M{at}h0")
        pen_up = False
    parts.append(f'<path class="line {colour}" d="{"".join(path)}"/>')
    if dots:
        # Lines of no length with round ends: circles would be stretched with the frame.
        parts.append(f'<path class="dots {colour}" d="{"".join(marks)}"/>')
    return "".join((*parts, "</g>"))


def _short(value: float) -> str:
    """Return a number with five digits, of which a chart shows three or four."""
    return f"{value:.5g}"


def heat_style(value: float, worst: float, best: float) -> str:
    """Return the inline style of a heat map's cell: a colour, and a text colour that can be read on it."""
    if math.isnan(value):
        return ""
    span = best - worst
    red, green, blue = _heat_colour(min(1.0, max(0.0, (value - worst) / span)) if span else 1.0)
    # Relative luminance, roughly: dark text from the middle up.
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 132
    return f"background:#{red:02x}{green:02x}{blue:02x};color:{'#14242b' if light else '#fff'}"


def _heat_colour(share: float) -> tuple[int, int, int]:
    for (t0, c0), (t1, c1) in pairwise(_HEAT_COLOURS):
        if share <= t1:
            f = (share - t0) / (t1 - t0)
            red, green, blue = (round(a + f * (b - a)) for a, b in zip(c0, c1, strict=True))
            return red, green, blue
    return _HEAT_COLOURS[-1][1]


def stacked_bar(weights: Mapping[str, float], styles: Mapping[str, int]) -> Markup:
    """Draw the share of each expert as one bar.

    Parameters
    ----------
    weights
        Expert -> mean gate weight. Shares are of their sum, which is 1 but with sigmoid gates and experts outside the
        softmax.
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


def histogram(counts: Sequence[int], description: str) -> Markup:
    """Draw bars whose height is the logarithm of the counts, so that a few voxels are seen too.

    Parameters
    ----------
    counts
        Of each bin; at least one is positive.
    description
        What a screen reader says.
    """
    top = math.log1p(max(counts))
    bars = "".join(
        f"M{place} 24V{24 - 24 * math.log1p(count) / top:.1f}h1V24z"
        for place, count in enumerate(counts)
        if count
    )
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {len(counts)} 24" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(description)}"><path d="{bars}"/></svg>'
    )  # every text in it is escaped above
