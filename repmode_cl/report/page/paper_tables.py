"""The page's tables of a run next to the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repmode_cl.report.page.chart_data import METRIC_NAMES, readable
from repmode_cl.report.page.table_cells import DASH, PageTable, TableCell, TableRow, sortable
from repmode_cl.report.tables.csv_latex import to_csv, to_latex
from repmode_cl.report.tables.paper_comparison import (
    ORDER_COLUMNS,
    PAPER_COLUMNS,
    order_table,
    paper_table,
)
from repmode_cl.report.tables.paper_figures import PAPER_METRICS
from repmode_cl.results.run_folder import Run
from repmode_cl.utils.number_format import number

__all__ = ["improvements_table", "orders_table"]


def improvements_table(run: Run, streams: tuple[str, ...]) -> PageTable:
    """Return the strategies that a table of the paper has, with both figures; without rows, where none does."""
    rows = paper_table(run.results, run.info, streams=streams)
    order = list(run.info.strategies)
    averages = any(row["structure"] == "all" for row in rows)
    page_rows = tuple(
        TableRow(
            (
                TableCell(row["strategy"], "" if averages else readable(row["structure"]), row["strategy"]),
                TableCell(row["system"], "", row["system"], "left"),
                *(cell for metric in PAPER_METRICS for cell in _cells(row, metric)),
                TableCell(str(row["seeds"]), "", row["seeds"]),
            ),
            order.index(row["strategy"]),
            (order.index(row["strategy"]),),
            "" if row["structure"] == "all" else row["structure"],
        )
        for row in rows
    )
    heads = [("strategy", ""), ("in the paper", "its name there")]
    for metric in PAPER_METRICS:
        name = METRIC_NAMES[metric]
        heads += [
            (name, "here; below: in the paper"),
            (f"ΔImp {name}, %", "here, relative to the reference; below: 95% interval, paired by seed"),
            ("paper's", f"ΔImp {name} in the paper, per cent"),
        ]
    heads.append(("seeds", "that it and the reference finished"))
    return PageTable(
        tuple((heading, meaning, None) for heading, meaning in heads),
        page_rows,
        to_csv(rows),
        to_latex(rows, PAPER_COLUMNS) if rows else "",
        _caption(rows[0]) if rows else "",
    )


def _caption(row: Mapping[str, Any]) -> str:
    when = ", just after each was learned" if row["table"] == 3 else ""
    return (
        f"ΔImp: improvement over {row['reference']}{when}, above 0 is better; 95% intervals of 10,000 bootstrap draws "
        "of seeds, the same of both; of R² only over a reference above 0. The paper's figures are of one run on real "
        "images with four times the channels. Its MSE is not 1 - R², because images were normalised before they were "
        "resampled: compare R². A structure is chosen at the top of the page."
    )


def _cells(row: Mapping[str, Any], metric: str) -> tuple[TableCell, TableCell, TableCell]:
    value, published = row[metric], row[f"paper_{metric}"]
    key = f"improvement_{metric}"
    improvement, low, high = (row[name] for name in (key, f"{key}_low", f"{key}_high"))
    theirs = row[f"paper_{key}"]
    if row["strategy"] == row["reference"]:
        low = high = None  # of nothing but itself
    return (
        TableCell(
            DASH if value is None else number(value, 3),
            "" if published is None else f"paper {number(published, 3)}",
            sortable(value),
        ),
        TableCell(
            _signed(improvement),
            "" if low is None else f"{_signed(low)} to {_signed(high)}",
            sortable(improvement),
        ),
        TableCell(_signed(theirs), "", sortable(theirs)),
    )


def _signed(value: float | None) -> str:
    """Return per cents with their sign; 0.0 without one, whatever it was rounded from."""
    if value is None:
        return DASH
    return ("+" if value >= 0.05 else "") + number(value, 1)


def orders_table(run: Run, streams: tuple[str, ...]) -> PageTable:
    """Return how far the order of the systems is that of the paper."""
    rows = order_table(run.results, run.info, streams=streams)
    averages = any(row["structure"] == "all" for row in rows)
    page_rows = tuple(
        TableRow(
            (
                TableCell(METRIC_NAMES[row["metric"]], "" if averages else readable(row["structure"])),
                TableCell(row["variant"] or "all", "", row["variant"], "left"),
                TableCell(
                    _correlation(row["correlation"]),
                    ""
                    if row["low"] is None
                    else f"{_correlation(row['low'])} to {_correlation(row['high'])}",
                    sortable(row["correlation"]),
                ),
                TableCell(str(row["systems"]), "", row["systems"]),
                TableCell(str(row["seeds"]), "", row["seeds"]),
            ),
            structure="" if row["structure"] == "all" else row["structure"],
        )
        for row in rows
    )
    heads = (
        ("metric", ""),
        ("rows", "which of the rows of a system, where it has several"),
        ("rank correlation", "Spearman's; below: 95% interval over the seeds"),
        ("n", "systems"),
        ("seeds", "that all finished"),
    )
    table = rows[0]["table"] if rows else ""
    return PageTable(
        tuple((heading, meaning, None) for heading, meaning in heads),
        page_rows,
        to_csv(rows),
        to_latex(rows, ORDER_COLUMNS) if rows else "",
        f"Spearman's rank correlation of the systems here with those of the paper's Table {table}: 1 is the same, "
        "0 nothing in common, -1 the opposite. Intervals vary the run's seeds; the paper's figures, of one run, stay.",
    )


def _correlation(value: float) -> str:
    return ("+" if value > 0 else "") + number(value, 2)
