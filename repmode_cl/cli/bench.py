"""``repmode-cl bench``: strategies learn the same stream; who learned, who forgot, at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repmode_cl.cli.options import ConfigArgument, OverridesOption, WorkersOption, continue_with
from repmode_cl.cli.report import show_results

__all__ = ["bench"]

#: Left-out rows printed at most.
_LISTED = 50


def bench(
    ctx: typer.Context,
    config: ConfigArgument,
    overrides: OverridesOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and about how long; run nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    workers: WorkersOption = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", min=1, help="Runs (a strategy, a stream, a seed) at work at once, each a process."
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
            "--threads", min=1, help="Of each run; the processor's cores divided by --jobs by default."
        ),
    ] = None,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Leave out images that cannot be used, and list them at the end."),
    ] = False,
) -> None:
    """Let strategies learn a stream of structures.

    Each learns the same structures from the same patches, one after another; see who learns, who forgets, at
    what cost. Ends with the table of results and the path of the report, a page that needs no network.

    For example:

      repmode-cl bench quickstart

      repmode-cl bench my.yaml --set training.steps=300 --set seeds=[0,1,2]

      repmode-cl bench my.yaml --dry-run

      repmode-cl bench my.yaml --jobs 4

      repmode-cl bench my.yaml --scheduler tcp://node1:8786 --threads 8

    One run that fails does not end the others; --resume tries it again. Images that cannot be used end it before
    anything is trained, unless --keep-going leaves them out.
    """
    from repmode_cl.config import load_config
    from repmode_cl.utils.process_pool import workers_here

    loaded = load_config(config, overrides or ())
    continue_with(ctx, "--resume")
    from repmode_cl.benchmark import TrialsFailedError, run_benchmark

    try:
        result = run_benchmark(
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
        _tell_left(error.folder)
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if isinstance(result, Path):
        show_results(result)
        _tell_left(result)
    else:
        typer.echo(str(result))


def _tell_left(folder: Path) -> None:
    """Print which rows of the manifest the run does without."""
    from repmode_cl.results.left_out import LEFT_OUT, read_left_out

    rows = read_left_out(folder)
    if not rows:
        return
    path = folder / LEFT_OUT
    typer.echo(f"left out {len(rows)} row{'' if len(rows) == 1 else 's'} of the manifest ({path}):", err=True)
    for line, reason in rows[:_LISTED]:
        typer.echo(f"  line {line}: {reason}", err=True)
    if len(rows) > _LISTED:
        typer.echo(f"  and {len(rows) - _LISTED} more", err=True)
