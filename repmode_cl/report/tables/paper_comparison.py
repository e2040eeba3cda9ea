"""A run next to the paper's figures: improvement over a reference, and the orders of the systems."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.evaluation.paired_differences import Values, structure_values
from repmode_cl.evaluation.performance_matrix import mean_or_nan, relative_improvement
from repmode_cl.evaluation.published_figures import (
    Estimate,
    improvement_estimate,
    rank_correlation_estimate,
)
from repmode_cl.report.tables.csv_latex import Column
from repmode_cl.report.tables.multi_net_reference import references
from repmode_cl.report.tables.paper_figures import PAPER_METRICS, PaperTable, SystemsOfRun, systems_of_run
from repmode_cl.report.tables.selection import chosen_streams, seeds_with_results
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.run_info import RunInfo

__all__ = ["ORDER_COLUMNS", "PAPER_COLUMNS", "improvement_text", "order_lines", "order_table", "paper_table"]

#: In the column "structure" of what averages over all of them.
ALL = "all"

_NAMES = {"mse": "MSE", "mae": "MAE", "r2": "R²"}


def improvement_text(row: Mapping[str, Any], key: str) -> str:
    """Return an improvement with its interval, ``+4.31 [+2.90, +5.77]``; a dash for what does not exist."""
    value, low, high = (row[name] for name in (key, f"{key}_low", f"{key}_high"))
    if value is None:
        return "-"
    return f"{value:+.2f}" + ("" if low is None else f" [{low:+.2f}, {high:+.2f}]")


def _improvement(key: str) -> Any:
    return lambda row: improvement_text(row, key)


def _published(key: str) -> Any:
    return lambda row: "-" if row[key] is None else f"{row[key]:+.2f}"


#: What a reader sees of the rows of `paper_table`.
PAPER_COLUMNS = (
    Column("strategy", "strategy"),
    Column("system", "in the paper"),
    Column("structure", "structure", text=lambda row: str(row["structure"]).replace("_", " ")),
    *(
        column
        for metric, name in _NAMES.items()
        for column in (
            Column(metric, name, 4),
            Column(f"paper_{metric}", f"{name}, paper", 4),
            Column(
                f"improvement_{metric}",
                f"improvement of {name} (%) [95%]",
                text=_improvement(f"improvement_{metric}"),
            ),
            Column(f"paper_improvement_{metric}", "paper", text=_published(f"paper_improvement_{metric}")),
        )
    ),
    Column("seeds", "seeds"),
)

#: What a reader sees of the rows of `order_table`.
ORDER_COLUMNS = (
    Column("variant", "rows", text=lambda row: row["variant"] or "all"),
    Column("structure", "structure", text=lambda row: str(row["structure"]).replace("_", " ")),
    Column("metric", "metric", text=lambda row: _NAMES[row["metric"]]),
    Column("correlation", "rank correlation", 2, signed=True),
    Column("low", "low", 2, signed=True),
    Column("high", "high", 2, signed=True),
    Column("systems", "n"),
    Column("seeds", "seeds"),
)


def paper_table(
    results: ResultsTable, run_info: RunInfo | Mapping[str, Any], *, streams: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Return a row for each strategy that a table of the paper has, and each of its structures.

    Parameters
    ----------
    results, run_info
        Of a run.
    streams
        As in `strategy_table`.

    Returns
    -------
    list of dict
        ``table`` (its number), ``strategy``, ``system`` (its name in the paper), ``reference`` (the strategy that
        improvements refer to: the best Multi-Net, in Table 2 the original), ``structure`` (``all``: mean over all),
        ``seeds`` (that both finished), and for each of mse, mae and r2: the metric, ``reference_M``, ``paper_M``,
        ``improvement_M`` in per cent (above 0 is better) with its 95% interval ``improvement_M_low`` and
        ``improvement_M_high``, paired by seed, and ``paper_improvement_M``. None where something does not exist; an
        improvement of R2 only over a reference above 0. Rows that average come first. Empty for a run that repeats
        none of the tables.
    """
    info = RunInfo.of(run_info)
    chosen = chosen_streams(info, streams)
    found = systems_of_run(info, chosen)
    if found is None:
        return []
    table, reference = found.table, _reference(results, info, found, chosen)
    if reference is None:
        return []
    values = {
        metric: {title: _values(results, info, title, metric, table, chosen) for title in found.systems}
        for metric in PAPER_METRICS
    }
    structures = _structures(info, table, chosen)
    rows = []
    for structure in structures:
        for title, system in found.systems.items():
            row: dict[str, Any] = {
                "table": table.number,
                "strategy": title,
                "system": system,
                "reference": reference,
                "structure": structure,
                "seeds": 0,
            }
            for metric in PAPER_METRICS:
                pairs = _pairs(values[metric][title], values[metric][reference], structure)
                row["seeds"] = max(row["seeds"], len(pairs))
                row |= _figures(pairs, metric) | _published_figures(table, system, structure, metric)
            if row["seeds"]:
                rows.append(row)
    return rows


def order_table(
    results: ResultsTable, run_info: RunInfo | Mapping[str, Any], *, streams: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Return how far the order of the systems in a run is that in the paper: Spearman's rank correlation.

    Where systems stand in several rows (of both kernels, in both settings), the first rows of all are compared, then
    the second ones, with those of systems that have one only.

    Returns
    -------
    list of dict
        ``table``, ``variant`` (what tells the rows that were compared from others; empty where all were),
        ``structure`` (``all``: mean over all), ``metric``, ``correlation``, ``low`` and ``high`` (95% interval over the
        run's seeds; the paper's figures are of one run), ``systems`` (their number n), ``seeds``, and ``strategies``
        (their titles). Nothing of fewer than three systems.
    """
    info = RunInfo.of(run_info)
    chosen = chosen_streams(info, streams)
    found = systems_of_run(info, chosen)
    if found is None:
        return []
    rows = []
    for variant, titles in _variants(info, found).items():
        for metric in PAPER_METRICS:
            values = {title: _values(results, info, title, metric, found.table, chosen) for title in titles}
            for structure in _structures(info, found.table, chosen):
                row = _order(found, values, metric, structure)
                if row is not None:
                    rows.append({"table": found.table.number, "variant": variant, **row})
    return rows


def order_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each order of averages, as a terminal prints them."""
    lines = []
    for row in rows:
        if row["structure"] != ALL:
            continue
        interval = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
        variant = f", {row['variant']}" if row["variant"] else ""
        lines.append(
            f"order by {_NAMES[row['metric']]} here and in the paper's Table {row['table']}{variant}: rank correlation "
            f"{row['correlation']:+.2f}{interval}, n = {row['systems']}"
        )
    return lines


def _reference(
    results: ResultsTable, info: RunInfo, found: SystemsOfRun, chosen: Sequence[str]
) -> str | None:
    """Return the title of the strategy that improvements refer to."""
    if found.table.reference == "Multi-Net":
        multi_nets = references(results, info, streams=chosen)
        best = multi_nets.added if found.table.number == 3 else multi_nets.whole
        return best if best in found.systems else None
    return next(title for title, system in found.systems.items() if system == found.table.reference)


def _structures(info: RunInfo, table: PaperTable, chosen: Sequence[str]) -> list[str]:
    """Return the structures that both have, after ``all`` where the paper has that."""
    here = dict.fromkeys(name for stream in chosen for name in info.structures_of(stream))
    there = {structure for _, structure in table.figures}
    every = [ALL] if ALL in there else []
    # Table 2 has only averages.
    return every + [name for name in here if name in there]


def _values(
    results: ResultsTable,
    info: RunInfo,
    title: str,
    metric: str,
    table: PaperTable,
    chosen: Sequence[str],
) -> Values:
    """Return a strategy's values of each seed, with their mean as ``all``."""
    experiences = {stream: info.streams[stream] for stream in chosen}
    seeds = seeds_with_results(results, info, title, chosen)
    of_seeds = structure_values(results, title, metric, experiences, seeds, when=table.when, structures="all")
    every = {name for stream in chosen for name in info.structures_of(stream)}
    return {
        seed: {**of, ALL: mean_or_nan(of.values()) if every <= set(of) else math.nan}
        for seed, of in of_seeds.items()
    }


def _pairs(values: Values, reference: Values, structure: str) -> NDArray[np.float64]:
    """Return (seeds, 2): the strategy's value and the reference's, of the seeds that have both."""
    pairs = [
        (values[seed][structure], reference[seed][structure])
        for seed in values
        if seed in reference and structure in values[seed] and structure in reference[seed]
    ]
    known = [pair for pair in pairs if not math.isnan(sum(pair))]
    return np.array(known, np.float64).reshape(-1, 2)


def _figures(pairs: NDArray[np.float64], metric: str) -> dict[str, Any]:
    value, reference = (float(mean) for mean in pairs.mean(axis=0)) if len(pairs) else (None, None)
    estimate = improvement_estimate(pairs[:, 0], pairs[:, 1], metric) if len(pairs) else Estimate(None)
    return {
        metric: value,
        f"reference_{metric}": reference,
        f"improvement_{metric}": estimate.value,
        f"improvement_{metric}_low": estimate.low,
        f"improvement_{metric}_high": estimate.high,
    }


def _published_figures(table: PaperTable, system: str, structure: str, metric: str) -> dict[str, Any]:
    figures = table.figures.get((system, structure))
    if figures is None:
        return {f"paper_{metric}": None, f"paper_improvement_{metric}": None}
    reference = table.figures[table.reference, structure][metric]
    improvement = relative_improvement(figures[metric], reference, metric)
    if structure == ALL and system in table.improvement:
        improvement = table.improvement[system][metric]  # which they made of figures with more digits
    return {f"paper_{metric}": figures[metric], f"paper_improvement_{metric}": improvement}


def _variants(info: RunInfo, found: SystemsOfRun) -> dict[str, dict[str, str]]:
    """Return what is compared: a name, and for it title -> system."""
    titles: dict[str, list[str]] = {}
    for title, system in found.systems.items():
        titles.setdefault(system, []).append(title)
    count = max(len(of) for of in titles.values())
    chosen = [{of[min(k, len(of) - 1)]: system for system, of in titles.items()} for k in range(count)]
    several = {title for of in titles.values() if len(of) > 1 for title in of}
    names = []
    for k, one in enumerate(chosen):
        words = []
        for key in ("kernel", "setting"):
            every = {info.options[title].get(key) for title in several}
            here = {info.options[title].get(key) for title in one if title in several}
            if len(every) > 1 and len(here) == 1:
                words.append(f"{key} {here.pop()}")
        names.append(", ".join(words) or (f"rows {k + 1}" if count > 1 else ""))
    return dict(zip(names, chosen, strict=True))


def _order(
    found: SystemsOfRun, values: Mapping[str, Values], metric: str, structure: str
) -> dict[str, Any] | None:
    known: dict[str, dict[int, float]] = {}
    for title, of_seeds in values.items():
        if (found.systems[title], structure) in found.table.figures:
            numbers = {seed: of.get(structure, math.nan) for seed, of in of_seeds.items()}
            known[title] = {seed: value for seed, value in numbers.items() if math.isfinite(value)}
    known = {title: of for title, of in known.items() if of}
    if len(known) < 3:
        return None
    seeds = [seed for seed in next(iter(known.values())) if all(seed in of for of in known.values())]
    estimate = rank_correlation_estimate(
        np.array([[of[seed] for of in known.values()] for seed in seeds]).reshape(-1, len(known)),
        [found.table.figures[found.systems[title], structure][metric] for title in known],
    )
    if estimate.value is None:
        return None
    return {
        "structure": structure,
        "metric": metric,
        "correlation": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "systems": len(known),
        "seeds": len(seeds),
        "strategies": ", ".join(known),
    }
