"""The comparisons that a run was planned to answer: each claim, what was found, and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from repmode_cl.config.comparison_schema import PlannedComparison
from repmode_cl.evaluation.paired_differences import (
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

__all__ = ["HOLDS", "HOLDS_NOT", "OPEN", "planned_table"]

HOLDS, HOLDS_NOT, OPEN = "holds", "does not hold", "open"

#: Costs of an added structure that a row gives as a share of the second's.
_COSTS = ("added_bytes", "cpu_seconds")


def planned_table(results: ResultsTable, run_info: RunInfo | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Answer the comparisons that the run's configuration planned, in its order.

    R2 is averaged over the structures after the base, and paired by seed; of several orders, interval and p are over
    seeds and orders. "Ahead" holds where the p of the sign-flip
    test, corrected by Holm's method over all planned claims of that kind, is below .05 and the 95% interval lies above
    0. "Not lower" holds where that interval lies above the allowed difference.

    Parameters
    ----------
    results, run_info
        Of a run.

    Returns
    -------
    list of dict
        For each ``claim`` (in words) ``first``, ``second``, ``kind`` ("ahead" or "not_lower"), ``when``,
        ``first_r2`` and ``second_r2`` (means over the paired seeds), ``difference``, ``low`` and ``high`` (None with
        one seed), ``p`` and ``p_holm`` (None where nothing is tested: "not lower" is judged by the interval),
        ``seeds``, ``bytes_share`` and ``seconds_share`` (bytes and processor seconds of an added structure, as a share
        of the second's; None where one has none), and ``verdict``: "holds", "does not hold", or "open" where too few
        seeds have ended.
    """
    info = RunInfo.of(run_info)
    rows = [_row(results, info, one) for one in info.comparisons]
    tested = [row for row in rows if row["kind"] == "ahead"]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    for row, one in zip(rows, info.comparisons, strict=True):
        row["verdict"] = _verdict(row, one, len(tested))
    return rows


def _row(results: ResultsTable, info: RunInfo, one: PlannedComparison) -> dict[str, Any]:
    first_stream, second_stream = one.streams
    first = _values(results, info, one.first, first_stream, one)
    second = _values(results, info, one.second, second_stream, one)
    paired = paired_differences(first, second, "r2")
    comparison = None
    if paired.seeds and paired.structures:
        comparison = _of_orders(results, info, one) or compare(paired.values)
    return {
        "claim": one.text,
        "first": one.first,
        "second": one.second,
        "kind": one.claim,
        "when": one.when,
        "first_r2": _mean(first, paired.seeds, paired.structures),
        "second_r2": _mean(second, paired.seeds, paired.structures),
        "difference": None if comparison is None else comparison.difference,
        "low": None if comparison is None else comparison.low,
        "high": None if comparison is None else comparison.high,
        # Without a seed nothing can be said, and the correction counts the claim all the same.
        "p": None if one.claim != "ahead" else 1.0 if comparison is None else comparison.p,
        "p_holm": None,
        "seeds": 0 if comparison is None else comparison.seeds,
        **{
            key: _share(
                _cost(results, info, one.first, first_stream, metric),
                _cost(results, info, one.second, second_stream, metric),
            )
            for key, metric in zip(("bytes_share", "seconds_share"), _COSTS, strict=True)
        },
    }


def _of_orders(results: ResultsTable, info: RunInfo, one: PlannedComparison) -> PairedComparison | None:
    """Return the comparison over seeds and orders; None where the claim is not about several orders."""
    streams = chosen_streams(info, None if one.first_stream is None else (one.first_stream,))
    if not are_orders(info, streams):
        return None

    first, second = (
        trial_values(results, title, "r2", *_part(results, info, title, one.first_stream), when=one.when)
        for title in (one.first, one.second)
    )
    return compare_trials(paired_trials(first, second, "r2")[0])


def _values(
    results: ResultsTable, info: RunInfo, title: str, stream: str | None, one: PlannedComparison
) -> Values:
    return structure_values(results, title, "r2", *_part(results, info, title, stream), when=one.when)


def _part(
    results: ResultsTable, info: RunInfo, title: str, stream: str | None
) -> tuple[dict[str, Sequence[Sequence[str]]], Sequence[int]]:
    """Return the streams that a claim is about, with their experiences, and the seeds that finished them."""
    streams = chosen_streams(info, None if stream is None else (stream,))
    return {name: info.streams[name] for name in streams}, seeds_with_results(results, info, title, streams)


def _mean(values: Values, seeds: tuple[int, ...], structures: tuple[str, ...]) -> float | None:
    return (
        fmean(values[seed][name] for seed in seeds for name in structures) if seeds and structures else None
    )


def _cost(results: ResultsTable, info: RunInfo, title: str, stream: str | None, metric: str) -> float | None:
    """Return the mean cost of an added structure; None of what learns all structures at once, or has no such row."""
    if title in info.joint_titles:
        return None
    streams = chosen_streams(info, None if stream is None else (stream,))
    later = [
        row.value
        for name in streams
        for seed in seeds_with_results(results, info, title, streams)
        for row in results.select(strategy=title, stream=name, seed=seed, metric=metric)
        if row.step > 0
    ]
    return fmean(later) if later else None


def _share(first: float | None, second: float | None) -> float | None:
    return first / second if first is not None and second else None


def _verdict(row: Mapping[str, Any], one: PlannedComparison, tested: int) -> str:
    if row["low"] is None or not math.isfinite(row["difference"]):
        return OPEN
    if one.claim == "not_lower":
        return HOLDS if row["low"] > -one.allowed else HOLDS_NOT
    if smallest_p(row["seeds"]) * tested > ALPHA:
        return OPEN  # the clearest result that so many seeds can give does not pass the correction
    return HOLDS if row["p_holm"] <= ALPHA and row["low"] > 0 else HOLDS_NOT
