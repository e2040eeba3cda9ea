"""The table of structures: how well each strategy predicts each of them at the end of a stream."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from repmode_cl.evaluation.paired_differences import TrialValues, structure_values, trial_values
from repmode_cl.evaluation.performance_matrix import Summary, summarise
from repmode_cl.evaluation.seeds_and_orders import summarise_trials
from repmode_cl.report.tables.csv_latex import Column
from repmode_cl.report.tables.selection import are_orders, chosen_streams, seeds_with_results
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.run_info import RunInfo

__all__ = ["structure_table", "wide_structures"]

_TIMES: tuple[Literal["final", "learned"], ...] = ("final", "learned")


def structure_table(
    results: ResultsTable,
    run_info: RunInfo | Mapping[str, Any],
    metric: str = "r2",
    *,
    streams: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """Return one row for each structure and strategy.

    Parameters
    ----------
    results, run_info
        Of a run; strategies without a finished seed are left out, and so are those without the metric.
    metric
        One of `HIGHER_IS_BETTER`.
    streams
        As in `strategy_table`.

    Returns
    -------
    list of dict
        ``structure``, ``added`` (whether it arrives after the base in any of the streams), ``strategy``,
        ``name`` (kind), ``seeds``, ``metric``, ``value`` (after the last step, mean over seeds) and ``value_ci``
        (half its 95% interval, None below two seeds), ``learned`` and ``learned_ci`` (just after learning).
        Structures in order of arrival.
    """
    info = RunInfo.of(run_info)
    chosen = chosen_streams(info, streams)
    experiences = {name: info.streams[name] for name in chosen}
    orders = are_orders(info, chosen)
    added = {name for stream in chosen for name in info.added_of(stream)}
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for title, kind in info.strategies.items():
        seeds = seeds_with_results(results, info, title, chosen)
        final, learned = (
            structure_values(results, title, metric, experiences, seeds, when=when, structures="all")
            for when in _TIMES
        )
        of_orders = {
            when: trial_values(results, title, metric, experiences, seeds, when=when, structures="all")
            for when in _TIMES
            if orders
        }
        for structure in dict.fromkeys(name for values in final.values() for name in values):
            row = {"structure": structure, "added": structure in added, "strategy": title, "name": kind}
            row |= {"seeds": sum(structure in by_name for by_name in final.values()), "metric": metric}
            for key, values, when in zip(("value", "learned"), (final, learned), _TIMES, strict=True):
                # One that a strategy did not evaluate with each seed has a mean over those that it did.
                summary = summarise(by_name[structure] for by_name in values.values() if structure in by_name)
                if orders:
                    summary = _over_orders(of_orders[when], structure, summary)
                row |= {key: summary.mean, f"{key}_ci": summary.half_width}
            cells[structure, title] = row
    order = dict.fromkeys(name for stream in chosen for name in info.structures_of(stream))
    return [
        cells[structure, title]
        for structure in order
        for title in info.strategies
        if (structure, title) in cells
    ]


def _over_orders(values: TrialValues, structure: str, over_seeds: Summary) -> Summary:
    """Return the summary over seeds and orders; `over_seeds` where not all trials have a figure of the structure."""
    columns = [of_seeds for of_seeds in values.values() if any(structure in one for one in of_seeds.values())]
    if not all(structure in one for of_seeds in columns for one in of_seeds.values()):
        return over_seeds
    found = summarise_trials([[column[seed][structure] for column in columns] for seed in columns[0]])
    return Summary(over_seeds.mean, found.half_width, over_seeds.n)


def wide_structures(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Column]]:
    """Turn rows of `structure_table` into one row for each structure and one column for each strategy.

    Returns
    -------
    tuple
        (rows, columns) for `to_latex`: a row has ``structure`` and ``added``, and for each strategy the value under
        its column's key and half the interval under ``<key>_ci``. Keys are numbers, because a title may be any word.
    """
    keys = {title: str(place) for place, title in enumerate(dict.fromkeys(row["strategy"] for row in rows))}
    wide: dict[str, dict[str, Any]] = {}
    for row in rows:
        cells = wide.setdefault(row["structure"], {"structure": row["structure"], "added": row["added"]})
        cells[keys[row["strategy"]]] = row["value"]
        cells[f"{keys[row['strategy']]}_ci"] = row["value_ci"]
    columns = [
        Column("structure", "structure", text=lambda row: row["structure"].replace("_", " ")),
        *(Column(key, title) for title, key in keys.items()),
    ]
    return list(wide.values()), columns
