"""The command ``repmode-cl``: puts the commands of the other files together."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Annotated

import typer

from repmode_cl.cli import add, bench, compare, config, data, pack, perf, predict, report, train
from repmode_cl.cli import pending as staged
from repmode_cl.cli import show_and_verify as model
from repmode_cl.cli import versions as history
from repmode_cl.cli.options import Commands
from repmode_cl.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="repmode-cl",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"repmode-cl {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Learn to predict one fluorescent structure after another from transmitted light, and forget none.

    Example, from nothing to an answer:

      repmode-cl bench quickstart
    """


app.command("bench")(bench.bench)
app.command("train")(train.train)
app.command("add")(add.add)
app.command("replace")(add.replace)
app.command("compare")(compare.compare)
app.command("show")(model.show)
app.command("verify")(model.verify)
app.command("predict")(predict.predict)
app.command("history")(history.history)
app.command("remove")(history.remove)
app.command("rollback")(history.rollback)
app.command("gc")(history.gc)
app.command("pending")(staged.pending)
app.command("accept")(staged.accept)
app.command("discard")(staged.discard)
app.add_typer(pack.app, name="pack")
app.command("report")(report.report)
app.add_typer(data.app, name="data")
app.command("config")(config.config)
app.command("perf")(perf.perf)


def main() -> None:
    """Run ``repmode-cl`` with the arguments of the process."""
    for stream in (sys.stdout, sys.stderr):
        # A console that knows no such character shows a replacement; a message must not end in another error.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    # What is wrong with a file our own errors say, with what to do about it; tifffile's lines name its objects.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    app()
