"""``repmode-cl report``: the page and the tables of a run, made again from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repmode_cl.cli.options import console
from repmode_cl.errors import RepmodeError

__all__ = ["report", "show_results"]


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A run's folder, such as runs/quickstart; several are merged."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Merge the runs into this folder and report on that."),
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option("--tables", metavar="FOLDER", help="Write every table there, as CSV and as LaTeX."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="STRATEGY",
            help="In the tables, compare the others with this one instead of ours; budgets refer to a Multi-Net given "
            "here. The page stays as it is.",
        ),
    ] = None,
) -> None:
    """Build a run's report.html again; print its tables.

    Several runs of one configuration, made at different times or places with other seeds, strategies or streams,
    become one.

    For example:

      repmode-cl report runs/quickstart

      repmode-cl report runs/quickstart --tables tables

      repmode-cl report runs/monday runs/cluster --out runs/both
    """
    from repmode_cl.report.page import build_report

    if len(runs) > 1 and out is None:
        raise RepmodeError("several runs are merged into a new folder: name it with --out FOLDER")
    run = runs[0]
    if out is not None:
        from repmode_cl.results.merge_runs import merge_runs

        merge_runs(runs, out)
        run = out
    build_report(run)
    show_results(run, against=against)
    if tables is not None:
        from repmode_cl.report.tables import write_tables

        for path in write_tables(run, tables, against=against):
            typer.echo(f"table: {path}")


def show_results(run: Path, *, against: str | None = None) -> None:
    """Print a run's tables, a line on the forgetting of each strategy, and the path of its page."""
    from repmode_cl.report.tables import run_tables
    from repmode_cl.report.tables.paper_comparison import order_lines
    from repmode_cl.report.tables.planned import planned_table
    from repmode_cl.report.tables.terminal import (
        render_budgets,
        render_comparisons,
        render_planned,
        render_strategies,
        summary_lines,
    )
    from repmode_cl.results.results_table import ResultsTable
    from repmode_cl.results.run_info import read_run_info

    info = read_run_info(run)
    results = ResultsTable.read(run / "results.csv")
    for name, streams in info.stream_groups().items():
        tables = run_tables(run, against=against, streams=streams, results=results, info=info)
        title = f"{run.name}, {name}" if name else run.name
        if len(streams) > 1:
            title += f", mean of {len(streams)} streams"
        console().print(render_strategies(tables.strategies, title=title))
        for line in summary_lines(tables.strategies):
            typer.echo(line)
        if tables.comparisons and any(row["seeds"] > 1 for row in tables.comparisons):
            first = {row["first"] for row in tables.comparisons}
            pairs = f"{first.pop()} against the others" if len(first) == 1 else "every pair"
            structures = tables.comparisons[0]["structure"]
            console().print(
                render_comparisons(tables.comparisons, title=f"{pairs}: R2, mean over {structures}")
            )
        # A single budget says no more than the comparison does.
        if any(";" in row["tried"] for row in tables.budgets):
            averages = [row for row in tables.budgets if row["structure"] == "all added"]
            console().print(render_budgets(averages, title="steps and seconds to Multi-Net's quality"))
        for line in order_lines(tables.paper_orders):
            typer.echo(line)
    planned = planned_table(results, info)
    if planned:
        console().print(render_planned(planned))
    for (title, stream, seed), message in info.failed.items():
        where = f" in the stream {stream}" if stream else ""
        typer.echo(f"failed: {title} with seed {seed}{where}: {message}")
    typer.echo(f"report: {run / 'report.html'}")
