"""The tables and the page of a run."""

from __future__ import annotations

from pathlib import Path

from repmode_cl.report.tables import run_tables, write_tables
from repmode_cl.report.tables.budgets import budget_table
from repmode_cl.report.tables.comparisons import comparison_table
from repmode_cl.report.tables.csv_latex import to_csv, to_latex
from repmode_cl.report.tables.strategies import strategy_table, write_table_csv
from repmode_cl.report.tables.structures import structure_table
from repmode_cl.report.tables.terminal import render_terminal, summary_lines

__all__ = [
    "build_report",
    "strategy_table",
    "structure_table",
    "comparison_table",
    "budget_table",
    "run_tables",
    "write_tables",
    "to_csv",
    "to_latex",
    "render_terminal",
    "summary_lines",
    "write_table_csv",
]


def build_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run's folder and return its path (see `repmode_cl.report.page`)."""
    # Here, because a table needs no template engine.
    from repmode_cl.report.page import build_report as build

    return build(run_dir)
