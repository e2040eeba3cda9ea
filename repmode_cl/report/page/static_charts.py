"""What the page shows before, or without, its script: charts and heat maps of the first stream, as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.report.page.chart_data import (
    FORGETTING_ENDS,
    LOWEST_SHOWN,
    METRIC_NAMES,
    Course,
    Spread,
    courses,
    learning,
    lost_text,
    spoken,
    worst_and_best,
)
from repmode_cl.report.page.slices import Panel, panels
from repmode_cl.report.page.svg import Line, heat_style, line_chart, nice_ticks
from repmode_cl.report.tables.number_format import number
from repmode_cl.results.predictions import read_prediction
from repmode_cl.results.run_folder import Run

__all__ = [
    "Chart",
    "HeatMap",
    "forgetting_charts",
    "learning_charts",
    "heat_maps",
    "first_pictures",
    "summary_of_config",
]

#: Heat maps of more structures are narrow.
MANY = 6


@dataclass(frozen=True)
class Chart:
    """A small chart of one structure."""

    structure: str
    heading: str
    svg: Markup


@dataclass(frozen=True)
class HeatMap:
    """One strategy's matrix: rows of (label, cells), a cell being (text, style)."""

    strategy: str
    n_seeds: int
    structures: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    lost: tuple[str, ...]


def _line(style: int, label: str, spread: Sequence[Spread]) -> Line:
    band = tuple((x, low, high) for x, _, low, high in spread)
    flat = all(low == high for _, low, high in band)
    return Line(style, label, tuple((x, mean) for x, mean, _, _ in spread), () if flat else band)


def _range(
    lines: Sequence[Line], metric: str, lowest: float | None = None, highest: float | None = None
) -> tuple[float, float]:
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


def _styles(run: Run) -> dict[str, int]:
    return {title: style for style, title in enumerate(run.info.strategies)}


def forgetting_charts(run: Run, stream: str, metric: str) -> list[Chart]:
    """Draw for each structure its test metric after each step since it was learned.

    What is learned in the last step is left out: a single point shows nothing.
    """
    experiences, styles = run.info.streams[stream], _styles(run)
    found = courses(run, stream, metric)
    last = len(experiences) - 1
    drawn: list[tuple[str, int, list[Line]]] = []
    for name in run.info.structures_of(stream):
        step = next(k for k, names in enumerate(experiences) if name in names)
        if step < last:
            lines = [_line(styles[title], title, course.of(name)) for title, course in found.items()]
            drawn.append((name, step, lines))
    ends = FORGETTING_ENDS.get(metric, (None, None))
    y_range = _range([line for _, _, lines in drawn for line in lines], metric, *ends)
    return [
        Chart(
            name,
            spoken(name),
            line_chart(
                # The first strategy of the run is drawn last, over the others.
                lines[::-1],
                x_range=(0.0, float(max(last, 1))),
                y_range=y_range,
                x_ticks=[(float(k), str(k)) for k in range(last + 1)],
                from_x=float(step),
                description=f"{METRIC_NAMES[metric]} of {spoken(name)} after each step",
            ),
        )
        for name, step, lines in drawn
    ]


def learning_charts(run: Run, stream: str, metric: str) -> list[Chart]:
    """Draw for each structure the validation metric while it was being learned."""
    styles = _styles(run)
    drawn = {
        name: [_line(styles[title], title, spread) for title, spread in lines.items()]
        for name, lines in learning(run, stream, metric).items()
    }
    y_range = _range([line for lines in drawn.values() for line in lines], metric, LOWEST_SHOWN.get(metric))
    charts = []
    for name, lines in drawn.items():
        end = max(x for line in lines for x, _ in line.points)
        svg = line_chart(
            lines[::-1],
            x_range=(0.0, end),
            y_range=y_range,
            x_ticks=[(x, f"{x:g}") for x in nice_ticks(0.0, end, 3)],
            description=f"validation {METRIC_NAMES[metric]} of {spoken(name)} while it is learned",
        )
        charts.append(Chart(name, spoken(name), svg))
    return charts


def heat_maps(run: Run, stream: str, metric: str) -> list[HeatMap]:
    """Return each strategy's matrix, the mean over seeds, on one scale of colours."""
    found = courses(run, stream, metric)
    worst, best = worst_and_best(found, metric)
    return [_heat_map(run, stream, title, course, worst, best) for title, course in found.items()]


def _heat_map(run: Run, stream: str, title: str, course: Course, worst: float, best: float) -> HeatMap:
    # Many columns need narrow cells; the files have every digit.
    digits = 2 if len(course.structures) > MANY else 3
    rows = tuple(
        (
            _step_label(names, step),
            tuple(
                (_cell(value, digits), heat_style(value, worst, best)) for value in course.mean[step].tolist()
            ),
        )
        for step, names in enumerate(run.info.streams[stream])
    )
    lost = tuple(lost_text(value, digits) for value in course.lost)
    return HeatMap(title, course.n_seeds, course.structures, rows, lost)


def _step_label(names: Sequence[str], step: int) -> str:
    if step == 0:
        return "0: base" if len(names) > 1 else f"0: {spoken(names[0])}"
    return f"{step}: + {', '.join(spoken(name) for name in names)}"


def _cell(value: float, digits: int) -> str:
    return "" if math.isnan(value) else number(value, digits)


def first_pictures(run: Run) -> tuple[str, Sequence[Panel], str] | None:
    """Return slices of the first structure that has any: its name, the panels and what is to be said of them."""
    for structure, files in run.predictions.items():
        try:
            found = {title: read_prediction(path) for title, path in files.items()}
            shown, caption = panels(found)
        except (ImageError, RepmodeError):
            continue  # said already, where all volumes are read
        return spoken(structure), shown, caption
    return None


def summary_of_config(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that a reader asks for first, as (what, value); those that are there."""

    def get(*keys: str) -> Any:
        value: Any = config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def size(value: Any) -> str | None:
        times = " \N{MULTIPLICATION SIGN} "
        return times.join(str(part) for part in value) if isinstance(value, list) else None

    manifest, fields = get("data", "manifest"), get("data", "simulate", "fields")
    width, depth = get("network", "width"), get("network", "depth")
    budget = f"{get('training', 'steps')} steps" if get("training", "steps") else None
    if get("training", "epochs"):
        budget = f"{get('training', 'epochs')} epochs"
    base_steps = get("training", "base_steps")
    shown = [
        ("images", manifest or (f"{fields} simulated fields" if fields else None)),
        ("field (z, y, x)", None if manifest else size(get("data", "simulate", "shape"))),
        ("network", f"width {width}, depth {depth}" if width and depth else None),
        ("patch", size(get("patch", "size"))),
        ("batch", get("training", "batch_size")),
        ("budget", f"{budget}, base {base_steps}" if budget and base_steps else budget),
        ("learning rate", get("training", "learning_rate")),
        ("schedule", get("training", "schedule")),
    ]
    return [(what, str(value)) for what, value in shown if value is not None]
