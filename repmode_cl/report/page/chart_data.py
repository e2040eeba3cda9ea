"""The numbers behind the page's charts, over seeds: drawn once as static pictures, and again by the page's script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.evaluation.performance_matrix import (
    PerformanceMatrix,
    forgetting,
    mean_or_nan,
    performance_matrix,
)
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.report.tables.number_format import number
from repmode_cl.results.run_folder import Run
from repmode_cl.results.trial_record import Trial

__all__ = [
    "METRIC_NAMES",
    "FORGETTING_ENDS",
    "LOWEST_SHOWN",
    "Spread",
    "Course",
    "courses",
    "learning",
    "lost_text",
    "chart_data",
    "shown_metrics",
    "curve_metrics",
    "spoken",
    "stream_label",
    "worst_and_best",
]

#: How the page writes a metric.
METRIC_NAMES = {"r2": "R²", "mse": "MSE", "mae": "MAE", "pearson": "Pearson r"}

#: A validation curve may begin far below any useful R2; the frame does not follow it there.
LOWEST_SHOWN = {"r2": -0.25, "pearson": -0.25}

#: One structure that ran away would leave no room for the others in the charts of forgetting: their ends, where the
#: error is twice that of predicting the mean.
FORGETTING_ENDS: dict[str, tuple[float | None, float | None]] = {"r2": (-1.0, None), "mse": (None, 2.0)}

#: x, and mean, lowest and highest over seeds.
Spread = tuple[float, float, float, float]


@dataclass(frozen=True)
class Course:
    """One strategy's matrix over seeds.

    Attributes
    ----------
    n_seeds
        Number of seeds.
    structures
        Columns, in the order of the stream.
    mean, low, high
        (number of steps, number of structures) float64; NaN where a structure was not evaluated.
    lost
        For each structure what was forgotten, mean over seeds; 0 only where no seed forgot or gained anything,
        None for what cannot be forgotten yet.
    """

    n_seeds: int
    structures: tuple[str, ...]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    lost: tuple[float | None, ...]

    def of(self, structure: str) -> list[Spread]:
        """Return the points of one structure: x is the step."""
        column = self.structures.index(structure)
        values = zip(self.mean[:, column], self.low[:, column], self.high[:, column], strict=True)
        return [
            (float(step), float(mean), float(low), float(high))
            for step, (mean, low, high) in enumerate(values)
            if not math.isnan(mean)
        ]


def spoken(name: str) -> str:
    """Return a structure's name with spaces, which a page can wrap."""
    return name.replace("_", " ")


def stream_label(name: str) -> str:
    """Return how the page names a stream: ``order 3, 2 images`` for ``order-3-images-2``."""
    parts = name.rsplit("images-", 1)
    text = parts[0].strip("-").replace("-", " ")
    if len(parts) > 1:
        images = f"{parts[1]} image{'' if parts[1] == '1' else 's'} each"
        return f"{text}, {images}" if text else images
    return text or "the stream"


def shown_metrics(run: Run) -> list[str]:
    """Return the metrics that the run has values of, R2 first."""
    measured = {row.metric for row in run.results}
    return [metric for metric in METRIC_NAMES if metric in measured]


def curve_metrics(run: Run) -> list[str]:
    """Return the metrics that were validated while learning, R2 first."""
    validated = {metric for curves in run.curves.values() for metric, _ in curves}
    return [metric for metric in METRIC_NAMES if metric in validated]


def courses(run: Run, stream: str, metric: str) -> dict[str, Course]:
    """Return each strategy's matrix over seeds, for those that have one.

    Seeds that have not come as far count where they are.
    """
    experiences, structures = run.info.streams[stream], run.info.structures_of(stream)
    found = {}
    for title in run.info.strategies:
        matrices = [
            performance_matrix(run.results, title, metric, seed, experiences, stream)
            for seed in run.info.seeds
            if run.results.select(strategy=title, stream=stream, seed=seed, metric=metric)
        ]
        if not matrices:
            continue
        stack = np.full((len(matrices), len(experiences), len(structures)), math.nan)
        for place, matrix in zip(stack, matrices, strict=True):
            for column, name in enumerate(matrix.structures):
                place[: len(matrix.values), structures.index(name)] = matrix.values[:, column]
        known = ~np.isnan(stack)
        count = known.sum(axis=0)
        mean = np.where(known, stack, 0.0).sum(axis=0) / np.maximum(count, 1)
        found[title] = Course(
            len(matrices),
            structures,
            np.where(count > 0, mean, math.nan),
            np.where(count > 0, np.where(known, stack, math.inf).min(axis=0), math.nan),
            np.where(count > 0, np.where(known, stack, -math.inf).max(axis=0), math.nan),
            _lost(matrices, structures),
        )
    return found


def _lost(matrices: Sequence[PerformanceMatrix], structures: Sequence[str]) -> tuple[float | None, ...]:
    of_seeds = [forgetting(matrix) for matrix in matrices]
    means: list[float | None] = []
    for name in structures:
        values = [lost[name] for lost in of_seeds if name in lost]
        mean = mean_or_nan(values)
        # Gains and losses that cancel are not nothing.
        means.append(None if not values else mean if mean or not any(values) else math.ulp(0.0))
    return tuple(means)


def lost_text(value: float | None, digits: int = 3) -> str:
    """Return how a heat map writes what was forgotten; ``0.0`` is exactly nothing."""
    if value is None:
        return ""
    return "0.0" if value == 0.0 else f"{'+' if value > 0 and digits > 2 else ''}{number(value, digits)}"


def learning(run: Run, stream: str, metric: str) -> dict[str, dict[str, list[Spread]]]:
    """Return the validation curves over seeds: structure -> strategy -> points, x the optimiser step."""
    found: dict[str, dict[str, list[Spread]]] = {}
    for structure in run.info.structures_of(stream):
        for title in run.info.strategies:
            at: dict[float, list[float]] = {}
            for seed in run.info.seeds:
                for x, y in run.curves.get(Trial(title, stream, seed), {}).get((metric, structure), ()):
                    if math.isfinite(y):
                        at.setdefault(float(x), []).append(y)
            if at:
                found.setdefault(structure, {})[title] = [
                    (x, sum(ys) / len(ys), min(ys), max(ys)) for x, ys in sorted(at.items())
                ]
    return found


def worst_and_best(of_strategies: Mapping[str, Course], metric: str) -> tuple[float, float]:
    """Return the ends of the colour scale of all strategies' matrices.

    It begins where a prediction is worth something, or one disaster takes all of it.
    """
    finite = [course.mean[np.isfinite(course.mean)] for course in of_strategies.values()]
    known = np.concatenate(finite) if finite else np.zeros(0)
    if known.size == 0:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    if metric == "mse":
        return (min(high, 1.0) if low < 1.0 else high), low
    if not HIGHER_IS_BETTER[metric]:
        return high, low
    return (max(low, 0.0) if high > 0.0 else low), high


def chart_data(run: Run) -> dict[str, Any]:
    """Return what the page's script draws from, ready for JSON; a strategy is its place in `strategies`."""
    info = run.info
    place = {title: number for number, title in enumerate(info.strategies)}
    structures = list(dict.fromkeys(name for stream in info.streams for name in info.structures_of(stream)))
    streams = []
    for stream, experiences in info.streams.items():
        of_metric = {}
        for metric in shown_metrics(run):
            found = courses(run, stream, metric)
            of_metric[metric] = {
                "scale": [_short(end) for end in worst_and_best(found, metric)],
                "strategies": {str(place[title]): _course(course) for title, course in found.items()},
            }
        streams.append(
            {
                "name": stream,
                "label": stream_label(stream),
                "steps": [list(names) for names in experiences],
                "structures": list(info.structures_of(stream)),
                "matrices": of_metric,
                "curves": {
                    metric: {
                        structure: {str(place[title]): _flat(points) for title, points in lines.items()}
                        for structure, lines in learning(run, stream, metric).items()
                    }
                    for metric in curve_metrics(run)
                },
            }
        )
    return {
        "strategies": list(info.strategies),
        "structures": {name: spoken(name) for name in structures},
        "metrics": {
            metric: {
                "name": METRIC_NAMES[metric],
                "higher": higher,
                "learning": [LOWEST_SHOWN.get(metric), None],
                "forgetting": list(FORGETTING_ENDS.get(metric, (None, None))),
            }
            for metric, higher in HIGHER_IS_BETTER.items()
            if metric in METRIC_NAMES
        },
        "streams": streams,
    }


def _course(course: Course) -> dict[str, Any]:
    several = course.n_seeds > 1
    return {
        "seeds": course.n_seeds,
        "mean": _grid(course.mean),
        "low": _grid(course.low) if several else None,
        "high": _grid(course.high) if several else None,
        "lost": [None if value is None else 0 if value == 0 else _short(value) for value in course.lost],
    }


def _grid(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[_short(value) for value in row] for row in values.tolist()]


def _flat(points: Sequence[Spread]) -> list[list[float | None]]:
    # Without a spread the two ends of the band say nothing more.
    return [[_short(value) for value in (point if point[2] != point[3] else point[:2])] for point in points]


def _short(value: float) -> float | None:
    """Return a number with five digits, of which a chart shows three or four; None for NaN."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
