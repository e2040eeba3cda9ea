"""Values per seed and structure, and the differences of two strategies where everything else is equal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from repmode_cl.evaluation.performance_matrix import final_values, mean_or_nan, performance_matrix
from repmode_cl.evaluation.transfer import learned_values
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.results.results_table import ResultsTable

__all__ = [
    "PairedDifferences",
    "TrialValues",
    "Values",
    "paired_differences",
    "paired_trials",
    "structure_values",
    "trial_values",
]

#: Seed -> structure -> value.
Values = Mapping[int, Mapping[str, float]]

#: Order (name of a stream) -> seed -> structure -> value.
TrialValues = Mapping[str, Values]


@dataclass(frozen=True)
class PairedDifferences:
    """Differences of two strategies, with the sign by which the first is better above 0.

    Attributes
    ----------
    seeds, structures
        Rows and columns.
    values
        (seeds, structures) float64.
    """

    seeds: tuple[int, ...]
    structures: tuple[str, ...]
    values: NDArray[np.float64]


def structure_values(
    results: ResultsTable,
    strategy: str,
    metric: str,
    streams: Mapping[str, Sequence[Sequence[str]]],
    seeds: Iterable[int],
    *,
    when: Literal["final", "learned"] = "final",
    structures: Literal["added", "all"] | Sequence[str] = "added",
) -> dict[int, dict[str, float]]:
    """Return one value for each seed and structure, averaged over streams.

    Parameters
    ----------
    results
        The table of a run.
    strategy, metric
        Title of the strategy, and name of the metric.
    streams
        Name -> structures learned in each step. A structure's value is its mean over the streams that count it.
    seeds
        Seeds with which the strategy finished all those streams; those without the metric are left out.
    when
        ``"final"``: after the last step of a stream. ``"learned"``: just after the structure was first learned.
    structures
        ``"added"``: in each stream those that arrive after its first step. ``"all"``: the base's too. Or names.
    """
    values_of: dict[int, dict[str, float]] = {}
    for seed in seeds:
        if not all(
            results.select(strategy=strategy, stream=stream, seed=seed, metric=metric) for stream in streams
        ):
            continue
        by_structure: dict[str, list[float]] = {}
        for stream, experiences in streams.items():
            matrix = performance_matrix(results, strategy, metric, seed, experiences, stream)
            values = final_values(matrix) if when == "final" else learned_values(matrix)
            base = set(experiences[0]) if structures == "added" and experiences else set()
            for name, value in values.items():
                if name not in base and (isinstance(structures, str) or name in structures):
                    by_structure.setdefault(name, []).append(value)
        values_of[seed] = {name: mean_or_nan(values) for name, values in by_structure.items()}
    return values_of


def paired_differences(first: Values, second: Values, metric: str) -> PairedDifferences:
    """Subtract the second's values from the first's, by seed and structure.

    Parameters
    ----------
    first, second
        Results of `structure_values`. Seeds that only one has are left out, and so are structures that are missing
        in one of them with any of the seeds.
    metric
        Decides the sign: above 0 the first is better, for metrics of either direction.
    """
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    seeds = tuple(seed for seed in first if seed in second)
    structures = tuple(
        name
        for name in (first[seeds[0]] if seeds else ())
        if all(name in first[seed] and name in second[seed] for seed in seeds)
    )
    values = np.full((len(seeds), len(structures)), math.nan)
    for row, seed in enumerate(seeds):
        for column, name in enumerate(structures):
            values[row, column] = sign * (first[seed][name] - second[seed][name])
    return PairedDifferences(seeds, structures, values)


def trial_values(
    results: ResultsTable,
    strategy: str,
    metric: str,
    streams: Mapping[str, Sequence[Sequence[str]]],
    seeds: Iterable[int],
    *,
    when: Literal["final", "learned"] = "final",
    structures: Literal["added", "all"] | Sequence[str] = "added",
) -> dict[str, dict[int, dict[str, float]]]:
    """Return the values of `structure_values` for each stream by itself, of the seeds that have them in all streams."""
    chosen = list(seeds)
    of_streams = {
        name: structure_values(
            results, strategy, metric, {name: experiences}, chosen, when=when, structures=structures
        )
        for name, experiences in streams.items()
    }
    shared = [seed for seed in chosen if all(seed in values for values in of_streams.values())]
    return {name: {seed: values[seed] for seed in shared} for name, values in of_streams.items()}


def paired_trials(
    first: TrialValues, second: TrialValues, metric: str
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Subtract the second's values from the first's, by seed, order and structure.

    Parameters
    ----------
    first, second
        Results of `trial_values` with the same streams.
    metric
        As of `paired_differences`, whose rules hold for each order.

    Returns
    -------
    tuple
        (seeds, orders) float64: means over the structures of each order, without orders that have none. And for each
        structure its differences, (seeds, orders in which it counts).
    """
    pairs = [paired_differences(first[name], second[name], metric) for name in first]
    of_orders = [one for one in pairs if one.structures]
    if not of_orders:
        return np.empty((0, 0)), {}
    by_structure: dict[str, list[NDArray[np.float64]]] = {}
    for one in of_orders:
        for column, name in enumerate(one.structures):
            by_structure.setdefault(name, []).append(one.values[:, column])
    means = np.stack([one.values.mean(axis=1) for one in of_orders], axis=1)
    return means, {name: np.stack(columns, axis=1) for name, columns in by_structure.items()}
