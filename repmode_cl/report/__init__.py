"""Tables and pages of runs and comparisons, from their stored results: `page` writes report.html."""

from __future__ import annotations

from repmode_cl.report.tables import run_tables, write_tables
from repmode_cl.report.tables.budgets import budget_table
from repmode_cl.report.tables.comparisons import comparison_table
from repmode_cl.report.tables.csv_latex import to_csv, to_latex
from repmode_cl.report.tables.strategies import strategy_table, write_table_csv
from repmode_cl.report.tables.structures import structure_table
from repmode_cl.report.tables.terminal import render_strategies, summary_lines

__all__ = [
    "strategy_table",
    "structure_table",
    "comparison_table",
    "budget_table",
    "run_tables",
    "write_tables",
    "to_csv",
    "to_latex",
    "render_strategies",
    "summary_lines",
    "write_table_csv",
]
