"""All tables of a run as files: CSV with every digit, LaTeX as a paper prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from repmode_cl.evaluation.learning_curve_area import read_areas
from repmode_cl.report.tables.budgets import budget_table
from repmode_cl.report.tables.comparisons import add_verdicts, comparison_table, our_strategy, pairs_against
from repmode_cl.report.tables.csv_latex import Column, to_csv, to_latex
from repmode_cl.report.tables.paper_comparison import ORDER_COLUMNS, PAPER_COLUMNS, order_table, paper_table
from repmode_cl.report.tables.planned import planned_table
from repmode_cl.report.tables.strategies import csv_keys, strategy_table
from repmode_cl.report.tables.structures import structure_table, wide_structures
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.run_info import RunInfo, read_run_info
from repmode_cl.utils.atomic_files import write_text
from repmode_cl.utils.number_format import (
    count_text,
    difference_text,
    forgetting_text,
    p_text,
    seconds_text,
    title_text,
)

__all__ = [
    "BUDGET_COLUMNS",
    "COMPARISON_COLUMNS",
    "PLANNED_COLUMNS",
    "STRATEGY_COLUMNS",
    "RunTables",
    "run_tables",
    "write_tables",
]
#: Metrics that structures and comparisons are shown in.
METRICS = {"r2": "R²", "mse": "MSE", "pearson": "Pearson"}

#: What a reader sees of the rows of `strategy_table` after `add_verdicts`.
STRATEGY_COLUMNS = (
    Column("strategy", "strategy", text=title_text),
    Column("final_r2", "R², all"),
    Column("added_r2", "R², added"),
    Column("added_mse", "MSE, added"),
    Column("added_pearson", "Pearson, added"),
    Column("forgetting_r2", "forgetting (R²)", text=lambda row: forgetting_text(row, 3)),
    Column("backward_r2", "backward", signed=True),
    Column("forward_r2", "forward", signed=True),
    Column("intransigence_r2", "intransigence", signed=True),
    Column("area_r2", "area", 3),
    Column(
        "added_parameters", "parameters / structure", text=lambda row: count_text(row["added_parameters"])
    ),
    Column("added_bytes", "bytes / structure", text=lambda row: count_text(row["added_bytes"], "B")),
    Column("added_steps", "steps / structure", text=lambda row: count_text(row["added_steps"])),
    Column("added_seconds", "seconds / structure", text=lambda row: seconds_text(row["added_seconds"])),
    Column("peak_memory_bytes", "memory", text=lambda row: count_text(row["peak_memory_bytes"], "B")),
    Column("seeds", "seeds"),
    Column("verdict", "verdict"),
)

COMPARISON_COLUMNS = (
    Column("first", "strategy"),
    Column("second", "against"),
    Column("structure", "structures", text=lambda row: str(row["structure"]).replace("_", " ")),
    Column("metric", "metric"),
    Column("difference", "difference [95%]", text=difference_text),
    Column("p", "p", text=lambda row: p_text(row["p"])),
    Column("p_holm", "p (Holm)", text=lambda row: p_text(row["p_holm"])),
    Column("seeds", "seeds"),
    Column("seeds_needed", "needed"),
    Column("verdict", "verdict"),
)


def _share(key: str) -> Any:
    return lambda row: "-" if row[key] is None else f"{100 * row[key]:.0f} %"


PLANNED_COLUMNS = (
    Column("claim", "claim"),
    Column("first_r2", "R², first"),
    Column("second_r2", "R², second"),
    Column("difference", "difference [95%]", text=difference_text),
    Column("p_holm", "p (Holm)", text=lambda row: p_text(row["p_holm"])),
    Column("bytes_share", "bytes", text=_share("bytes_share")),
    Column("seconds_share", "seconds", text=_share("seconds_share")),
    Column("seeds", "seeds"),
    Column("verdict", "verdict"),
)


def _steps(row: Mapping[str, Any]) -> str:
    return "none" if row["steps"] is None else f"{row['steps']:.0f}"


BUDGET_COLUMNS = (
    Column("family", "strategy"),
    Column("structure", "structures", text=lambda row: str(row["structure"]).replace("_", " ")),
    Column("target", "Multi-Net"),
    Column("value", "reached"),
    Column("steps", "steps", text=_steps),
    Column("steps_share", "of Multi-Net's", text=_share("steps_share")),
    Column("seconds", "seconds", text=lambda row: seconds_text(row["seconds"])),
    Column("seconds_share", "of Multi-Net's", text=_share("seconds_share")),
    Column("seeds", "seeds"),
    Column("tried", "tried (steps: value)"),
)


@dataclass(frozen=True)
class RunTables:
    """Every table of some streams of a run.

    Attributes
    ----------
    strategies
        Rows of `strategy_table` with verdicts (`add_verdicts`).
    structures
        Rows of `structure_table` with the metrics side by side.
    of_metric
        Metric (r2, mse, pearson) -> rows of `structure_table`, for `wide_structures`.
    comparisons
        Rows of `comparison_table` that average over structures, R2.
    more_comparisons
        The same for each structure, then both for MSE and Pearson's r.
    budgets
        Rows of `budget_table`.
    paper, paper_orders
        Rows of `paper_table` and `order_table`; empty for a run that repeats none of the paper's tables.
    """

    strategies: list[dict[str, Any]]
    structures: list[dict[str, Any]]
    of_metric: dict[str, list[dict[str, Any]]]
    comparisons: list[dict[str, Any]]
    more_comparisons: list[dict[str, Any]]
    budgets: list[dict[str, Any]]
    paper: list[dict[str, Any]]
    paper_orders: list[dict[str, Any]]


def run_tables(
    run_dir: str | Path,
    *,
    against: str | None = None,
    streams: Sequence[str] | None = None,
    results: ResultsTable | None = None,
    info: RunInfo | None = None,
) -> RunTables:
    """Compute every table of a run.

    Parameters
    ----------
    run_dir
        Its folder.
    against
        Title of the strategy that the others are compared with; None takes ours. A Multi-Net is what budgets, forward
        transfer and improvement refer to, too, which is else the best one.
    streams
        As in `strategy_table`.
    results, info
        Contents of results.csv and run.json, where they were read already.

    Raises
    ------
    RepmodeError
        If run.json or results.csv is missing or wrong, or the run has no strategy or stream of that name.
    """
    info = read_run_info(run_dir) if info is None else info
    results = ResultsTable.read(Path(run_dir) / "results.csv") if results is None else results
    against = our_strategy(info) if against is None else against
    multi_net = against if info.strategies.get(against or "") == "multi_net" else None
    # Without a strategy of ours, every pair.
    pairs = list(combinations(info.strategies, 2)) if against is None else pairs_against(info, against)
    comparisons = comparison_table(results, info, pairs=pairs, streams=streams)
    measured = {row.metric for row in results}
    metrics = [metric for metric in METRICS if metric in measured]
    of_metric = {metric: structure_table(results, info, metric, streams=streams) for metric in metrics}
    areas = read_areas(run_dir, info)
    table = strategy_table(results, info, streams=streams, areas=areas, multi_net=multi_net)
    return RunTables(
        strategies=add_verdicts(table, comparisons if against is not None else ()),
        structures=_metrics_side_by_side(of_metric),
        of_metric=of_metric,
        comparisons=comparisons,
        more_comparisons=[
            row
            for metric in metrics
            for each in (False, True)
            if each or metric != "r2"
            for row in comparison_table(
                results, info, metric, pairs=pairs, streams=streams, per_structure=each
            )
        ],
        budgets=budget_table(results, info, streams=streams, multi_net=multi_net),
        paper=paper_table(results, info, streams=streams),
        paper_orders=order_table(results, info, streams=streams),
    )


def _metrics_side_by_side(of_metric: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for metric, listed in of_metric.items():
        for row in listed:
            same = {key: row[key] for key in ("structure", "added", "strategy", "name", "seeds")}
            combined = rows.setdefault((row["structure"], row["strategy"]), same)
            combined |= {metric: row["value"], f"{metric}_ci": row["value_ci"]}
            combined |= {f"learned_{metric}": row["learned"], f"learned_{metric}_ci": row["learned_ci"]}
    return list(rows.values())


def write_tables(run_dir: str | Path, folder: str | Path, *, against: str | None = None) -> list[Path]:
    """Write every table of a run as ``.csv`` and ``.tex``.

    ``strategies``, ``structures``, ``comparisons`` and ``budgets``; of a run that repeats a table of the paper
    ``paper`` and ``paper_orders`` too. Streams of other numbers of images are other experiments and have a folder
    each, named by that number. ``planned`` is of the whole run.

    Parameters
    ----------
    run_dir
        The run's folder.
    folder
        Where to; made if it is missing.
    against
        As in `run_tables`.

    Returns
    -------
    list of Path
        The files. A table without rows is not written.
    """
    info = read_run_info(run_dir)
    results = ResultsTable.read(Path(run_dir) / "results.csv")
    groups = info.stream_groups()
    written: list[Path] = []
    for name, streams in groups.items():
        place = Path(folder) / name if len(groups) > 1 else Path(folder)
        tables = run_tables(run_dir, against=against, streams=streams, results=results, info=info)
        keys = [*csv_keys(), "against", "difference", "low", "high", "p", "p_holm", "verdict"]
        comparisons = [*tables.comparisons, *tables.more_comparisons]
        r2_rows = [row for row in comparisons if row["metric"] == "r2"]
        for table, rows, csv, tex in (
            (
                "strategies",
                tables.strategies,
                to_csv(tables.strategies, keys),
                to_latex(tables.strategies, _filled(tables.strategies)),
            ),
            ("structures", tables.structures, to_csv(tables.structures), _structures_latex(tables.of_metric)),
            ("comparisons", comparisons, to_csv(comparisons), to_latex(r2_rows, COMPARISON_COLUMNS)),
            ("budgets", tables.budgets, to_csv(tables.budgets), to_latex(tables.budgets, BUDGET_COLUMNS)),
            ("paper", tables.paper, to_csv(tables.paper), to_latex(tables.paper, PAPER_COLUMNS)),
            (
                "paper_orders",
                tables.paper_orders,
                to_csv(tables.paper_orders),
                to_latex(tables.paper_orders, ORDER_COLUMNS),
            ),
        ):
            if rows:
                written += [place / f"{table}.csv", place / f"{table}.tex"]
                write_text(written[-2], csv)
                write_text(written[-1], tex)
    planned = planned_table(results, info)
    if planned:
        written += [Path(folder) / "planned.csv", Path(folder) / "planned.tex"]
        write_text(written[-2], to_csv(planned))
        write_text(written[-1], to_latex(planned, PLANNED_COLUMNS))
    return written


def _filled(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the columns of strategies that something stands in."""
    return [column for column in STRATEGY_COLUMNS if any(row[column.key] is not None for row in rows)]


def _structures_latex(of_metric: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return one LaTeX table for each metric, structures in rows and strategies in columns."""
    parts = []
    for metric, rows in of_metric.items():
        if rows:
            wide, (structure, *strategies) = wide_structures(rows)
            parts.append(to_latex(wide, [replace(structure, heading=METRICS[metric]), *strategies]))
    return "\n".join(parts)
