"""Formats of a run: what a benchmark or a comparison leaves on disk, defined, written and read here."""

from repmode_cl.results.results_table import BASE, COSTS, Result, ResultsTable
from repmode_cl.results.run_info import RunInfo, read_run_info

__all__ = [
    "BASE",
    "COSTS",
    "Result",
    "ResultsTable",
    "RunInfo",
    "read_run_info",
]
