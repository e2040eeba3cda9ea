"""Structure-by-step matrix of a stream, and the measures computed from it: forgetting, transfer, averages.

Signs are fixed once, for metrics of either direction: forgetting above 0 is worse, backward transfer above 0
is better. Nothing is padded with zeros or clipped: R2 may be negative, and MSE is better when lower.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import RepmodeError, did_you_mean
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.results.results_table import ResultsTable

__all__ = [
    "PerformanceMatrix",
    "performance_matrix",
    "forgetting",
    "backward_transfer",
    "final_values",
    "final_average",
    "mean_or_nan",
    "relative_improvement",
    "Summary",
    "summarise",
]


@dataclass(frozen=True)
class PerformanceMatrix:
    """R[step, structure] of one strategy, seed and metric.

    Attributes
    ----------
    metric
        Name of the metric; decides what "better" is.
    structures
        Columns, in the order in which they were learned.
    values
        (number of steps, number of structures) float64; NaN where a structure was not yet learned, or not
        evaluated.
    learned
        For each structure the step in which it was first learned.
    relearned
        For each structure the step in which it was last learned; differs from `learned` where a stream brings
        a structure back. None: as `learned`.
    """

    metric: str
    structures: tuple[str, ...]
    values: NDArray[np.float64]
    learned: tuple[int, ...]
    relearned: tuple[int, ...] | None = None

    @property
    def last_learned(self) -> tuple[int, ...]:
        """For each structure the step in which it was last learned."""
        return self.learned if self.relearned is None else self.relearned

    @property
    def sign(self) -> float:
        """+1 where a larger value is better, -1 where a smaller one is."""
        return 1.0 if HIGHER_IS_BETTER[self.metric] else -1.0


def performance_matrix(
    results: ResultsTable,
    strategy: str,
    metric: str,
    seed: int,
    experiences: Sequence[Sequence[str]] | None = None,
    stream: str = "",
) -> PerformanceMatrix:
    """Collect R[step, structure] from the rows of results.csv.

    Parameters
    ----------
    results
        The table of a run.
    strategy, metric, seed
        Strategy, metric and seed of the rows.
    experiences
        Names of the structures learned in each step; a structure may be learned again in a later one. None
        takes the first step in which a structure was evaluated as the one in which it was learned. The matrix
        has a row for each step up to the last one evaluated, whether or not the stream goes on. A strategy that
        evaluates a structure for the first time later than it arrived (joint training: after the last step)
        learned it then.
    stream
        Name of the stream, empty for a run of one.

    Raises
    ------
    RepmodeError
        If the metric is not one of quality, or there is no such row.
    """
    if metric not in HIGHER_IS_BETTER:
        raise RepmodeError(
            f"metric {metric!r} has no matrix: choose {', '.join(HIGHER_IS_BETTER)}"
            f"{did_you_mean(metric, HIGHER_IS_BETTER)}"
        )
    rows = results.select(strategy=strategy, stream=stream, seed=seed, metric=metric)
    if not rows:
        where = f" in the stream {stream!r}" if stream else ""
        raise RepmodeError(f"results hold no {metric} of {strategy!r} with seed {seed}{where}")
    n_steps = 1 + max(row.step for row in rows)
    first: dict[str, int] = {}
    for row in rows:
        first[row.structure] = min(row.step, first.get(row.structure, row.step))
    if experiences is None:
        learned = dict(sorted(first.items(), key=lambda item: item[1]))
        relearned = dict(learned)
    else:
        arrived = [(name, step) for step, names in enumerate(experiences[:n_steps]) for name in names]
        # Reversed, so that of several steps the first one stays.
        earliest = dict(reversed(arrived))
        # A structure that is never predicted (Multi-Net without networks for the base) has no column.
        relearned = {name: max(step, first[name]) for name, step in arrived if name in first}
        learned = {name: max(earliest[name], first[name]) for name in relearned}
    values = np.full((n_steps, len(learned)), math.nan)
    columns = {name: column for column, name in enumerate(learned)}
    for row in rows:
        if row.structure in columns and row.step >= learned[row.structure]:
            values[row.step, columns[row.structure]] = row.value
    return PerformanceMatrix(
        metric, tuple(columns), values, tuple(learned.values()), tuple(relearned[name] for name in learned)
    )


def final_values(matrix: PerformanceMatrix) -> dict[str, float]:
    """Return each structure's value after the last step."""
    return dict(zip(matrix.structures, matrix.values[-1].tolist(), strict=True))


def final_average(matrix: PerformanceMatrix, structures: Iterable[str] | None = None) -> float:
    """Average the last row over all structures, or over those named ("All" in the paper's Table 1)."""
    final = final_values(matrix)
    return mean_or_nan(final[name] for name in (final if structures is None else structures))


def forgetting(matrix: PerformanceMatrix) -> dict[str, float]:
    """Return for each structure its best value since it was (last) learned, minus its final one.

    Positive means worse, for metrics of either direction; negative means that later learning helped. A
    structure learned (or learned again) in the last step had no time to be forgotten and is left out. NaN
    where the final value, or every earlier one, is NaN.
    """
    lost = {}
    for column, name in enumerate(matrix.structures):
        earlier = matrix.sign * matrix.values[matrix.last_learned[column] : -1, column]
        if matrix.last_learned[column] < len(matrix.values) - 1:
            finite = earlier[~np.isnan(earlier)]
            best = float(finite.max()) if finite.size else math.nan
            lost[name] = best - matrix.sign * float(matrix.values[-1, column])
    return lost


def backward_transfer(matrix: PerformanceMatrix) -> dict[str, float]:
    """Return for each structure its final value, minus the one just after it was (last) learned.

    Positive means better, for metrics of either direction. Structures of the last step are left out.
    """
    gained = {}
    for column, name in enumerate(matrix.structures):
        learned = matrix.last_learned[column]
        if learned < len(matrix.values) - 1:
            gained[name] = matrix.sign * float(matrix.values[-1, column] - matrix.values[learned, column])
    return gained


def mean_or_nan(values: Iterable[float]) -> float:
    """Return the mean; NaN if there are no values."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else math.nan


def relative_improvement(value: float, reference: float, metric: str) -> float:
    """Return by how many per cent `value` is better than `reference` (paper, Table 1, Delta_Imp).

    Both are averages over all structures, `reference` that of Multi-Net. Positive means better for metrics of
    either direction. It is relative to the size of the reference, and NaN where that is 0.
    """
    if reference == 0 or math.isnan(reference):
        return math.nan
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    return 100.0 * sign * (value - reference) / abs(reference)


@dataclass(frozen=True)
class Summary:
    """A mean over seeds.

    Attributes
    ----------
    mean
        Arithmetic mean; NaN if there are no values.
    half_width
        Half the width of the 95% confidence interval of the mean (Student's t, n - 1 degrees of freedom);
        None for a single value, which has no interval.
    n
        Number of values.
    """

    mean: float
    half_width: float | None
    n: int


def summarise(values: Iterable[float]) -> Summary:
    """Summarise one number per seed; a NaN among them makes the mean NaN."""
    listed = [float(value) for value in values]
    n = len(listed)
    mean = mean_or_nan(listed)
    if n < 2:
        return Summary(mean, None, n)
    if not all(math.isfinite(value) for value in listed):
        return Summary(mean, math.nan, n)
    # Lazy, for start-up: a table of one seed does not need scipy.
    from scipy.special import stdtrit

    # Values that are all equal have no spread: without this, rounding of the mean would invent one.
    if min(listed) == max(listed):
        return Summary(listed[0], 0.0, n)
    standard_error = float(np.std(listed, ddof=1)) / math.sqrt(n)
    return Summary(mean, float(stdtrit(n - 1, 0.975)) * standard_error, n)
