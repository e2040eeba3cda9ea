"""The page's charts and heat maps: one view of every stream and metric, of which the page's script shows one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.report.page.chart_data import (
    FORGETTING_LIMITS,
    LOWEST_LEARNING,
    METRIC_NAMES,
    MatrixOverSeeds,
    Point,
    colour_scale,
    learning_curves,
    matrices_over_seeds,
    readable,
)
from repmode_cl.report.page.svg import Line, heat_style, line_chart, nice_ticks
from repmode_cl.results.run_folder import Run
from repmode_cl.utils.number_format import number

__all__ = [
    "Chart",
    "ChartView",
    "HeatMap",
    "HeatMapView",
    "forgetting_charts",
    "learning_charts",
    "heat_maps",
]

#: Heat maps of more structures are narrow.
MANY = 6


@dataclass(frozen=True)
class Chart:
    """A small chart of one structure."""

    structure: str
    svg: Markup


@dataclass(frozen=True)
class ChartView:
    """Charts of one stream and metric, with one y axis (lowest, highest)."""

    stream: str
    metric: str
    y_range: tuple[float, float]
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class HeatMap:
    """One strategy's matrix.

    Attributes
    ----------
    strategy
        Its title.
    n_seeds
        Seeds of which the cells are means.
    rows
        (label of the step, cells); a cell is (text, style, its mean, lowest and highest over seeds; the mean
        only where there is one seed).
    forgotten
        Texts of the last line.
    """

    strategy: str
    n_seeds: int
    rows: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    forgotten: tuple[str, ...]


@dataclass(frozen=True)
class HeatMapView:
    """Heat maps of one stream and metric, on one scale of colours."""

    stream: str
    metric: str
    structures: tuple[str, ...]
    maps: tuple[HeatMap, ...]


def forgetting_charts(run: Run, stream: str, metric: str) -> ChartView:
    """Draw for each structure its test metric after each step since it was learned.

    What is learned in the last step is left out: a single point shows nothing.
    """
    experiences, matrices = run.info.streams[stream], matrices_over_seeds(run, stream, metric)
    last = len(experiences) - 1
    learned_at: dict[str, int] = {}
    lines_of: dict[str, list[Line]] = {}
    for name in run.info.structures_of(stream):
        step = next(k for k, names in enumerate(experiences) if name in names)
        if step < last:
            learned_at[name] = step
            lines_of[name] = [_line(run, title, matrix.points(name)) for title, matrix in matrices.items()]
    y_range = _y_range(lines_of.values(), metric, *FORGETTING_LIMITS.get(metric, (None, None)))
    charts = tuple(
        Chart(
            name,
            line_chart(
                # The first strategy of the run is drawn last, over the others.
                lines[::-1],
                x_range=(0.0, float(max(last, 1))),
                y_range=y_range,
                x_ticks=[(float(k), str(k)) for k in range(last + 1)],
                x_name="after step",
                learned_at=float(learned_at[name]),
                description=f"{METRIC_NAMES[metric]} of {readable(name)} after each step",
            ),
        )
        for name, lines in lines_of.items()
    )
    return ChartView(stream, metric, y_range, charts)


def learning_charts(run: Run, stream: str, metric: str) -> ChartView:
    """Draw for each structure the validation metric while it was being learned."""
    lines_of = {
        name: [_line(run, title, points) for title, points in curves.items()]
        for name, curves in learning_curves(run, stream, metric).items()
    }
    y_range = _y_range(lines_of.values(), metric, LOWEST_LEARNING.get(metric), None)
    charts = []
    for name, lines in lines_of.items():
        end = max(x for line in lines for x, _ in line.points)
        svg = line_chart(
            lines[::-1],
            x_range=(0.0, end),
            y_range=y_range,
            x_ticks=[(x, f"{x:g}") for x in nice_ticks(0.0, end, 3)],
            description=f"validation {METRIC_NAMES[metric]} of {readable(name)} while it is learned",
        )
        charts.append(Chart(name, svg))
    return ChartView(stream, metric, y_range, tuple(charts))


def heat_maps(run: Run, stream: str, metric: str) -> HeatMapView:
    """Return each strategy's matrix, the mean over seeds, on one scale of colours."""
    matrices = matrices_over_seeds(run, stream, metric)
    scale = colour_scale(matrices, metric)
    maps = tuple(_heat_map(run, stream, title, matrix, scale) for title, matrix in matrices.items())
    return HeatMapView(stream, metric, run.info.structures_of(stream), maps)


def _line(run: Run, title: str, points: Sequence[Point]) -> Line:
    band = tuple((x, low, high) for x, _, low, high in points)
    flat = all(low == high for _, low, high in band)
    strategy = list(run.info.strategies).index(title)
    return Line(strategy, title, tuple((x, mean) for x, mean, _, _ in points), () if flat else band)


def _y_range(
    charts: Iterable[Sequence[Line]], metric: str, lowest: float | None, highest: float | None
) -> tuple[float, float]:
    """Return the y axis of all charts of a view, which ends at `lowest` and `highest` wherever lines go."""
    lines = [line for lines in charts for line in lines]
    values = [y for line in lines for _, y in line.points]
    values += [y for line in lines for _, low, high in line.band for y in (low, high)]
    values = [y for y in values if math.isfinite(y)]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if lowest is not None:
        low = max(low, lowest)
    if highest is not None:
        high = min(high, highest)
    if HIGHER_IS_BETTER[metric]:
        low = min(low, 0.0) if low < 0.5 else low
    high = max(high, low + 0.05)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _heat_map(
    run: Run, stream: str, title: str, matrix: MatrixOverSeeds, scale: tuple[float, float]
) -> HeatMap:
    # Many columns need narrow cells; the files have every digit.
    digits = 2 if len(matrix.structures) > MANY else 3
    rows = []
    for step, names in enumerate(run.info.streams[stream]):
        cells = []
        of_step = (matrix.mean[step], matrix.low[step], matrix.high[step], matrix.evaluated[step])
        for mean, low, high, evaluated in zip(*of_step, strict=True):
            known = [] if math.isnan(mean) else [mean, low, high] if matrix.n_seeds > 1 else [mean]
            text = number(float(mean), digits) if known else "nan" if evaluated else ""
            values = " ".join(f"{value:.5g}" for value in known)
            cells.append((text, heat_style(float(mean), *scale), values))
        rows.append((_step_label(names, step), tuple(cells)))
    forgotten = tuple(_forgotten_text(value, digits) for value in matrix.forgotten)
    return HeatMap(title, matrix.n_seeds, tuple(rows), forgotten)


def _step_label(names: Sequence[str], step: int) -> str:
    if step == 0:
        return "0: base" if len(names) > 1 else f"0: {readable(names[0])}"
    return f"{step}: + {', '.join(readable(name) for name in names)}"


def _forgotten_text(value: float | None, digits: int) -> str:
    """Return how a heat map writes what was forgotten; ``0.0`` is exactly nothing."""
    if value is None:
        return ""
    return "0.0" if value == 0.0 else f"{'+' if value > 0 and digits > 2 else ''}{number(value, digits)}"
