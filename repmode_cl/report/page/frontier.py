"""Quality against cost: one dot for each strategy, and the edge beyond which none gives more for less."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from repmode_cl.report.page.svg import COLOURS, nice_ticks
from repmode_cl.utils.number_format import count_text, number, seconds_text

__all__ = ["Frontier", "frontier_charts", "upper_left_edge"]

_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 12, 40

#: Cost of a row of `strategy_table` -> what the axis is called, and how a cost is written.
_COSTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "added_bytes": ("bytes of an added structure", lambda cost: count_text(cost, "B")),
    "added_cpu_seconds": ("processor seconds of an added structure", seconds_text),
}

#: Labels such as "50.0 kB" below the axis that do not touch.
_MOST_TICKS = 6

#: Width of a letter of the labels, about.
_LETTER = 6.0


@dataclass(frozen=True)
class Frontier:
    """A chart of quality against one cost.

    Attributes
    ----------
    cost
        What is across.
    svg
        The chart.
    on_edge
        Titles on the upper left edge, the cheapest first.
    left_out
        Titles without this cost or without a finished seed.
    """

    cost: str
    svg: Markup
    on_edge: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Dot:
    """A strategy: its number in the run, its cost (above 0) and its R2."""

    strategy: int
    title: str
    cost: float
    value: float


def upper_left_edge(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points to which none is at most as costly and better, or cheaper and at least as good.

    Parameters
    ----------
    points
        (cost, value); a larger value is better.

    Returns
    -------
    list of int
        The cheapest first. Of several equal points all.
    """
    edge: list[int] = []
    best = -math.inf
    for place in sorted(range(len(points)), key=lambda k: (points[k][0], -points[k][1])):
        cost, value = points[place]
        if value > best or (edge and points[edge[-1]] == (cost, value)):
            edge.append(place)
            best = value
    return edge


def frontier_charts(rows: Sequence[Mapping[str, Any]]) -> list[Frontier]:
    """Draw R2 of the structures after the base against bytes and against processor seconds, each on a log scale.

    Parameters
    ----------
    rows
        Of `strategy_table`.

    Returns
    -------
    list of Frontier
        One for each cost that at least two strategies have.
    """
    charts = []
    for key, (name, in_words) in _COSTS.items():
        dots, left_out = [], []
        for place, row in enumerate(rows):
            value, cost = row["added_r2"], row[key]
            if value is None or not math.isfinite(value) or not cost or cost <= 0:
                left_out.append(row["strategy"])
            else:
                dots.append(_Dot(place, row["strategy"], cost, value))
        if len(dots) > 1:
            edge = [dots[k] for k in upper_left_edge([(dot.cost, dot.value) for dot in dots])]
            svg = _draw(dots, edge, name, in_words)
            charts.append(Frontier(name, svg, tuple(dot.title for dot in edge), tuple(left_out)))
    return charts


def _draw(dots: Sequence[_Dot], edge: Sequence[_Dot], name: str, in_words: Callable[[float], str]) -> Markup:
    """Draw the axes, the edge as stairs, a dot for each strategy, and the titles of those on the edge."""
    x0, x1 = _padded([math.log10(dot.cost) for dot in dots], least=0.1)
    # What is worse than predicting the mean stands on the lower end of the axis.
    y0, y1 = _padded([max(dot.value, 0.0) for dot in dots], least=0.02)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def px(cost: float) -> float:
        return round(_LEFT + (math.log10(cost) - x0) / (x1 - x0) * (right - _LEFT), 1)

    def py(value: float) -> float:
        return round(bottom - (max(value, y0) - y0) / (y1 - y0) * (bottom - _TOP), 1)

    label = f"R2 of the added structures against {name}"
    out = [
        f'<svg class="chart frontier" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
    ]
    ticks = nice_ticks(y0, y1)
    digits = max((len(f"{tick:.3f}".rstrip("0").split(".")[1]) for tick in ticks), default=1)
    for tick in ticks:
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{py(tick)}" y2="{py(tick)}"/>')
        out.append(_text(_LEFT - 6, py(tick) + 3.5, number(tick, digits), "end"))
    for cost in _log_ticks(x0, x1):
        out.append(f'<line class="grid" x1="{px(cost)}" x2="{px(cost)}" y1="{bottom}" y2="{bottom + 4}"/>')
        out.append(_text(px(cost), bottom + 16, in_words(cost), "middle"))
    out.append(_text((_LEFT + right) / 2, _HEIGHT - 6, name, "middle"))
    stairs = [f"M{px(edge[0].cost)} {bottom}V{py(edge[0].value)}"]
    stairs += [f"H{px(dot.cost)}V{py(dot.value)}" for dot in edge[1:]]
    out.append(f'<path class="edge" d="{"".join(stairs)}H{right}"/>')
    for dot in dots:
        said = f"{dot.title}: R2 {number(dot.value, 3)}, {in_words(dot.cost)}"
        out.append(
            f'<g data-strategy="{dot.strategy}" class="s{dot.strategy % COLOURS}"><title>{escape(said)}</title>'
            f'<circle cx="{px(dot.cost)}" cy="{py(dot.value)}" r="5"/></g>'
        )
    out += _labels(edge, px, py, right)
    out.append("</svg>")
    return Markup("".join(out))  # every text in it is escaped above


def _labels(
    edge: Sequence[_Dot], px: Callable[[float], float], py: Callable[[float], float], right: float
) -> list[str]:
    """Write the titles of the edge below their dots, each below the one before where they would touch."""
    out: list[str] = []
    taken: list[tuple[float, float, float]] = []  # left, right, y
    for dot in edge:
        wide = _LETTER * len(dot.title)
        end = px(dot.cost) + 9 + wide > right
        left = px(dot.cost) - 9 - wide if end else px(dot.cost) + 9
        y = py(dot.value) + 13
        while any(left < other[1] and other[0] < left + wide and abs(y - other[2]) < 12 for other in taken):
            y += 12
        taken.append((left, left + wide, y))
        out.append(_text(left + wide if end else left, y, dot.title, "end" if end else "start"))
    return out


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _padded(values: Sequence[float], *, least: float) -> tuple[float, float]:
    """Return the ends of an axis around the values, which is at least `least` long."""
    low, high = min(values), max(values)
    margin = 0.08 * max(high - low, least)
    return low - margin, high + margin


def _log_ticks(low: float, high: float) -> list[float]:
    """Return at most `_MOST_TICKS` round numbers between 10^low and 10^high, as many as that allows."""
    if high - low < 0.7:  # too few of each decade's 1, 2 and 5
        return nice_ticks(10**low, 10**high)
    decades = range(math.floor(low), math.ceil(high) + 1)
    for parts, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2)):
        ticks = [part * 10.0**decade for decade in decades[::every] for part in parts]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) <= _MOST_TICKS:
            break
    return ticks
