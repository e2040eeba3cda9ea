"""Numbers behind the page's charts, over seeds: performance matrices, learning curves and the scale of colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repmode_cl.evaluation.performance_matrix import (
    PerformanceMatrix,
    forgetting,
    mean_or_nan,
    performance_matrix,
)
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.results.run_folder import Run
from repmode_cl.results.trial_record import Trial

__all__ = [
    "METRIC_NAMES",
    "FORGETTING_LIMITS",
    "LOWEST_LEARNING",
    "Point",
    "MatrixOverSeeds",
    "matrices_over_seeds",
    "learning_curves",
    "colour_scale",
    "evaluated_metrics",
    "validated_metrics",
    "readable",
    "stream_label",
]

#: Names of metrics on the page.
METRIC_NAMES = {"r2": "R²", "mse": "MSE", "mae": "MAE", "pearson": "Pearson r"}

#: Lowest end of the axis of learning curves: a validation curve may begin far below any useful R2.
LOWEST_LEARNING = {"r2": -0.25, "pearson": -0.25}

#: Lowest and highest end of the axis in the charts of forgetting, where the error is twice that of predicting the
#: mean: one structure that diverged would leave no room for the others.
FORGETTING_LIMITS: dict[str, tuple[float | None, float | None]] = {"r2": (-1.0, None), "mse": (None, 2.0)}

#: x, and mean, lowest and highest over seeds.
Point = tuple[float, float, float, float]


@dataclass(frozen=True)
class MatrixOverSeeds:
    """One strategy's performance matrix over seeds.

    Attributes
    ----------
    n_seeds
        Number of seeds.
    structures
        Columns, in the order of the stream.
    mean, low, high
        (number of steps, number of structures) float64; NaN where a structure was not evaluated, and where that of a
        seed is no finite number.
    evaluated
        (number of steps, number of structures) bool: where a structure was evaluated with a seed.
    forgotten
        For each structure what was forgotten, mean over seeds; 0 only where no seed forgot or gained anything,
        None for what cannot be forgotten yet.
    """

    n_seeds: int
    structures: tuple[str, ...]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    evaluated: NDArray[np.bool_]
    forgotten: tuple[float | None, ...]

    def points(self, structure: str) -> list[Point]:
        """Return the points of one structure: x is the step."""
        column = self.structures.index(structure)
        values = zip(self.mean[:, column], self.low[:, column], self.high[:, column], strict=True)
        return [
            (float(step), float(mean), float(low), float(high))
            for step, (mean, low, high) in enumerate(values)
            if not math.isnan(mean)
        ]


def matrices_over_seeds(run: Run, stream: str, metric: str) -> dict[str, MatrixOverSeeds]:
    """Return each strategy's matrix over seeds, for those that have one.

    Seeds with fewer steps count in the steps that they have.
    """
    experiences, structures = run.info.streams[stream], run.info.structures_of(stream)
    of_strategies = {}
    for title in run.info.strategies:
        rows_of_seeds = [
            rows
            for seed in run.info.seeds
            if (rows := run.results.select(strategy=title, stream=stream, seed=seed, metric=metric))
        ]
        if not rows_of_seeds:
            continue
        matrices = [
            performance_matrix(run.results, title, metric, rows[0].seed, experiences, stream)
            for rows in rows_of_seeds
        ]
        stack = np.full((len(matrices), len(experiences), len(structures)), math.nan)
        evaluated = np.zeros(stack.shape, bool)
        for place, (rows, matrix) in enumerate(zip(rows_of_seeds, matrices, strict=True)):
            for column, name in enumerate(matrix.structures):
                stack[place, : len(matrix.values), structures.index(name)] = matrix.values[:, column]
            # Not by what is NaN: a seed that diverged makes the mean NaN, as in the tables.
            for row in rows:
                evaluated[place, row.step, structures.index(row.structure)] = True
        count = evaluated.sum(axis=0)
        mean = np.where(evaluated, stack, 0.0).sum(axis=0) / np.maximum(count, 1)
        of_strategies[title] = MatrixOverSeeds(
            len(matrices),
            structures,
            np.where(count > 0, mean, math.nan),
            np.where(count > 0, np.where(evaluated, stack, math.inf).min(axis=0), math.nan),
            np.where(count > 0, np.where(evaluated, stack, -math.inf).max(axis=0), math.nan),
            count > 0,
            _forgotten(matrices, structures),
        )
    return of_strategies


def _forgotten(matrices: Sequence[PerformanceMatrix], structures: Sequence[str]) -> tuple[float | None, ...]:
    of_seeds = [forgetting(matrix) for matrix in matrices]
    means: list[float | None] = []
    for name in structures:
        values = [of_structures[name] for of_structures in of_seeds if name in of_structures]
        mean = mean_or_nan(values)
        # Gains and losses that cancel are not nothing.
        means.append(None if not values else mean if mean or not any(values) else math.ulp(0.0))
    return tuple(means)


def learning_curves(run: Run, stream: str, metric: str) -> dict[str, dict[str, list[Point]]]:
    """Return the validation curves over seeds: structure -> strategy -> points, x the optimiser step."""
    curves: dict[str, dict[str, list[Point]]] = {}
    for structure in run.info.structures_of(stream):
        for title in run.info.strategies:
            at_step: dict[float, list[float]] = {}
            for seed in run.info.seeds:
                for x, y in run.curves.get(Trial(title, stream, seed), {}).get((metric, structure), ()):
                    if math.isfinite(y):
                        at_step.setdefault(float(x), []).append(y)
            if at_step:
                curves.setdefault(structure, {})[title] = [
                    (x, sum(ys) / len(ys), min(ys), max(ys)) for x, ys in sorted(at_step.items())
                ]
    return curves


def colour_scale(matrices: Mapping[str, MatrixOverSeeds], metric: str) -> tuple[float, float]:
    """Return the ends of the colour scale of all strategies' matrices, worst and best.

    The worst end is no worse than predicting the mean, or one structure that diverged would take most of the scale.
    """
    finite = [matrix.mean[np.isfinite(matrix.mean)] for matrix in matrices.values()]
    values = np.concatenate(finite) if finite else np.zeros(0)
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if metric == "mse":
        return (min(high, 1.0) if low < 1.0 else high), low
    if not HIGHER_IS_BETTER[metric]:
        return high, low
    return (max(low, 0.0) if high > 0.0 else low), high


def evaluated_metrics(run: Run) -> list[str]:
    """Return the metrics that the run has test values of, R2 first."""
    evaluated = {row.metric for row in run.results}
    return [metric for metric in METRIC_NAMES if metric in evaluated]


def validated_metrics(run: Run) -> list[str]:
    """Return the metrics that were validated during training, R2 first."""
    validated = {metric for curves in run.curves.values() for metric, _ in curves}
    return [metric for metric in METRIC_NAMES if metric in validated]


def readable(name: str) -> str:
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
