"""The table and the page of a run."""

from __future__ import annotations

from pathlib import Path

from repmode_cl.report.run_info import RunInfo, read_run_info
from repmode_cl.report.table import render_terminal, strategy_table, summary_lines, write_table_csv

__all__ = [
    "build_report",
    "strategy_table",
    "render_terminal",
    "summary_lines",
    "write_table_csv",
    "RunInfo",
    "read_run_info",
]


def build_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run's folder and return its path (see `repmode_cl.report.page`)."""
    # Here, because a table needs no template engine.
    from repmode_cl.report.page import build_report as build

    return build(run_dir)
