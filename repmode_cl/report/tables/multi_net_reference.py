"""Choice of the Multi-Net that others are measured against: the best of a run, so that none is flattered."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from repmode_cl.evaluation.paired_differences import structure_values
from repmode_cl.evaluation.performance_matrix import mean_or_nan
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.report.tables.selection import chosen_streams, seeds_with_results
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.run_info import RunInfo

__all__ = ["References", "references"]


@dataclass(frozen=True)
class References:
    """Titles of Multi-Nets; None where there is none.

    Attributes
    ----------
    added
        What is paired by structure refers to it: forward transfer and budgets.
    whole
        What averages over all structures refers to it: relative improvement. Another one than `added` only where
        that has no networks for the base's structures.
    """

    added: str | None = None
    whole: str | None = None


def references(
    results: ResultsTable,
    info: RunInfo,
    metric: str = "r2",
    *,
    streams: Collection[str] | None = None,
    named: str | None = None,
) -> References:
    """Return the best Multi-Nets with the common steps.

    The best has the best final mean over the structures added to the base (over all, where none was), with the seeds
    that all of them finished; the first in the run's order, where no seed is.

    Parameters
    ----------
    results, info
        Of a run.
    metric
        One of `HIGHER_IS_BETTER`.
    streams
        As in `strategy_table`.
    named
        Title of one to take instead; still, one that has not all structures is no reference for averages over them.
    """
    chosen = chosen_streams(info, streams)
    if info.multi_net is None and named is None:
        return References()
    experiences = {stream: info.streams[stream] for stream in chosen}
    every = {name for stream in chosen for name in info.structures_of(stream)}
    base_only = not any(info.added_of(stream) for stream in chosen)
    candidates = [
        title
        for title, kind in info.strategies.items()
        if title == info.multi_net
        # Files of the first form do not say which of several has all its steps.
        or (kind == "multi_net" and info.options.get(title) and info.budget_of(title) == "common")
    ]
    values: dict[str, dict[int, dict[str, float]]] = {}
    whole = []
    for title in dict.fromkeys([*candidates, *([] if named is None else [named])]):
        seeds = seeds_with_results(results, info, title, chosen)
        by_seed = structure_values(results, title, metric, experiences, seeds, structures="all")
        if not by_seed or all(every <= set(by_name) for by_name in by_seed.values()):
            whole.append(title)
        added = {name for stream in chosen for name in info.added_of(stream)}
        values[title] = {
            seed: {name: value for name, value in by_name.items() if base_only or name in added}
            for seed, by_name in by_seed.items()
        }
    best = _best({title: values[title] for title in candidates}, metric)
    if named is not None:
        best = named
    if best in whole:
        return References(best, best)
    return References(best, _best({title: values[title] for title in candidates if title in whole}, metric))


def _best(values: Mapping[str, Mapping[int, Mapping[str, float]]], metric: str) -> str | None:
    finished = {title: of for title, of in values.items() if of}
    if not finished:
        return next(iter(values), None)
    shared = set.intersection(*(set(of) for of in finished.values()))
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0

    def height(title: str) -> float:
        of = finished[title]
        mean = sign * mean_or_nan(v for seed in of if seed in shared for v in of[seed].values())
        return -math.inf if math.isnan(mean) else mean

    return max(finished, key=height)
