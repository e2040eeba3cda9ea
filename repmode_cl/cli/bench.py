"""``repmode-cl bench``: strategies learn the same stream, compared by what they learn, forget and cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.options import (
    ConfigArgument,
    OverridesOption,
    WorkersOption,
    console,
    continue_with,
    report_start,
)
from repmode_cl.cli.report import show_results
from repmode_cl.cli.train import unused_base_steps
from repmode_cl.errors import RepmodeError, counted

if TYPE_CHECKING:
    from repmode_cl.benchmark.search import SearchResult

__all__ = ["bench"]

#: Omitted rows printed at most.
_LISTED = 50


def bench(
    ctx: typer.Context,
    config: ConfigArgument,
    overrides: OverridesOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would run and about how long; run nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume a run that was interrupted.")] = False,
    workers: WorkersOption = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", min=1, help="Trials (a strategy, a stream, a seed) that run at once, each in a process."
        ),
    ] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="ADDRESS",
            help="Run on a Dask cluster: its scheduler's address, or the path of a scheduler file.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, help="Of each trial; the processor's cores divided by --jobs by default."
        ),
    ] = None,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Leave out images that cannot be used, and list them at the end."),
    ] = False,
    search: Annotated[
        bool | None,
        typer.Option(
            "--search/--no-search",
            help="Search for values of the strategies' keys first, with the same number of trials for each, on other "
            "images and seeds; by default where the configuration has the group search.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train strategies on a stream of structures.

    Each learns the same structures from the same patches, one after another; the results show what each learns,
    what it forgets, and its cost. Ends with the table of results and the path of the report, a page that needs no
    network.

    For example:

      repmode-cl bench quickstart

      repmode-cl bench my.yaml --set training.steps=300 --set "seeds=[0,1,2]"

      repmode-cl bench my.yaml --dry-run

      repmode-cl bench my.yaml --jobs 4

      repmode-cl bench my.yaml --scheduler tcp://node1:8786 --threads 8

      repmode-cl bench my.yaml --search

    A trial that fails does not end the others; --resume tries it again. Images that cannot be used end it before
    anything is trained, unless --keep-going leaves them out.
    """
    if scheduler is not None and jobs > 1:
        raise RepmodeError(
            f"--jobs {jobs} is for processes on this machine; with --scheduler as many trials run at once as the "
            "cluster has workers: leave out one of the two"
        )
    from repmode_cl.config import load_config
    from repmode_cl.utils.process_pool import workers_here

    loaded = load_config(config, overrides or ())
    if search and loaded.search is None:
        loaded = load_config(config, [*(overrides or ()), "search={}"])
    elif search is False:
        loaded = loaded.model_copy(update={"search": None})
    continue_with(ctx, "--resume")
    if not dry_run:
        report_start(ctx, loaded.name)
    if note := unused_base_steps(loaded):
        typer.echo(f"note: {note}", err=True)
    from repmode_cl.benchmark import DryRun, TrialsFailedError, run_benchmark
    from repmode_cl.benchmark.search import run_search

    run = run_benchmark if loaded.search is None else run_search
    try:
        result = run(
            loaded,
            resume=resume,
            dry_run=dry_run,
            workers=workers or workers_here(),
            jobs=jobs,
            scheduler=scheduler,
            threads=threads,
            keep_going=keep_going,
        )
    except TrialsFailedError as error:
        if (error.folder / "results.csv").exists():
            show_results(error.folder)
        _print_notes(error.folder)
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if isinstance(result, DryRun):
        typer.echo(str(result))
    elif isinstance(result, Path):
        show_results(result)
        _print_notes(result)
    else:
        _show_search(result)


def _show_search(result: SearchResult) -> None:
    """Print what a search chose, and the commands that run the studies with it."""
    from repmode_cl.report.search import edge_lines, render_search

    console().print(render_search(result.rows, rule=result.rule, title=result.folder.name))
    for line in edge_lines(result.rows):
        typer.echo(f"note: {line}", err=True)
    _print_notes(result.folder)
    typer.echo(f"report: {result.page}")
    for path in result.studies:
        typer.echo(f"study: repmode-cl bench {path}")


def _print_notes(folder: Path) -> None:
    """Print what the run notes on its images, and the rows of the manifest that it did not use."""
    from repmode_cl.results.left_out import LEFT_OUT, read_left_out

    notes = folder / "notes.txt"
    for note in notes.read_text(encoding="utf-8").splitlines() if notes.exists() else ():
        typer.echo(f"note: {note}", err=True)
    rows = read_left_out(folder)
    if not rows:
        return
    typer.echo(f"left out {counted(len(rows), 'row')} of the manifest ({folder / LEFT_OUT}):", err=True)
    for line, reason in rows[:_LISTED]:
        typer.echo(f"  line {line}: {reason}", err=True)
    if len(rows) > _LISTED:
        typer.echo(f"  and {len(rows) - _LISTED} more", err=True)
