"""``repmode-cl bench``: strategies learn the same stream; who learned, who forgot, at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repmode_cl.cli.common import ConfigArgument, OverridesOption, WorkersOption, continue_with
from repmode_cl.cli.report import show_results

__all__ = ["bench"]


def bench(
    ctx: typer.Context,
    config: ConfigArgument,
    overrides: OverridesOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and about how long; run nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    workers: WorkersOption = None,
) -> None:
    """Let strategies learn a stream of structures.

    Each learns the same structures from the same patches, one after another; see who learns, who forgets, at
    what cost. Ends with the table of results and the path of the report, a page that needs no network.

    For example:

      repmode-cl bench quickstart

      repmode-cl bench my.yaml --set training.steps=300 --set seeds=[0,1,2]

      repmode-cl bench my.yaml --dry-run
    """
    from repmode_cl.config import load_config
    from repmode_cl.processes import workers_here

    loaded = load_config(config, overrides or ())
    continue_with(ctx, "--resume")
    from repmode_cl.strategies import run_benchmark

    result = run_benchmark(loaded, resume=resume, dry_run=dry_run, workers=workers or workers_here())
    if isinstance(result, Path):
        show_results(result)
    else:
        typer.echo(str(result))
