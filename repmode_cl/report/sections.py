"""What each section of the page shows, computed from a run: curves, heat maps, gates, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from repmode_cl.errors import ImageError
from repmode_cl.evaluation.matrix import PerformanceMatrix, forgetting, performance_matrix
from repmode_cl.evaluation.metrics import HIGHER_IS_BETTER
from repmode_cl.report.charts import Line, heat_style, line_chart, nice_ticks, number, stacked_bar
from repmode_cl.report.collect import Run
from repmode_cl.report.images import Panel, panels

__all__ = [
    "METRIC_NAMES",
    "Chart",
    "HeatMap",
    "GateBlock",
    "Pictures",
    "shown_metrics",
    "forgetting_charts",
    "learning_charts",
    "heat_maps",
    "gate_blocks",
    "pictures",
    "spoken",
]

#: How the page writes a metric.
METRIC_NAMES = {"r2": "R²", "mse": "MSE", "mae": "MAE", "pearson": "Pearson r"}

#: A validation curve may begin far below any useful R2; the frame does not follow it there.
LOWEST_SHOWN = {"r2": -0.25, "pearson": -0.25}


@dataclass(frozen=True)
class Chart:
    """A small chart with its heading."""

    heading: str
    svg: Markup


@dataclass(frozen=True)
class HeatMap:
    """One strategy's matrix: rows of (label, cells), a cell being (text, style)."""

    strategy: str
    style: int
    n_seeds: int
    structures: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class GateBlock:
    """The gate weights of one block: for each strategy (strategy, (structure, bar) ...)."""

    name: str
    part: str
    strategies: tuple[tuple[str, tuple[tuple[str, Markup], ...]], ...]


@dataclass(frozen=True)
class Pictures:
    """The pictures of one structure."""

    structure: str
    panels: tuple[Panel, ...]
    caption: str


def spoken(name: str) -> str:
    """Return a structure's name with spaces, which a page can wrap."""
    return name.replace("_", " ")


def shown_metrics(run: Run) -> list[str]:
    """Return the metrics that the run has values of, R2 first."""
    measured = {row.metric for row in run.results}
    return [metric for metric in ("r2", "mse", "mae", "pearson") if metric in measured]


def _matrices(run: Run, title: str, metric: str) -> list[PerformanceMatrix]:
    experiences = run.info.experiences
    return [
        performance_matrix(run.results, title, metric, seed, experiences)
        for seed in run.info.seeds
        if run.results.select(strategy=title, seed=seed, metric=metric)
    ]


def _mean_matrix(run: Run, matrices: Sequence[PerformanceMatrix]) -> NDArray[np.float64]:
    """Average over seeds, (steps, structures); seeds that have not come as far count where they are."""
    n_steps, n_structures = len(run.info.experiences), len(run.info.structures)
    stack = np.full((len(matrices), n_steps, n_structures), math.nan)
    for k, matrix in enumerate(matrices):
        stack[k, : matrix.values.shape[0], : matrix.values.shape[1]] = matrix.values
    known = ~np.isnan(stack)
    count = known.sum(axis=0)
    mean = np.where(known, stack, 0.0).sum(axis=0) / np.maximum(count, 1)
    return np.where(count > 0, mean, math.nan)


def _line(style: int, label: str, curves: Sequence[Sequence[tuple[float, float]]]) -> Line:
    by_x: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in curve:
            if not math.isnan(y):
                by_x.setdefault(x, []).append(y)
    points = tuple((x, sum(ys) / len(ys)) for x, ys in sorted(by_x.items()))
    band = tuple((x, min(ys), max(ys)) for x, ys in sorted(by_x.items())) if len(curves) > 1 else ()
    return Line(style, label, points, band)


def _range(lines: Sequence[Line], metric: str, lowest: float | None = None) -> tuple[float, float]:
    values = [y for line in lines for _, y in line.points]
    values += [y for line in line_bands(lines) for y in line]
    values = [y for y in values if math.isfinite(y)]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if lowest is not None:
        low = max(low, lowest)
    if HIGHER_IS_BETTER[metric]:
        low = min(low, 0.0) if low < 0.5 else low
    high = max(high, low + 0.05)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def line_bands(lines: Sequence[Line]) -> list[tuple[float, float]]:
    """Return (low, high) of every point of every band."""
    return [(low, high) for line in lines for _, low, high in line.band]


def forgetting_charts(run: Run, metric: str) -> list[Chart]:
    """Draw for each structure its test metric after each step since it was learned.

    What is learned in the last step is left out: a single point shows nothing.
    """
    matrices = {title: _matrices(run, title, metric) for title in run.info.strategies}
    last = len(run.info.experiences) - 1
    drawn: list[tuple[str, int, list[Line]]] = []
    for step, names in enumerate(run.info.experiences[:-1]):
        for name in names:
            lines = []
            for style, (title, of_seeds) in enumerate(matrices.items()):
                curves = [
                    [(float(x), float(y)) for x, y in enumerate(m.values[:, m.structures.index(name)])]
                    for m in of_seeds
                    if name in m.structures
                ]
                if curves:
                    lines.append(_line(style, title, curves))
            drawn.append((name, step, lines))
    y_range = _range([line for _, _, lines in drawn for line in lines], metric)
    ticks = [(float(step), str(step)) for step in range(last + 1)]
    return [
        Chart(
            spoken(name),
            line_chart(
                # The first strategy of the run is drawn last, over the others.
                lines[::-1],
                x_range=(0.0, float(max(last, 1))),
                y_range=y_range,
                x_ticks=ticks,
                from_x=float(step),
                description=f"{METRIC_NAMES[metric]} of {spoken(name)} after each step",
            ),
        )
        for name, step, lines in drawn
    ]


def learning_charts(run: Run, metric: str) -> list[Chart]:
    """Draw for each structure the validation metric while it was being learned."""
    charts = []
    drawn: list[tuple[str, list[Line]]] = []
    for name in run.info.structures:
        lines = []
        for style, title in enumerate(run.info.strategies):
            found = [run.curves.get((title, seed), {}).get((metric, name)) for seed in run.info.seeds]
            curves = [[(float(x), y) for x, y in curve] for curve in found if curve]
            if curves:
                lines.append(_line(style, title, curves))
        if lines:
            drawn.append((name, lines))
    y_range = _range([line for _, lines in drawn for line in lines], metric, LOWEST_SHOWN.get(metric))
    for name, lines in drawn:
        end = max(x for line in lines for x, _ in line.points) if any(line.points for line in lines) else 1.0
        ticks = [(x, f"{x:g}") for x in nice_ticks(0.0, end, 3)]
        charts.append(
            Chart(
                spoken(name),
                line_chart(
                    lines[::-1],
                    x_range=(0.0, end),
                    y_range=y_range,
                    x_ticks=ticks,
                    description=f"validation {METRIC_NAMES[metric]} of {spoken(name)} while it is learned",
                ),
            )
        )
    return charts


def heat_maps(run: Run, metric: str) -> list[HeatMap]:
    """Return each strategy's matrix, the mean over seeds, on one scale of colours."""
    means = {}
    for title in run.info.strategies:
        matrices = _matrices(run, title, metric)
        if matrices:
            means[title] = (_mean_matrix(run, matrices), matrices)
    finite = [mean[np.isfinite(mean)] for mean, _ in means.values()]
    known = np.concatenate(finite) if finite else np.zeros(0)
    if known.size == 0:
        return []
    worst, best = float(known.min()), float(known.max())
    if not HIGHER_IS_BETTER[metric]:
        worst, best = best, worst
    worst = _no_worse_than_the_mean(worst, best, metric)
    styles = {title: style for style, title in enumerate(run.info.strategies)}
    maps = []
    for title, (mean, matrices) in means.items():
        rows = tuple(
            (
                _step_label(names, step),
                tuple((_cell(value), heat_style(value, worst, best)) for value in mean[step].tolist()),
            )
            for step, names in enumerate(run.info.experiences)
        )
        lost = [forgetting(matrix) for matrix in matrices]
        maps.append(
            HeatMap(
                title,
                styles[title],
                len(matrices),
                tuple(spoken(name) for name in run.info.structures),
                rows,
                tuple(_lost([of[name] for of in lost if name in of]) for name in run.info.structures),
            )
        )
    return maps


def _no_worse_than_the_mean(worst: float, best: float, metric: str) -> float:
    """Begin the scale of colours where a prediction is worth something, or one disaster takes all of it."""
    if metric == "mse":
        return min(worst, 1.0) if best < 1.0 else worst
    if metric == "mae":
        return worst
    return max(worst, 0.0) if best > 0.0 else worst


def _step_label(names: Sequence[str], step: int) -> str:
    if step == 0:
        return "0: base" if len(names) > 1 else f"0: {spoken(names[0])}"
    return f"{step}: + {', '.join(spoken(name) for name in names)}"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else number(float(value), 3)


def _lost(values: Sequence[float]) -> str:
    if not values:
        return ""
    if all(value == 0.0 for value in values):
        return "0.0"
    mean = sum(values) / len(values)
    return f"{'+' if mean > 0 else ''}{number(mean, 3)}"


def gate_blocks(run: Run) -> tuple[list[GateBlock], list[tuple[str, str]], list[str]]:
    """Return the gate weights of every block, a legend, and the blocks to show first.

    Returns
    -------
    blocks
        In the order of the network.
    legend
        (class of the colour, name of the expert); fresh experts of additions share one colour.
    first
        Names of one block of the encoder and one of the decoder, as in the paper's Fig. 6.
    """
    shared = _shared_experts(run)
    styles = {expert: k for k, expert in enumerate(shared)}
    names = list(
        dict.fromkeys(block for of in run.gates.values() for blocks in of.values() for block in blocks)
    )
    blocks = []
    for name in names:
        strategies = tuple(
            (
                title,
                tuple(
                    (spoken(structure), stacked_bar(of[structure][name], styles))
                    for structure in run.info.structures
                    if name in of.get(structure, {})
                ),
            )
            for title, of in run.gates.items()
        )
        blocks.append(GateBlock(name, _part(name), strategies))
    legend = [(f"e{k}", expert) for expert, k in styles.items()]
    named = {
        expert
        for of in run.gates.values()
        for in_block in of.values()
        for weights in in_block.values()
        for expert in weights
    }
    if named - set(shared):
        legend.append(("efresh", "fresh expert of an addition"))
    first = []
    for part in ("encoder", "decoder"):
        inside = [name for name in names if _part(name) == part]
        if inside:
            first.append(inside[len(inside) // 2])
    return blocks, legend, first or names[:1]


def _shared_experts(run: Run) -> list[str]:
    configured = run.config.get("network")
    named = configured.get("experts") if isinstance(configured, Mapping) else None
    base = run.info.experiences[0] if run.info.experiences else ()
    for of in run.gates.values():
        for structure in base:
            for weights in of.get(structure, {}).values():
                return list(weights)
    return [str(expert) for expert in named] if isinstance(named, list) else []


def _part(block: str) -> str:
    lowered = block.lower()
    for part in ("encoder", "decoder"):
        if part[:3] in lowered:
            return part
    return "other"


def pictures(run: Run) -> list[Pictures]:
    """Return the slices of each structure's fixed test image, strategies in the order of the run."""
    made = []
    for structure in run.info.structures:
        found = run.predictions.get(structure, {})
        ordered = {title: found[title] for title in run.info.strategies if title in found}
        if ordered:
            try:
                columns, caption = panels(ordered)
            except ImageError as error:
                run.notes.append(f"no pictures of {structure}: {error}")
                continue
            made.append(Pictures(spoken(structure), tuple(columns), caption))
    return made


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
