"""Paired comparisons of strategies in words: which is ahead of which beyond noise."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from repmode_cl.errors import RepmodeError, did_you_mean
from repmode_cl.evaluation.paired_differences import (
    TrialValues,
    Values,
    paired_differences,
    paired_trials,
    structure_values,
    trial_values,
)
from repmode_cl.evaluation.seeds_and_orders import compare_trials
from repmode_cl.evaluation.significance import ALPHA, PairedComparison, compare, holm, smallest_p
from repmode_cl.report.tables.selection import are_orders, chosen_streams, seeds_with_results
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.run_info import RunInfo

__all__ = [
    "AHEAD",
    "ALL",
    "ALL_ADDED",
    "BEHIND",
    "add_verdicts",
    "comparison_table",
    "our_strategy",
    "pairs_against",
]

AHEAD, BEHIND, WITHIN = "ahead beyond noise", "behind beyond noise", "within noise"

#: In the column "structure" of rows that average over structures.
ALL_ADDED, ALL = "all added", "all"


def our_strategy(info: RunInfo) -> str | None:
    """Return the title of the first experts-frozen strategy with the common steps; None in a run without one.

    Where none has those, the first with more steps, else the first at all. In a run without one that adds no structure,
    as the paper's Tables 1 and 2, ours is joint training of RepMode's network.
    """
    titles = [title for title, kind in info.strategies.items() if kind == "experts_frozen"]
    if not titles and not any(info.added_of(stream) for stream in info.streams):
        joint = [title for title, kind in info.strategies.items() if kind == "joint"]
        titles = [title for title in joint if info.options.get(title, {}).get("kernel") is None]
    order = ("common", "longer", "shorter")
    return min(titles, key=lambda title: order.index(info.budget_of(title)), default=None)


def pairs_against(info: RunInfo, title: str) -> list[tuple[str, str]]:
    """Return (title, other) for each other strategy; shorter budgets are left to the table of budgets.

    Raises
    ------
    RepmodeError
        If the run has no such strategy.
    """
    _known(info, title)
    return [
        (title, other) for other in info.strategies if other != title and info.budget_of(other) != "shorter"
    ]


def comparison_table(
    results: ResultsTable,
    run_info: RunInfo | Mapping[str, Any],
    metric: str = "r2",
    *,
    pairs: Literal["ours", "all"] | Sequence[tuple[str, str]] = "ours",
    streams: Collection[str] | None = None,
    structures: Literal["added", "all"] | Sequence[str] = "added",
    per_structure: bool = False,
    alpha: float = ALPHA,
) -> list[dict[str, Any]]:
    """Compare strategies by their final values, paired by seed, stream and structure.

    Parameters
    ----------
    results, run_info
        Of a run.
    metric
        One of `HIGHER_IS_BETTER`.
    pairs
        ``"ours"``: experts frozen against each other strategy that has all its steps (every pair, in a run
        without experts frozen). ``"all"``: every pair. Or the pairs themselves, named before results were seen.
    streams
        As in `strategy_table`. Several orders of one experiment are paired one by one; other streams are averaged
        within each seed.
    structures
        Those that are averaged: ``"added"`` (all, where nothing was added), ``"all"``, or names.
    per_structure
        One row for each pair and structure, instead of their average.
    alpha
        Level.

    Returns
    -------
    list of dict
        ``first``, ``second``, ``structure`` ("all added" or "all" for an average), ``metric``, ``difference``
        (above 0: the first is better, for metrics of either direction), ``low`` and ``high`` (95% interval, None
        with one seed), ``p``, ``p_holm`` (corrected over the rows of this table), ``pairs`` (their number), ``seeds``,
        ``orders`` (above 1: interval and p are over both, see `compare_trials`), ``seeds_for_test``,
        ``seeds_for_power`` and ``seeds_needed`` (`seeds_needed`), ``verdict`` (of this comparison by itself), and
        ``holds_corrected`` (whether ``p_holm`` is below the level too).

    Raises
    ------
    RepmodeError
        If a pair names an unknown strategy.
    """
    info = RunInfo.of(run_info)
    chosen = chosen_streams(info, streams)
    if structures == "added" and not any(info.added_of(stream) for stream in chosen):
        structures = "all"
    ours = our_strategy(info)
    if pairs == "ours" and ours is not None:
        listed = pairs_against(info, ours)
    else:
        listed = list(combinations(info.strategies, 2)) if isinstance(pairs, str) else list(pairs)
    orders = are_orders(info, chosen)
    values: dict[str, Values] = {}
    trials: dict[str, TrialValues] = {}
    for title in dict.fromkeys(title for pair in listed for title in pair):
        _known(info, title)
        seeds = seeds_with_results(results, info, title, chosen)
        experiences = {name: info.streams[name] for name in chosen}
        if orders:
            trials[title] = trial_values(results, title, metric, experiences, seeds, structures=structures)
        else:
            values[title] = structure_values(
                results, title, metric, experiences, seeds, structures=structures
            )
    average = {"added": ALL_ADDED, "all": ALL}.get(structures, ALL) if isinstance(structures, str) else None
    rows = []
    for first, second in listed:
        comparisons = (
            _of_orders(trials[first], trials[second], metric, average, per_structure, alpha)
            if orders
            else _of_seeds(values[first], values[second], metric, average, per_structure, alpha)
        )
        rows += [
            _row(first, second, structure, metric, comparison, alpha)
            for structure, comparison in comparisons.items()
        ]
    corrected = holm([row["p"] for row in rows])
    for row, p in zip(rows, corrected, strict=True):
        row["p_holm"] = p
        row["pairs"] = len(rows)
        row["holds_corrected"] = row["verdict"] in (AHEAD, BEHIND) and p <= alpha
    return rows


def _of_seeds(
    first: Values, second: Values, metric: str, average: str | None, per_structure: bool, alpha: float
) -> dict[str, PairedComparison]:
    """Return the comparison of each structure, or of their average, over seeds."""
    paired = paired_differences(first, second, metric)
    if per_structure:
        return {
            name: compare(paired.values[:, [column]], alpha) for column, name in enumerate(paired.structures)
        }
    return {average or ", ".join(paired.structures): compare(paired.values, alpha)}


def _of_orders(
    first: TrialValues,
    second: TrialValues,
    metric: str,
    average: str | None,
    per_structure: bool,
    alpha: float,
) -> dict[str, PairedComparison]:
    """Return the comparison of each structure, or of their average, over seeds and orders."""
    means, of_structures = paired_trials(first, second, metric)
    if per_structure:
        return {name: compare_trials(differences, alpha) for name, differences in of_structures.items()}
    return {average or ", ".join(of_structures): compare_trials(means, alpha)}


def _row(
    first: str, second: str, structure: str, metric: str, comparison: PairedComparison, alpha: float
) -> dict[str, Any]:
    return {
        "first": first,
        "second": second,
        "structure": structure,
        "metric": metric,
        "difference": comparison.difference if comparison.seeds else None,
        "low": comparison.low,
        "high": comparison.high,
        "p": comparison.p,
        "p_holm": math.nan,
        "pairs": 0,
        "seeds": comparison.seeds,
        "orders": comparison.orders,
        "seeds_for_test": comparison.needed.test,
        "seeds_for_power": comparison.needed.power,
        "seeds_needed": comparison.needed.needed,
        "verdict": _verdict(comparison, alpha),
        "holds_corrected": False,
    }


def _verdict(comparison: PairedComparison, alpha: float) -> str:
    if not comparison.seeds:
        return "no seed that both finished"
    if not math.isfinite(comparison.difference):
        return "not comparable: a value is no number"
    if smallest_p(comparison.seeds) > alpha:
        return f"too few seeds (n={comparison.seeds}: no test can get below {smallest_p(comparison.seeds):g})"
    if comparison.p <= alpha and comparison.low is not None and comparison.high is not None:
        if comparison.low > 0:
            return AHEAD
        if comparison.high < 0:
            return BEHIND
    return WITHIN


def add_verdicts(
    table: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Add to each row of `strategy_table` how the strategy stands against the first of the comparisons.

    Parameters
    ----------
    table
        Rows of `strategy_table`.
    comparisons
        Rows of `comparison_table` that average over structures, all with one ``first``.

    Returns
    -------
    list of dict
        The rows with ``against`` (that first strategy), ``difference`` (above 0: the row's strategy is better),
        ``low``, ``high``, ``p``, ``p_holm`` and ``verdict``; None in its own row and where nothing was compared.
    """
    against = {row["second"]: row for row in comparisons}
    rows = []
    for row in table:
        added: dict[str, Any] = dict.fromkeys(
            ("against", "difference", "low", "high", "p", "p_holm", "verdict")
        )
        if row["strategy"] in against:
            comparison = against[row["strategy"]]
            turned = {AHEAD: BEHIND, BEHIND: AHEAD}
            added = {
                "against": comparison["first"],
                "difference": _minus(comparison["difference"]),
                "low": _minus(comparison["high"]),
                "high": _minus(comparison["low"]),
                "p": comparison["p"],
                "p_holm": comparison["p_holm"],
                "verdict": turned.get(comparison["verdict"], comparison["verdict"]),
            }
        rows.append({**row, **added})
    return rows


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _known(info: RunInfo, title: str) -> None:
    if title not in info.strategies:
        raise RepmodeError(
            f"the run has no strategy {title!r}: it has {', '.join(info.strategies)}"
            f"{did_you_mean(title, info.strategies)}"
        )
