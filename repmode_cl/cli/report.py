"""``repmode-cl report``: the page of a run, made anew from what the run wrote down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repmode_cl.cli.common import console

__all__ = ["report", "show_results"]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/quickstart.")],
) -> None:
    """Build a run's report.html again; print its table.

    For example:

      repmode-cl report runs/quickstart
    """
    from repmode_cl.report import build_report

    build_report(run)
    show_results(run)


def show_results(run: Path) -> None:
    """Print a run's table, one line on each strategy's forgetting, and the path of its page."""
    from repmode_cl.evaluation.results import ResultsTable
    from repmode_cl.report.run_info import read_run_info
    from repmode_cl.report.table import render_terminal, strategy_table, summary_lines

    info = read_run_info(run)
    table = strategy_table(ResultsTable.read(run / "results.csv"), info)
    console().print(render_terminal(table, title=run.name))
    for line in summary_lines(table):
        typer.echo(line)
    typer.echo(f"report: {run / 'report.html'}")
